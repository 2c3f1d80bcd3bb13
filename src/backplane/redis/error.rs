//! What can go wrong with Redis.

use std::{error::Error, fmt, time::Duration};

#[cfg(feature = "redis-tls")]
use std::path::{Path, PathBuf};

use redis::RedisError;

#[cfg(feature = "redis-tls")]
use crate::BoxError;

/// A log in Redis was not set up: a URL, its name or a certificate will not do.
///
/// A server that cannot be reached is no such error: see
/// [`RedisStreams::connect`](super::RedisStreams::connect).
#[derive(Debug)]
pub struct ConnectError {
    kind: RedisErrorCause,
}

#[derive(Debug)]
enum RedisErrorCause {
    Url(RedisError),
    Name,
    NoHost,
    NoSentinel,
    NoTls,
    #[cfg(feature = "redis-tls")]
    Tls(RedisError),
    #[cfg(feature = "redis-tls")]
    File(PathBuf, BoxError),
}

impl ConnectError {
    pub(super) fn url(error: RedisError) -> Self {
        Self {
            kind: RedisErrorCause::Url(error),
        }
    }

    pub(super) fn name() -> Self {
        Self {
            kind: RedisErrorCause::Name,
        }
    }

    pub(super) fn no_host() -> Self {
        Self {
            kind: RedisErrorCause::NoHost,
        }
    }

    pub(super) fn no_sentinel() -> Self {
        let kind = RedisErrorCause::NoSentinel;
        Self { kind }
    }

    pub(super) fn no_tls() -> Self {
        Self {
            kind: RedisErrorCause::NoTls,
        }
    }

    #[cfg(feature = "redis-tls")]
    pub(super) fn tls(error: RedisError) -> Self {
        let kind = RedisErrorCause::Tls(error);
        Self { kind }
    }

    #[cfg(feature = "redis-tls")]
    pub(super) fn file(file: &Path, error: impl Into<BoxError>) -> Self {
        let kind = RedisErrorCause::File(file.to_owned(), error.into());
        Self { kind }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            RedisErrorCause::Url(_) => "not the URL of a Redis server",
            RedisErrorCause::Name => "name of the log is empty, or has a brace in it",
            RedisErrorCause::NoHost => "sentinels and clusters need a URL with a host",
            RedisErrorCause::NoSentinel => "no sentinel is named",
            RedisErrorCause::NoTls => "TLS to Redis takes the feature `redis-tls`",
            #[cfg(feature = "redis-tls")]
            RedisErrorCause::Tls(_) => "certificates or key will not do",
            #[cfg(feature = "redis-tls")]
            RedisErrorCause::File(file, _) => {
                return write!(f, "certificate or key in {} will not do", file.display());
            }
        })
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            RedisErrorCause::Url(error) => Some(error),
            RedisErrorCause::Name
            | RedisErrorCause::NoHost
            | RedisErrorCause::NoSentinel
            | RedisErrorCause::NoTls => None,
            #[cfg(feature = "redis-tls")]
            RedisErrorCause::Tls(error) => Some(error),
            #[cfg(feature = "redis-tls")]
            RedisErrorCause::File(_, error) => Some(&**error),
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

/// A record is larger than the limit.
#[derive(Debug)]
pub(super) struct TooLarge {
    pub(super) size: usize,
    pub(super) max: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "record has {} bytes: the limit is {}",
            self.size, self.max
        )
    }
}

impl Error for TooLarge {}
