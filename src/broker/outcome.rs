//! What becomes of a client's position, and why there may be a gap.

use std::sync::{Arc, Mutex};

use crate::log::Position;

/// What became of a client's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The client named no place: it gets what comes from now on.
    Fresh,
    /// It gets everything after its place, once and in order.
    Exact,
    /// Some of what came after its place may be lost. It is told so by a `gap` event, and gets what
    /// comes from now on.
    Gap,
    /// The log has not been read yet. The stream opens, and the outcome follows.
    Pending,
}

/// Why there is a gap: what the `gap` event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapReason {
    /// The place is one of another log: the server's was lost, or is not the one that the client
    /// knows.
    OtherLog,
    /// The place is not one of this log, or nobody can tell.
    Unknown,
    /// Events after the place are not kept any more.
    Evicted,
    /// The subscriber was slower than its topic.
    Lagged,
    /// The node has lost a part of the log.
    Lost,
    /// A record of the topic cannot be understood, or is none that clients may be given.
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

/// What a node decides of a position.
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
