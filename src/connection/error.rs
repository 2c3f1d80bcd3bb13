//! What can go wrong with a connection, operation by operation.

use std::{error::Error, fmt};

use super::CloseReason;
use crate::{BoxError, Event};

/// The connection takes no more events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedError {
    reason: CloseReason,
}

impl ClosedError {
    pub(super) fn new(reason: CloseReason) -> Self {
        Self { reason }
    }

    /// Why the connection takes no more events.
    pub fn reason(&self) -> CloseReason {
        self.reason
    }
}

impl fmt::Display for ClosedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event stream is closed: {}", self.reason)
    }
}

impl Error for ClosedError {}

/// An event was not sent: the connection takes no more, or takes none that has an id of its own,
/// since it is subscribed with a broker, whose ids name places.
///
/// It hands the event back.
#[derive(Debug)]
pub struct SendError {
    event: Event,
    /// None: the event has an id.
    closed: Option<ClosedError>,
}

impl SendError {
    pub(super) fn new(event: Event, reason: CloseReason) -> Self {
        let closed = Some(ClosedError::new(reason));
        Self { event, closed }
    }

    pub(super) fn has_id(event: Event) -> Self {
        let closed = None;
        Self { event, closed }
    }

    pub(crate) fn closed(&self) -> Option<ClosedError> {
        self.closed
    }

    /// The event that was not sent.
    pub fn into_event(self) -> Event {
        self.event
    }

    /// Why the connection takes no more events. None if it does, and this one has an id.
    pub fn reason(&self) -> Option<CloseReason> {
        self.closed.map(|closed| closed.reason)
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.closed {
            Some(closed) => closed.fmt(f),
            None => f.write_str("event has an id of its own: ids are the broker's here"),
        }
    }
}

impl Error for SendError {}

/// An event was not sent by [`try_send`](super::SseConnection::try_send). Both ways hand it back.
#[derive(Debug)]
pub enum TrySendError {
    /// The outbox has no room now.
    Full(Event),
    /// It would not be sent with room either: the connection is closed, as a rule.
    Refused(SendError),
}

impl TrySendError {
    /// The event that was not sent.
    pub fn into_event(self) -> Event {
        match self {
            Self::Full(event) => event,
            Self::Refused(error) => error.into_event(),
        }
    }
}

impl fmt::Display for TrySendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("outbox is full"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl Error for TrySendError {}

impl From<SendError> for TrySendError {
    fn from(error: SendError) -> Self {
        Self::Refused(error)
    }
}

/// How the body of a stream breaks off, so that a client can tell it from one that is finished.
///
/// Servers see it as the error of the response body, and cut the connection (HTTP/1.1) or reset
/// the stream (HTTP/2).
#[derive(Debug)]
pub struct StreamError {
    kind: StreamErrorKind,
}

#[derive(Debug)]
pub(crate) enum StreamErrorKind {
    /// `SseConnection::fail`.
    Application(BoxError),
    /// The handler returned an error after the start.
    HandlerError,
    /// The handler answered something else than a 200 after the start.
    HandlerAnswer(http::StatusCode),
    HandlerPanicked,
    /// The end of its life, or of a drain, came before the handler had finished, or before all was
    /// taken.
    Cut,
    /// Nothing was taken for too long.
    Stalled,
}

impl StreamError {
    pub(crate) fn new(kind: StreamErrorKind) -> Self {
        Self { kind }
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            StreamErrorKind::Application(_) => f.write_str("event stream failed"),
            StreamErrorKind::HandlerError => {
                f.write_str("handler returned an error after its event stream had started")
            }
            StreamErrorKind::HandlerAnswer(status) => write!(
                f,
                "handler answered {} after its event stream had started",
                status.as_u16(),
            ),
            StreamErrorKind::HandlerPanicked => {
                f.write_str("handler panicked after its event stream had started")
            }
            StreamErrorKind::Cut => f.write_str("event stream had to end before it was finished"),
            StreamErrorKind::Stalled => f.write_str("event stream was not taken for too long"),
        }
    }
}

impl Error for StreamError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            StreamErrorKind::Application(error) => Some(&**error),
            _ => None,
        }
    }
}
