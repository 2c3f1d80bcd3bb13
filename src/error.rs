//! The crate's errors joined, for `?` in handlers.

use std::{error, fmt};

use crate::{
    connection::{ClosedError, SendError, TrySendError},
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
    /// An event was not sent: the outbox had no room.
    Full,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(error) => error.fmt(f),
            Self::Closed(error) => error.fmt(f),
            Self::Full => f.write_str("outbox is full"),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // Shown in its place, so that it does not stand in the chain twice.
            Self::Event(error) => error.source(),
            Self::Closed(error) => error.source(),
            Self::Full => None,
        }
    }
}

impl From<EventError> for Error {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}

impl From<ClosedError> for Error {
    fn from(error: ClosedError) -> Self {
        Self::Closed(error)
    }
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        Self::Closed(error.closed())
    }
}

impl From<TrySendError> for Error {
    fn from(error: TrySendError) -> Self {
        match error {
            TrySendError::Full(_) => Self::Full,
            TrySendError::Closed(error) => error.into(),
        }
    }
}
