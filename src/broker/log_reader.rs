//! The reader of the log: opens it, reads it into the replica, and tries again where that fails.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::replica::Replica;
use crate::{
    backplane::{Backplane, ReadError, RecordStream, Start},
    log::{Epoch, Position},
};

pub(super) struct LogReader {
    state: LogReaderState,
    /// The epoch of the log when it was opened.
    epoch: Option<Epoch>,
    /// What was read last.
    last: Option<Position>,
    /// The log has been rewritten since.
    is_rewritten: bool,
    failures: u32,
    /// How often it was found to be another log since something was read.
    rewrites: u32,
}

type Opening = Pin<Box<dyn Future<Output = Result<(Position, RecordStream), ReadError>> + Send>>;

enum LogReaderState {
    Idle,
    Opening(Opening),
    Open(RecordStream),
    /// The log could not be read. The task tries again at this time.
    Backoff(Instant),
}

impl LogReader {
    pub(super) fn new() -> Self {
        Self {
            state: LogReaderState::Idle,
            epoch: None,
            last: None,
            is_rewritten: false,
            failures: 0,
            rewrites: 0,
        }
    }

    /// When it tries again, if the log could not be read.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        match self.state {
            LogReaderState::Backoff(until) => Some(until),
            _ => None,
        }
    }

    /// Reads until the log has nothing more now. Returns whether anything was read.
    pub(super) fn poll(
        &mut self,
        replica: &Replica,
        backplane: &Arc<dyn Backplane>,
        cx: &mut Context<'_>,
    ) -> bool {
        let mut has_read = false;
        loop {
            match &mut self.state {
                LogReaderState::Idle => self.state = LogReaderState::Opening(self.open(backplane)),
                LogReaderState::Opening(opening) => match opening.as_mut().poll(cx) {
                    Poll::Pending => return has_read,
                    Poll::Ready(Ok((head, stream))) => {
                        replica.opened(head, std::mem::take(&mut self.is_rewritten));
                        self.epoch = Some(head.epoch());
                        self.state = LogReaderState::Open(stream);
                        has_read = true;
                    }
                    Poll::Ready(Err(error)) => self.failed(&error),
                },
                LogReaderState::Open(stream) => match stream.as_mut().poll_next(cx) {
                    Poll::Pending => return has_read,
                    // It was replaced between being read and being asked for its head.
                    Poll::Ready(Some(Ok(read))) if Some(read.position().epoch()) != self.epoch => {
                        self.failed(&ReadError::rewritten());
                    }
                    Poll::Ready(Some(Ok(read))) => {
                        self.failures = 0;
                        self.rewrites = 0;
                        self.last = Some(read.position());
                        replica.apply(read);
                        has_read = true;
                    }
                    Poll::Ready(Some(Err(error))) => self.failed(&error),
                    Poll::Ready(None) => self.failed(&ReadError::unavailable("log has ended")),
                },
                LogReaderState::Backoff(until) if *until <= Instant::now() => {
                    self.state = LogReaderState::Idle
                }
                LogReaderState::Backoff(_) => return has_read,
            }
        }
    }

    fn open(&self, backplane: &Arc<dyn Backplane>) -> Opening {
        let backplane = Arc::clone(backplane);
        let start = self.last.map_or(Start::Window, Start::After);
        Box::pin(async move {
            let stream = backplane.read(start).await?;
            // Later, so that it is the head of what is read: in between, another server may have taken
            // the log over, with less in it, and the head of the old one would be waited for in vain.
            let head = backplane.head().await?;
            Ok((head, stream))
        })
    }

    /// Backs off before the next attempt, longer each time; or starts again with a log that proved
    /// to be another one.
    fn failed(&mut self, error: &ReadError) {
        self.failures += 1;
        if error.is_rewritten() {
            self.last = None;
            self.is_rewritten = true;
            self.rewrites += 1;
        }
        // Once the log is back, its clients should not wait much longer than it was unavailable.
        let longest = Duration::from_millis(100 << self.failures.min(4));
        let backoff = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        // The log is there, also where it was away before: only one that changes again and again is
        // not gone after at once.
        let is_new_log = error.is_rewritten() && self.rewrites == 1;
        self.state = if is_new_log {
            LogReaderState::Idle
        } else {
            LogReaderState::Backoff(Instant::now() + backoff)
        };
    }
}
