//! What becomes of a client's position, and why there may be a gap.

use std::sync::{Arc, Mutex};

use crate::log::Position;

/// The outcome for a client's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The client sent no position. It receives events from now on.
    Fresh,
    /// The client receives everything after its position, once and in order.
    Exact,
    /// Events after the client's position may be lost. It receives a `gap` event, then events from
    /// now on.
    Gap,
    /// The log has not been read yet. The stream opens, and the outcome is resolved later.
    Pending,
}

/// Why there is a gap: what the `gap` event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapReason {
    /// The position belongs to another log: the log was lost, or the client comes from another
    /// broker.
    OtherLog,
    /// The position does not belong to this log, or that cannot be determined.
    Unknown,
    /// Events after the position are no longer kept.
    Evicted,
    /// The subscriber was slower than its topic.
    Lagged,
    /// The node has lost a part of the log.
    Lost,
    /// A record of the topic cannot be decoded, or must not be sent to clients.
    Unreadable,
}

impl GapReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::OtherLog => "other_log",
            Self::Unknown => "unknown_position",
            Self::Evicted => "evicted",
            Self::Lagged => "lagged",
            Self::Lost => "lost",
            Self::Unreadable => "unreadable",
        }
    }
}

/// How a node resolves a position.
#[derive(Clone, Copy, Debug)]
pub(super) enum ResumeDecision {
    Fresh,
    Exact(Position),
    Gap(GapReason),
}

impl ResumeDecision {
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Fresh => Outcome::Fresh,
            Self::Exact(_) => Outcome::Exact,
            Self::Gap(_) => Outcome::Gap,
        }
    }
}

/// An outcome that may still come. The lock guards nothing else.
pub(super) type SharedOutcome = Arc<Mutex<Outcome>>;
