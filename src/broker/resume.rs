//! What a subscription found, and the moment from which its events flow.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::reading::Core;
use crate::{connection::Hold, log::Position};

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

/// What is found of a place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    Fresh,
    Exact(Position),
    Gap(GapReason),
}

impl Verdict {
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

/// A subscription whose events wait.
///
/// `subscribe` has fixed the place; events of its topics wait until [`live`](Self::live), or until
/// this is dropped and the handler has answered. Everything sent directly before that precedes
/// every topic event: so a snapshot that is loaded now, and sent, is never older than the events
/// that follow it.
///
/// The client is given its place only then: a client that dies between snapshot and place comes
/// back as it came, and gets its snapshot again.
///
/// # Example
///
/// ```
/// use tower_sse::{Broker, BrokerError, Event, SseConnection};
/// # async fn load_orders() -> Vec<String> { Vec::new() }
///
/// async fn orders(broker: Broker, sse: SseConnection) -> Result<(), tower_sse::Error> {
///     let resume = broker.subscribe(&sse, ["orders"]).await?;
///     if !resume.is_exact() {
///         for order in load_orders().await {
///             sse.send(Event::json("order", &order)?).await?; // topic events wait meanwhile
///         }
///     }
///     resume.live();
///     Ok(())
/// }
/// ```
#[must_use = "topic events wait until `live` is called, or this is dropped and the handler has answered"]
pub struct Resume {
    pub(super) core: Arc<Core>,
    pub(super) hold: Hold,
    pub(super) outcome: SharedOutcome,
}

impl Resume {
    /// What became of the client's place.
    pub fn outcome(&self) -> Outcome {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client misses nothing: it needs no snapshot.
    pub fn is_exact(&self) -> bool {
        self.outcome() == Outcome::Exact
    }

    /// Waits until the outcome is another than [`Pending`](Outcome::Pending).
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub async fn decided(&self) -> Outcome {
        self.core
            .wait_for(|| Some(self.outcome()).filter(|it| *it != Outcome::Pending))
            .await
    }

    /// Lets the events of all the connection's topics flow, from the place that was fixed on.
    pub fn live(self) {
        self.hold.live();
    }
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resume")
            .field("outcome", &self.outcome())
            .finish_non_exhaustive()
    }
}
