//! What can go wrong with a broker.

use std::{error::Error, fmt};

use crate::{
    CloseReason,
    backplane::{AppendError, AppendErrorKind, TopicError},
    connection::AttachError,
};

/// An event was not published, or not certainly; or a connection was not subscribed.
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

/// What a [`BrokerError`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BrokerErrorKind {
    /// The topic's name is empty or too long.
    Topic,
    /// The event cannot be published: it has an id of its own, it has no data, or its type is that
    /// of a control event.
    Event,
    /// The log did not take the event, or not certainly.
    Append(AppendErrorKind),
    /// The connection is closed.
    Closed(CloseReason),
    /// The connection cannot be subscribed: its events are numbered, or it is another broker's.
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

    /// What the error is about.
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
            Kind::HasId => f.write_str("event has an id of its own: ids are the broker's"),
            Kind::NoData => f.write_str("event has no data: clients would not see it"),
            Kind::ControlEvent(event_type) => {
                write!(f, "event type {event_type:?} is that of a control event")
            }
            Kind::Append(error) => error.fmt(f),
            Kind::Closed(reason) => write!(f, "event stream is closed: {reason}"),
            Kind::Numbered => {
                f.write_str("connection's events are numbered: their ids would be taken for places")
            }
            Kind::OtherBroker => f.write_str("connection is subscribed with another broker"),
        }
    }
}

impl Error for BrokerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            // Shown in its place, so that it does not stand in the chain twice.
            Kind::Append(error) => error.source(),
            _ => None,
        }
    }
}
