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
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
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
        Kind::HasId.into()
    }

    pub(super) fn no_data() -> Self {
        Kind::NoData.into()
    }

    pub(super) fn control_event(event_type: &str) -> Self {
        Kind::ControlEvent(event_type.to_owned()).into()
    }

    pub(super) fn closed(reason: CloseReason) -> Self {
        Kind::Closed(reason).into()
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> BrokerErrorKind {
        match &self.kind {
            Kind::Topic(_) => BrokerErrorKind::Topic,
            Kind::HasId | Kind::NoData | Kind::ControlEvent(_) => BrokerErrorKind::Event,
            Kind::Append(error) => BrokerErrorKind::Append(error.kind()),
            Kind::Closed(reason) => BrokerErrorKind::Closed(*reason),
            Kind::Numbered | Kind::OtherBroker => BrokerErrorKind::Connection,
        }
    }
}

impl From<Kind> for BrokerError {
    fn from(kind: Kind) -> Self {
        Self { kind }
    }
}

impl From<TopicError> for BrokerError {
    fn from(error: TopicError) -> Self {
        Kind::Topic(error).into()
    }
}

impl From<AppendError> for BrokerError {
    fn from(error: AppendError) -> Self {
        Kind::Append(error).into()
    }
}

impl From<AttachError> for BrokerError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Closed(reason) => Kind::Closed(reason),
            AttachError::Numbered => Kind::Numbered,
            AttachError::Taken => Kind::OtherBroker,
        }
        .into()
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Topic(error) => error.fmt(f),
            Kind::HasId => f.write_str("cannot publish an event with an id of its own"),
            Kind::NoData => f.write_str("cannot publish an event without data"),
            Kind::ControlEvent(event_type) => {
                write!(
                    f,
                    "cannot publish an event of the control type {event_type:?}"
                )
            }
            Kind::Append(error) => error.fmt(f),
            Kind::Closed(reason) => write!(f, "event stream is closed: {reason}"),
            Kind::Numbered => f.write_str("cannot subscribe a connection with numbered events"),
            Kind::OtherBroker => {
                f.write_str("connection is already subscribed with another broker")
            }
        }
    }
}

impl Error for BrokerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            // Displayed instead of this error, so that it does not appear in the chain twice.
            Kind::Append(error) => error.source(),
            _ => None,
        }
    }
}
