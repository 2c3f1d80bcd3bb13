//! What can go wrong with Redis.

use std::{error::Error, fmt, time::Duration};

use redis::RedisError;

/// A log in Redis was not set up: its URL or its name will not do.
///
/// A server that cannot be reached is no such error: see
/// [`RedisStreams::connect`](super::RedisStreams::connect).
#[derive(Debug)]
pub struct ConnectError {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Url(RedisError),
    Name,
}

impl ConnectError {
    pub(super) fn url(error: RedisError) -> Self {
        Self {
            kind: Kind::Url(error),
        }
    }

    pub(super) fn name() -> Self {
        Self { kind: Kind::Name }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Url(_) => "not the URL of a Redis server",
            Kind::Name => "name of the log is empty, or has a brace in it",
        })
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            Kind::Url(error) => Some(error),
            Kind::Name => None,
        }
    }
}

/// Nothing was heard within a time.
#[derive(Debug)]
pub(super) struct TimedOut {
    pub(super) time: Duration,
    /// What went wrong meanwhile.
    pub(super) cause: Option<RedisError>,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis has not answered within {:?}", self.time)
    }
}

impl Error for TimedOut {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

/// Redis has answered with something that a script of ours does not give, or with a refusal.
#[derive(Debug)]
pub(super) struct Unexpected(pub(super) String);

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis has answered: {}", self.0)
    }
}

impl Error for Unexpected {}

/// A record is larger than the log takes.
#[derive(Debug)]
pub(super) struct TooLarge {
    pub(super) size: usize,
    pub(super) most: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "record has {} bytes: the log takes at most {}",
            self.size, self.most
        )
    }
}

impl Error for TooLarge {}
