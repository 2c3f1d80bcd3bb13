//! Appends that wait for their turn.
//!
//! 1. Room is taken before an append is entered, and given back when its outcome is known or it is
//!    withdrawn: so what waits, and what is under way, is bounded. Whoever finds no room waits for
//!    it, within the time that the append may take.
//! 2. An append is either withdrawn by the one who waits for it, and then is never sent, or claimed by
//!    the writer, once there is a connection to send it on. One swap decides.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use redis::RedisError;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use super::error::TimedOut;
use crate::{
    backplane::{AppendError, AppendErrorKind},
    log::Position,
};

/// How many bytes may wait.
pub(super) const MAX_WAITING: usize = 64 << 20;

/// What room is counted in. So no more than 65,536 appends wait.
const UNIT: usize = 1 << 10;

/// How many records, and about how many bytes, go to the server at once.
const MAX_BATCH: usize = 512;
const MAX_BATCH_BYTES: usize = 1 << 20;

pub(super) type AppendResult = Result<Position, AppendError>;

pub(super) struct Queue {
    /// Guards the appends that wait, and the last error, which a timeout reports.
    waiting: Mutex<Waiting>,
    room: Arc<Semaphore>,
    entered: Notify,
}

#[derive(Default)]
struct Waiting {
    appends: VecDeque<QueuedAppend>,
    last_error: Option<RedisError>,
}

/// One append, on its way to the writer.
pub(super) struct QueuedAppend {
    pub(super) envelope: Vec<u8>,
    pub(super) tag: u32,
    ticket: Arc<AppendTicket>,
    outcome: oneshot::Sender<AppendResult>,
    _room: OwnedSemaphorePermit,
}

/// The state of an append: it waits, or is claimed or withdrawn, by one swap.
#[derive(Default)]
struct AppendTicket(AtomicU8);

const WAITS: u8 = 0;
const CLAIMED: u8 = 1;
const WITHDRAWN: u8 = 2;

impl AppendTicket {
    /// Whether this was the first to set a state.
    fn try_set(&self, state: u8) -> bool {
        let swapped = self
            .0
            .compare_exchange(WAITS, state, Ordering::AcqRel, Ordering::Acquire);
        swapped.is_ok()
    }

    fn is(&self, state: u8) -> bool {
        self.0.load(Ordering::Acquire) == state
    }
}

/// Withdraws an append that nobody waits for any more.
struct Withdraw(Arc<AppendTicket>);

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.0.try_set(WITHDRAWN);
    }
}

impl QueuedAppend {
    /// Whether somebody waits for the outcome.
    pub(super) fn is_awaited(&self) -> bool {
        !self.outcome.is_closed()
    }

    /// Before it is sent. False: it was withdrawn, and is not to be sent.
    pub(super) fn claim(&self) -> bool {
        self.ticket.try_set(CLAIMED) || self.ticket.is(CLAIMED)
    }

    /// It was not taken, and may be withdrawn again.
    pub(super) fn unclaim(&self) {
        self.ticket.0.store(WAITS, Ordering::Release);
    }

    pub(super) fn finish(self, outcome: AppendResult) {
        // Nobody may be left to hear it.
        let _ = self.outcome.send(outcome);
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_WAITING / UNIT)),
            entered: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters an append, and waits for its outcome.
    pub(super) async fn append(&self, tag: u32, envelope: Vec<u8>, time: Duration) -> AppendResult {
        let until = Instant::now() + time;
        let room = u32::try_from(envelope.len() / UNIT + 1).unwrap_or(u32::MAX);
        let room = room.min((MAX_WAITING / UNIT) as u32);
        let acquired = timeout_at(until, Arc::clone(&self.room).acquire_many_owned(room)).await;
        let Ok(acquired) = acquired else {
            return Err(self.timed_out(AppendErrorKind::NotSent, time));
        };
        let Ok(room) = acquired else {
            return Err(AppendErrorKind::Closed.into());
        };
        let ticket = Arc::new(AppendTicket::default());
        let (outcome, answer) = oneshot::channel();
        self.lock().appends.push_back(QueuedAppend {
            envelope,
            tag,
            ticket: Arc::clone(&ticket),
            outcome,
            _room: room,
        });
        self.entered.notify_one();
        let withdraw = Withdraw(ticket);
        match timeout_at(until, answer).await {
            Ok(Ok(outcome)) => outcome,
            // The writer was ended together with its runtime.
            Ok(Err(_)) if withdraw.0.try_set(WITHDRAWN) => Err(AppendErrorKind::NotSent.into()),
            Ok(Err(_)) => Err(AppendErrorKind::MaybeSent.into()),
            Err(_) if withdraw.0.try_set(WITHDRAWN) => {
                Err(self.timed_out(AppendErrorKind::NotSent, time))
            }
            Err(_) => Err(self.timed_out(AppendErrorKind::MaybeSent, time)),
        }
    }

    fn timed_out(&self, kind: AppendErrorKind, time: Duration) -> AppendError {
        let cause = self.lock().last_error.clone();
        AppendError::new(kind, TimedOut { time, cause })
    }

    /// Records the last error, or that there is none.
    pub(super) fn set_last_error(&self, last_error: Option<RedisError>) {
        self.lock().last_error = last_error;
    }

    /// Waits for appends, and takes as many as go to the server at once.
    pub(super) async fn take(&self) -> Vec<QueuedAppend> {
        loop {
            let batch = self.take_now();
            if !batch.is_empty() {
                return batch;
            }
            self.entered.notified().await;
        }
    }

    fn take_now(&self) -> Vec<QueuedAppend> {
        let mut waiting = self.lock();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
            let Some(append) = waiting.appends.pop_front() else {
                break;
            };
            if append.ticket.is(WAITS) {
                bytes += append.envelope.len();
                batch.push(append);
            }
        }
        if waiting.appends.is_empty() {
            // A burst does not keep its room for ever.
            waiting.appends.shrink_to(MAX_BATCH);
        }
        batch
    }

    /// Fails all that wait: they were not sent.
    pub(super) fn fail_all(&self, cause: &RedisError) {
        let appends = std::mem::take(&mut self.lock().appends);
        for append in appends {
            if append.claim() {
                let error = AppendError::new(AppendErrorKind::NotSent, cause.clone());
                append.finish(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_test::{assert_pending, assert_ready, task::spawn};

    const TIME: Duration = Duration::from_secs(5);

    /// What an append fails with whose time is over after this was done to it.
    async fn kind_after(done: impl FnOnce(&QueuedAppend)) -> AppendErrorKind {
        let queue = Queue::new();
        let mut append = spawn(queue.append(1, b"record".to_vec(), TIME));
        assert_pending!(append.poll());
        let batch = queue.take().await;
        done(&batch[0]);
        tokio::time::advance(TIME).await;
        let error = assert_ready!(append.poll()).unwrap_err();
        // Nor can it be sent any more, or it may have been.
        assert_eq!(batch[0].claim(), error.kind() == AppendErrorKind::MaybeSent);
        error.kind()
    }

    #[tokio::test(start_paused = true)]
    async fn unclaimed_or_refused_append_is_not_sent() {
        use AppendErrorKind::{MaybeSent, NotSent};
        assert_eq!(kind_after(|_| {}).await, NotSent);
        assert_eq!(kind_after(|it| assert!(it.claim())).await, MaybeSent);
        let refused = |it: &QueuedAppend| {
            assert!(it.claim());
            it.unclaim();
        };
        assert_eq!(kind_after(refused).await, NotSent);
    }
}
