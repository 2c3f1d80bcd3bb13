//! What becomes of a server whose listener fails.

use std::{io, time::Duration};

use tokio::{task::yield_now, time::sleep};

/// The first pause, and the longest: each is twice as long as the one before.
const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);

/// The pauses between attempts to accept a connection.
#[derive(Debug, Default)]
pub(super) struct Backoff(Duration);

impl Backoff {
    /// A connection was accepted.
    pub(super) fn accepted(&mut self) {
        self.0 = Duration::ZERO;
    }

    /// Waits for as long as is sensible after this error.
    pub(super) async fn failed(&mut self, error: &io::Error) {
        if concerns_one(error) {
            // At once, but not so that nobody else gets a turn.
            yield_now().await;
            return;
        }
        // Too many open files, most likely: what ends meanwhile gives some back.
        self.0 = (2 * self.0).clamp(FIRST, LONGEST);
        sleep(self.0).await;
    }
}

/// Whether it was one connection that failed, before it was accepted.
fn concerns_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}
