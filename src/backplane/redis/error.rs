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
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
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
            kind: Kind::Url(error),
        }
    }

    pub(super) fn name() -> Self {
        Self { kind: Kind::Name }
    }

    pub(super) fn no_host() -> Self {
        Self { kind: Kind::NoHost }
    }

    pub(super) fn no_sentinel() -> Self {
        let kind = Kind::NoSentinel;
        Self { kind }
    }

    pub(super) fn no_tls() -> Self {
        Self { kind: Kind::NoTls }
    }

    #[cfg(feature = "redis-tls")]
    pub(super) fn tls(error: RedisError) -> Self {
        let kind = Kind::Tls(error);
        Self { kind }
    }

    #[cfg(feature = "redis-tls")]
    pub(super) fn file(file: &Path, error: impl Into<BoxError>) -> Self {
        let kind = Kind::File(file.to_owned(), error.into());
        Self { kind }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Url(_) => "not the URL of a Redis server",
            Kind::Name => "name of the log is empty, or has a brace in it",
            Kind::NoHost => "sentinels and clusters need a URL with a host",
            Kind::NoSentinel => "no sentinel is named",
            Kind::NoTls => "TLS to Redis takes the feature `redis-tls`",
            #[cfg(feature = "redis-tls")]
            Kind::Tls(_) => "certificates or key will not do",
            #[cfg(feature = "redis-tls")]
            Kind::File(file, _) => {
                return write!(f, "certificate or key in {} will not do", file.display());
            }
        })
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            Kind::Url(error) => Some(error),
            Kind::Name | Kind::NoHost | Kind::NoSentinel | Kind::NoTls => None,
            #[cfg(feature = "redis-tls")]
            Kind::Tls(error) => Some(error),
            #[cfg(feature = "redis-tls")]
            Kind::File(_, error) => Some(&**error),
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
