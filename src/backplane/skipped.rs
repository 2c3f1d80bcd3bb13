//! The count of what was read from a log and skipped. Any program may write such entries, in any
//! number, so they are reported to `tracing` at most once a second.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::trace;

/// The shortest time between two reports.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Skipped {
    /// The text of the report.
    what: &'static str,
    count: AtomicU64,
    /// Guards the time of the last report.
    reported: Mutex<Option<Instant>>,
}

impl Skipped {
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            count: AtomicU64::new(0),
            reported: Mutex::new(None),
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        if more == 0 {
            return;
        }
        let count = self.count.fetch_add(more, Ordering::Relaxed) + more;
        if self.is_time() {
            trace::skipped(self.what, count);
        }
    }

    fn is_time(&self) -> bool {
        let now = Instant::now();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time =
            reported.is_none_or(|reported| now.saturating_duration_since(reported) >= EVERY);
        if is_time {
            *reported = Some(now);
        }
        is_time
    }
}
