//! What was read from a log and passed over. Anybody may write it, and as much of it as they like: so
//! it is told to `tracing` once a second at most.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::trace;

/// How often it is told.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Skipped {
    /// What is told of them.
    what: &'static str,
    count: AtomicU64,
    /// Guards when it was told last.
    told: Mutex<Option<Instant>>,
}

impl Skipped {
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            count: AtomicU64::new(0),
            told: Mutex::new(None),
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
            trace::passed_over(self.what, count);
        }
    }

    fn is_time(&self) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = told.is_none_or(|told| now.saturating_duration_since(told) >= EVERY);
        if is_time {
            *told = Some(now);
        }
        is_time
    }
}
