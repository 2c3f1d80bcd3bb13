//! The crate's errors joined, for `?` in handlers.

use std::{error, fmt};

use crate::{
    broker::BrokerError,
    connection::{ClosedError, LimitError, SendError, TrySendError},
    event::EventError,
};

/// Any error of this crate that a handler meets, for `?`.
///
/// With feature "axum" it is a response too.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An event could not be built.
    Event(EventError),
    /// An event was not sent: the connection is closed.
    Closed(ClosedError),
    /// The limit of connections with a key is reached.
    Limit(LimitError),
    /// An event was not sent: the outbox had no room.
    Full,
    /// An event was not sent: it has an id of its own, and the connection is subscribed.
    HasId,
    /// An event was not published, or a connection not subscribed.
    Broker(BrokerError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(error) => error.fmt(f),
            Self::Closed(error) => error.fmt(f),
            Self::Limit(error) => error.fmt(f),
            Self::Full => f.write_str("outbox is full"),
            Self::HasId => {
                f.write_str("cannot send an event with an id of its own on a subscribed connection")
            }
            Self::Broker(error) => error.fmt(f),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // Shown in its place, so that it does not stand in the chain twice.
            Self::Event(error) => error.source(),
            Self::Closed(error) => error.source(),
            Self::Limit(error) => error.source(),
            Self::Full | Self::HasId => None,
            Self::Broker(error) => error.source(),
        }
    }
}

impl From<EventError> for Error {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}

impl From<BrokerError> for Error {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

impl From<LimitError> for Error {
    fn from(error: LimitError) -> Self {
        Self::Limit(error)
    }
}

impl From<ClosedError> for Error {
    fn from(error: ClosedError) -> Self {
        Self::Closed(error)
    }
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Closed(_, reason) => Self::Closed(ClosedError::new(reason)),
            SendError::HasId(_) => Self::HasId,
        }
    }
}

impl From<TrySendError> for Error {
    fn from(error: TrySendError) -> Self {
        match error {
            TrySendError::Full(_) => Self::Full,
            TrySendError::Refused(error) => error.into(),
        }
    }
}
