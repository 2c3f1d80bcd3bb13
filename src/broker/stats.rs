//! The figures of a broker.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::backplane::Skipped;

/// The figures of a broker at one moment, for this node alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerStats {
    /// Topics held in memory: those with subscribers or a history.
    pub topics: u64,
    /// Subscriptions of connections to topics.
    pub subscriptions: u64,
    /// Events in the history of all topics.
    pub history_events: u64,
    /// Bytes of the history, as counted against [`max_bytes`](super::BrokerBuilder::max_bytes).
    pub history_bytes: u64,
    /// Events published on this node.
    pub published: u64,
    /// Events read from the log, including those published on this node.
    pub records: u64,
    /// Gaps announced to subscribers.
    pub gaps: u64,
    /// Events that subscribers have missed because they were too slow.
    pub lagged: u64,
    /// Records that were read from the log and cannot be sent to clients: of a later version,
    /// damaged, or written by another program.
    pub unreadable: u64,
}

/// A broker's counters.
#[derive(Debug)]
pub(super) struct BrokerTally {
    published: AtomicU64,
    records: AtomicU64,
    gaps: AtomicU64,
    lagged: AtomicU64,
    unreadable: Skipped,
}

impl BrokerTally {
    pub(super) fn new() -> Self {
        Self {
            published: AtomicU64::new(0),
            records: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            lagged: AtomicU64::new(0),
            unreadable: Skipped::new("records unreadable"),
        }
    }

    pub(super) fn unreadable(&self) {
        self.unreadable.add(1);
    }

    pub(super) fn published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn record(&self) {
        self.records.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn gap(&self) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lagged(&self, events: u64) {
        self.lagged.fetch_add(events, Ordering::Relaxed);
    }

    /// Returns the figures that are counted here.
    pub(super) fn snapshot(&self) -> BrokerStats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        BrokerStats {
            published: get(&self.published),
            records: get(&self.records),
            gaps: get(&self.gaps),
            lagged: get(&self.lagged),
            unreadable: self.unreadable.count(),
            ..BrokerStats::default()
        }
    }
}
