//! The error of a broker.

use std::{error::Error, fmt};

use crate::{
    CloseReason,
    backplane::{AppendError, AppendErrorKind, TopicError},
    connection::AttachError,
};

/// An error of a broker: an event was not published or may not have been, or a connection was not
/// subscribed.
#[derive(Debug)]
pub struct BrokerError {
    kind: BrokerErrorCause,
}

#[derive(Debug)]
enum BrokerErrorCause {
    Topic(TopicError),
    HasId,
    NoData,
    ControlEvent(String),
    Append(AppendError),
    Closed(CloseReason),
    Numbered,
    OtherBroker,
}

/// The kind of a [`BrokerError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BrokerErrorKind {
    /// The topic's name is empty or too long.
    Topic,
    /// The event cannot be published: it has an id of its own, it has no data, or it has the type
    /// of a control event.
    Event,
    /// The log did not accept the event, or may not have accepted it.
    Append(AppendErrorKind),
    /// The connection is closed.
    Closed(CloseReason),
    /// The connection cannot be subscribed: its events are numbered, or it is subscribed with
    /// another broker.
    Connection,
}

impl BrokerError {
    pub(super) fn has_id() -> Self {
        BrokerErrorCause::HasId.into()
    }

    pub(super) fn no_data() -> Self {
        BrokerErrorCause::NoData.into()
    }

    pub(super) fn control_event(event_type: &str) -> Self {
        BrokerErrorCause::ControlEvent(event_type.to_owned()).into()
    }

    pub(super) fn closed(reason: CloseReason) -> Self {
        BrokerErrorCause::Closed(reason).into()
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> BrokerErrorKind {
        match &self.kind {
            BrokerErrorCause::Topic(_) => BrokerErrorKind::Topic,
            BrokerErrorCause::HasId
            | BrokerErrorCause::NoData
            | BrokerErrorCause::ControlEvent(_) => BrokerErrorKind::Event,
            BrokerErrorCause::Append(error) => BrokerErrorKind::Append(error.kind()),
            BrokerErrorCause::Closed(reason) => BrokerErrorKind::Closed(*reason),
            BrokerErrorCause::Numbered | BrokerErrorCause::OtherBroker => {
                BrokerErrorKind::Connection
            }
        }
    }
}

impl From<BrokerErrorCause> for BrokerError {
    fn from(kind: BrokerErrorCause) -> Self {
        Self { kind }
    }
}

impl From<TopicError> for BrokerError {
    fn from(error: TopicError) -> Self {
        BrokerErrorCause::Topic(error).into()
    }
}

impl From<AppendError> for BrokerError {
    fn from(error: AppendError) -> Self {
        BrokerErrorCause::Append(error).into()
    }
}

impl From<AttachError> for BrokerError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Closed(reason) => BrokerErrorCause::Closed(reason),
            AttachError::Numbered => BrokerErrorCause::Numbered,
            AttachError::OtherSource => BrokerErrorCause::OtherBroker,
        }
        .into()
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            BrokerErrorCause::Topic(error) => error.fmt(f),
            BrokerErrorCause::HasId => f.write_str("cannot publish an event with an id of its own"),
            BrokerErrorCause::NoData => f.write_str("cannot publish an event without data"),
            BrokerErrorCause::ControlEvent(event_type) => {
                write!(
                    f,
                    "cannot publish an event of the control type {event_type:?}"
                )
            }
            BrokerErrorCause::Append(error) => error.fmt(f),
            BrokerErrorCause::Closed(reason) => write!(f, "event stream is closed: {reason}"),
            BrokerErrorCause::Numbered => {
                f.write_str("cannot subscribe a connection with numbered events")
            }
            BrokerErrorCause::OtherBroker => {
                f.write_str("connection is already subscribed with another broker")
            }
        }
    }
}

impl Error for BrokerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            // Displayed instead of this error, so that it does not appear in the chain twice.
            BrokerErrorCause::Append(error) => error.source(),
            _ => None,
        }
    }
}
