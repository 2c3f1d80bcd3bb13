//! What has become of a registry's connections, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::CloseReason;

/// The figures of a registry, as they were at one moment.
///
/// "Taken" is what the server has taken from the body: a kernel holds up to some megabytes that a
/// client has not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Connections that are open now, those included whose handler has not answered yet.
    pub open: u64,
    /// Connections that were ever opened: `open` and all that are closed.
    pub opened: u64,
    /// Requests that were refused, for whatever [`RefusalReason`](super::RefusalReason).
    pub refused: u64,
    /// Events that servers have taken. Comments and heartbeats are none.
    pub events: u64,
    /// Bytes that servers have taken.
    pub bytes: u64,
    /// Events that wait in outboxes.
    pub queued_events: u64,
    /// Bytes that wait in outboxes.
    pub queued_bytes: u64,
    closed: [u64; CloseReason::ALL.len()],
}

impl ConnectionStats {
    /// How many connections have closed for this reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize]
    }

    /// How many connections have closed, for each reason there is.
    pub fn closed_by_reason(&self) -> impl Iterator<Item = (CloseReason, u64)> + use<> {
        CloseReason::ALL.into_iter().zip(self.closed)
    }

    /// Adds what a connection that is open has had and has.
    pub(super) fn add(&mut self, taken: Taken, queued: (usize, usize)) {
        self.events += taken.events;
        self.bytes += taken.bytes;
        self.queued_events += queued.0 as u64;
        self.queued_bytes += queued.1 as u64;
    }
}

/// What a server has taken of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// A registry's counters. Those of a connection are added when it ends, so that connections do not
/// contend for them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    opened: AtomicU64,
    refused: AtomicU64,
    closed: [AtomicU64; CloseReason::ALL.len()],
    events: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, reason: CloseReason, taken: Taken) {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(taken.events, Ordering::Relaxed);
        self.bytes.fetch_add(taken.bytes, Ordering::Relaxed);
    }

    /// The figures without those of the connections that are open.
    pub(super) fn snapshot(&self) -> ConnectionStats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let closed = self.closed.each_ref().map(get);
        let opened = get(&self.opened);
        ConnectionStats {
            open: opened.saturating_sub(closed.iter().sum()),
            opened,
            refused: get(&self.refused),
            events: get(&self.events),
            bytes: get(&self.bytes),
            queued_events: 0,
            queued_bytes: 0,
            closed,
        }
    }
}
