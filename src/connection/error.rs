//! What can go wrong with a connection, operation by operation.

use std::{error::Error, fmt};

use super::CloseReason;
use crate::{BoxError, Event};

/// The connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedError {
    reason: CloseReason,
}

impl ClosedError {
    pub(crate) fn new(reason: CloseReason) -> Self {
        Self { reason }
    }

    /// Returns why the connection is closed.
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

/// An event was not sent. Each cause returns the event.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendError {
    /// The connection is closed, for this reason.
    Closed(Event, CloseReason),
    /// The event has an id of its own, and the connection is subscribed with a broker, whose ids
    /// are positions.
    HasId(Event),
}

impl SendError {
    /// Returns the event that was not sent.
    pub fn into_event(self) -> Event {
        match self {
            Self::Closed(event, _) | Self::HasId(event) => event,
        }
    }

    /// Returns why the connection is closed, or `None` if it is open.
    pub fn reason(&self) -> Option<CloseReason> {
        match self {
            Self::Closed(_, reason) => Some(*reason),
            Self::HasId(_) => None,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(_, reason) => ClosedError::new(*reason).fmt(f),
            Self::HasId(_) => {
                f.write_str("cannot send an event with an id of its own on a subscribed connection")
            }
        }
    }
}

impl Error for SendError {}

/// An event was not sent by [`try_send`](super::SseConnection::try_send). Each cause returns the
/// event.
#[derive(Debug)]
pub enum TrySendError {
    /// The outbox has no room now.
    Full(Event),
    /// The event would not be sent with room either. As a rule, the connection is closed.
    Refused(SendError),
}

impl TrySendError {
    /// Returns the event that was not sent.
    pub fn into_event(self) -> Event {
        match self {
            Self::Full(event) => event,
            Self::Refused(error) => error.into_event(),
        }
    }

    /// Returns why the connection is closed, or `None` if it is open.
    pub fn reason(&self) -> Option<CloseReason> {
        match self {
            Self::Full(_) => None,
            Self::Refused(error) => error.reason(),
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
            StreamErrorKind::Cut => f.write_str("event stream was aborted before it was complete"),
            StreamErrorKind::Stalled => {
                f.write_str("client stalled: nothing read within the stall timeout")
            }
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
