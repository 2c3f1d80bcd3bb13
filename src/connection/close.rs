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
    /// It was too slow for its topics, whose broker disconnects such subscribers.
    SlowConsumer,
    /// Something broke: `fail`, or a handler that failed after the start of the stream.
    Failed,
}

impl CloseReason {
    /// A short name, the same in every version: for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::Closed => "closed",
            Self::Declined => "declined",
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
            Self::SlowConsumer => "too slow for its topics",
            Self::Failed => "failed",
        })
    }
}
