//! The result of subscribing: the outcome for the client's position, and the start of delivery.

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use super::{
    core::Core,
    outcome::{Outcome, SharedOutcome},
};
use crate::connection::Hold;

/// A subscription whose events are held back.
///
/// [`Broker::subscribe`](super::Broker::subscribe) has fixed the position. Events of the topics
/// wait until [`start`](Self::start) is called, or until this value is dropped and the handler has
/// answered. Everything that is sent directly before that precedes every topic event. A snapshot
/// that is loaded and sent meanwhile is therefore never older than the events that follow it.
///
/// The client receives its position only at the start. If it disconnects between snapshot and
/// start, it reconnects with its old position and receives the snapshot again.
///
/// # Example
///
/// ```
/// use tower_sse::{Broker, BrokerError, Event, SseConnection};
/// # async fn load_orders() -> Vec<String> { Vec::new() }
///
/// async fn orders(broker: Broker, sse: SseConnection) -> Result<(), tower_sse::Error> {
///     let subscription = broker.subscribe(&sse, ["orders"]).await?;
///     if !subscription.is_exact() {
///         for order in load_orders().await {
///             sse.send(Event::json("order", &order)?).await?; // topic events wait meanwhile
///         }
///     }
///     subscription.start();
///     Ok(())
/// }
/// ```
#[must_use = "topic events wait until `start` is called, or this is dropped and the handler has answered"]
pub struct Subscription {
    pub(super) core: Arc<Core>,
    pub(super) hold: Hold,
    pub(super) outcome: SharedOutcome,
}

impl Subscription {
    /// Returns the outcome for the client's position, which may still be
    /// [`Pending`](Outcome::Pending).
    pub fn outcome(&self) -> Outcome {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the client misses nothing, so that it needs no snapshot.
    pub fn is_exact(&self) -> bool {
        self.outcome() == Outcome::Exact
    }

    /// Waits until the outcome is no longer [`Pending`](Outcome::Pending), and returns it.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub async fn resolved(&self) -> Outcome {
        self.core
            .wait_for(|| Some(self.outcome()).filter(|it| *it != Outcome::Pending))
            .await
    }

    /// Starts the delivery of all topics of the connection, from the position that was fixed.
    pub fn start(self) {
        self.hold.live();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("outcome", &self.outcome())
            .finish_non_exhaustive()
    }
}
