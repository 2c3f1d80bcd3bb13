//! What a subscription found, and the moment from which its events flow.

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use super::{
    core::Core,
    outcome::{Outcome, SharedOutcome},
};
use crate::connection::Hold;

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
