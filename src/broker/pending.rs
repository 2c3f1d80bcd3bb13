//! Subscribers whose outcome is pending, because the window has not been read.
//!
//! A client may come from a node that has read further than the window reached when it was opened
//! here. So before its position counts as unknown, the log is asked for its head once more, and read
//! up to there: for that time the client stays pending.

use std::{collections::BTreeMap, sync::Arc};

use crate::log::Position;

/// A subscriber with subscriptions that wait for an outcome.
pub(super) trait Pending: Send + Sync {
    /// Whether one of its positions is ahead of this one, in the same log. True once only for each:
    /// after that the outcome has to be resolved.
    fn is_found_ahead_of(&self, head: &Position) -> bool;

    /// Resolves the outcomes.
    fn resolve(&self);

    /// Whether a subscription still waits.
    fn is_waiting(&self) -> bool;

    /// Wakes the body if it sleeps.
    fn wake(&self);
}

/// Pending subscribers by their keys, in the order in which they came.
pub(super) type Subscribers = BTreeMap<u64, Arc<dyn Pending>>;

/// The pending subscribers of a broker, in the order in which they came. One that leaves takes its
/// entry along.
#[derive(Default)]
pub(super) struct PendingList {
    next_key: u64,
    waiting: Subscribers,
}

impl PendingList {
    pub(super) fn insert(&mut self, subscriber: Arc<dyn Pending>) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.waiting.insert(key, subscriber);
        key
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<Arc<dyn Pending>> {
        self.waiting.remove(&key)
    }

    pub(super) fn take(&mut self) -> Subscribers {
        std::mem::take(&mut self.waiting)
    }

    /// Puts subscribers back that were taken and still wait.
    pub(super) fn put_back(&mut self, subscribers: impl Iterator<Item = (u64, Arc<dyn Pending>)>) {
        self.waiting.extend(subscribers);
    }
}
