//! The figures of a registry's connections.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::CloseReason;

/// The figures of a registry at one moment.
///
/// "Sent" is what the server has taken from the body: a kernel holds up to some megabytes that a
/// client has not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Open streams: those that [`Connections::len`](super::Connections::len) counts.
    pub open: u64,
    /// Connections whose stream has not started: their handler has neither answered nor sent.
    pub pending: u64,
    /// Connections ever opened: `open`, `pending` and all closed ones.
    pub opened: u64,
    /// Requests that were refused, for whatever [`RefusalReason`](super::RefusalReason).
    pub refused: u64,
    /// Events sent. Comments and heartbeats are not events.
    pub events_sent: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Events waiting in outboxes.
    pub queued_events: u64,
    /// Bytes waiting in outboxes.
    pub queued_bytes: u64,
    closed: [u64; CloseReason::ALL.len()],
}

impl ConnectionStats {
    /// Returns the number of connections closed for this reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize]
    }

    /// Returns the number of closed connections for each reason.
    pub fn closed_by_reason(&self) -> impl Iterator<Item = (CloseReason, u64)> + use<> {
        CloseReason::ALL.into_iter().zip(self.closed)
    }

    /// Adds what a connection that is open has had and has.
    pub(super) fn add(&mut self, sent: SentCounts, queued: (usize, usize)) {
        self.events_sent += sent.events;
        self.bytes_sent += sent.bytes;
        self.queued_events += queued.0 as u64;
        self.queued_bytes += queued.1 as u64;
    }
}

/// What has been sent to one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentCounts {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// A registry's counters. Those of a connection are added when it ends, so that connections do not
/// contend for them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    streams: AtomicUsize,
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

    pub(super) fn started(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, reason: CloseReason, sent: SentCounts, was_open: bool) {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(sent.events, Ordering::Relaxed);
        self.bytes.fetch_add(sent.bytes, Ordering::Relaxed);
        if was_open {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of streams that have started and not ended.
    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// The figures without those of the connections that are open.
    pub(super) fn snapshot(&self) -> ConnectionStats {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let closed = self.closed.each_ref().map(get);
        let opened = get(&self.opened);
        let open = self.streams() as u64;
        ConnectionStats {
            open,
            pending: opened.saturating_sub(closed.iter().sum::<u64>() + open),
            opened,
            refused: get(&self.refused),
            events_sent: get(&self.events),
            bytes_sent: get(&self.bytes),
            queued_events: 0,
            queued_bytes: 0,
            closed,
        }
    }
}
