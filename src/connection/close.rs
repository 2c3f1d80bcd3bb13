//! Why a stream ended.

use std::fmt;

/// Why a stream ended. The first reason wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client left: the response, or its body, was dropped before its end. A layer outside
    /// that gives a response up (a timeout) looks the same.
    ClientGone,
    /// The application ended it: with `close`, or by letting go of the last handle.
    Closed,
    /// There was no stream: the inner service answered with something else, or called
    /// [`decline`](super::SseConnection::decline).
    Declined,
    /// There was no stream, or no longer: it was one too many of its kind, see
    /// [`limit`](super::SseConnection::limit). Requests that the layer itself refuses are never a
    /// connection.
    Refused,
    /// The registry was drained: see [`Connections::drain`](super::Connections::drain).
    Drained,
    /// It has come to the end of its life: see
    /// [`SseLayer::max_lifetime`](crate::SseLayer::max_lifetime) and
    /// [`close_at`](super::SseConnection::close_at).
    Lifetime,
    /// It was too slow: nothing was taken from it for the layer's
    /// [`stall_timeout`](crate::SseLayer::stall_timeout), or its broker disconnects subscribers
    /// that fall off their topics' history.
    SlowConsumer,
    /// Something broke: `fail`, or a handler that failed after the start of the stream.
    Failed,
}

impl CloseReason {
    /// All reasons, in the order of their numbers.
    pub(crate) const ALL: [Self; 8] = [
        Self::ClientGone,
        Self::Closed,
        Self::Declined,
        Self::Refused,
        Self::Drained,
        Self::Lifetime,
        Self::SlowConsumer,
        Self::Failed,
    ];

    /// A short name, the same in every version: for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::Closed => "closed",
            Self::Declined => "declined",
            Self::Refused => "refused",
            Self::Drained => "drained",
            Self::Lifetime => "lifetime",
            Self::SlowConsumer => "slow_consumer",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientGone => "the client left",
            Self::Closed => "closed by the application",
            Self::Declined => "declined by the application",
            Self::Refused => "one too many of its kind",
            Self::Drained => "the server is shutting down",
            Self::Lifetime => "at the end of its life",
            Self::SlowConsumer => "too slow",
            Self::Failed => "failed",
        })
    }
}
