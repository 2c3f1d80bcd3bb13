//! What a topic has of each connection that reads from it: enough to wake it, and no more.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    task::Waker,
};

use tokio::time::Instant;

use super::handshake::Armed;
use crate::{CloseReason, connection::SourceWaker};

pub(super) struct Waiter {
    connection: SourceWaker,
    /// The body sleeps, and is to be woken.
    armed: Armed,
    /// How many topics the connection has.
    topics: AtomicUsize,
    /// The offset of the last id that was sent.
    sent: AtomicU64,
}

impl Waiter {
    pub(super) fn new(connection: SourceWaker) -> Self {
        Self {
            connection,
            armed: Armed::new(),
            topics: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
        }
    }

    pub(super) fn arm(&self) {
        self.armed.arm();
    }

    /// The waker of the body, if it sleeps.
    pub(super) fn take_waker(&self, now: Instant) -> Option<Waker> {
        // Most bodies that are awake are skipped without their lock.
        if self.armed.take() {
            self.connection.take(now)
        } else {
            None
        }
    }

    /// Whether the last id that was sent is older than this offset.
    pub(super) fn is_behind(&self, offset: u64) -> bool {
        // No lock: this runs under the lock of a topic's waiters.
        self.has_topics() && self.sent.load(Ordering::Acquire) < offset
    }

    pub(super) fn set_sent(&self, offset: u64) {
        self.sent.store(offset, Ordering::Release);
    }

    pub(super) fn has_topics(&self) -> bool {
        self.topics.load(Ordering::Acquire) > 0
    }

    pub(super) fn set_topics(&self, count: usize) {
        self.topics.store(count, Ordering::Release);
    }

    pub(super) fn close(&self, reason: CloseReason) {
        self.connection.close(reason);
    }

    pub(super) fn close_reason(&self) -> CloseReason {
        self.connection.close_reason()
    }

    pub(super) fn trace_gap(&self, reason: &'static str, missed: Option<u64>) {
        self.connection.trace_gap(reason, missed);
    }
}
