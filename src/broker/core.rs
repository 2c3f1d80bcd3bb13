//! What reads the log into the replica, and wakes those who wait for it.
//!
//! 1. Whoever holds the reading polls the log's stream; there is one at a time. A publisher does it
//!    itself after its append, so that its event is visible at once and no task has to be woken for
//!    it; otherwise the broker's task does.
//! 2. The stream's waker sets `dirty`. Whoever lets the reading go looks at it once more, so
//!    that nothing stays unread because the reading was held.
//! 3. Subscribers are woken by the broker's task alone, which lets publishers that are ready go
//!    first: what they append meanwhile goes out with the same write.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{AbortHandle, yield_now},
    time::{Instant, timeout_at},
};

use super::{
    log_reader::LogReader,
    pending::{PendingList, Subscribers},
    replica::Replica,
    settings::BrokerSettings,
    wakeups::{Publishing, Signal, WakeupPass},
};
use crate::{backplane::Backplane, log::Position};

/// How often one who reads looks again, before the broker's task has to go on. A stream that wants
/// others to have their turn wakes at once and gives nothing, however often it is polled by somebody
/// who is no task, as in `block_on`.
const ROUNDS: usize = 8;

/// Resolves when the node has caught up with the log, or cannot.
type CatchingUp = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct Core {
    pub(super) replica: Arc<Replica>,
    pub(super) backplane: Arc<dyn Backplane>,
    /// Guards the log's stream: held by whoever reads.
    reading: Mutex<LogReader>,
    signal: Arc<Signal>,
    /// Guards the list of subscribers whose outcome is pending. Taken under the log's lock, so that
    /// one that is added while the window is unread is found once it has been read.
    pending: Mutex<PendingList>,
    /// Notified when the replica has changed.
    progress: Notify,
    /// Guards the handle of the broker's task.
    task: Mutex<Option<AbortHandle>>,
    has_task: Arc<AtomicBool>,
}

impl Core {
    pub(super) fn new(backplane: Arc<dyn Backplane>, settings: BrokerSettings) -> Self {
        let may_be_rewritten = backplane.may_be_rewritten();
        Self {
            replica: Arc::new(Replica::new(settings, may_be_rewritten)),
            backplane,
            reading: Mutex::new(LogReader::new()),
            signal: Arc::new(Signal::new()),
            pending: Mutex::default(),
            progress: Notify::new(),
            task: Mutex::new(None),
            has_task: Arc::default(),
        }
    }

    /// Marks a publisher that will call [`read`](Self::read).
    pub(super) fn publishing(&self) -> Publishing<'_> {
        self.signal.publishing()
    }

    /// Reads what there is, unless somebody else does, and sees to it that subscribers are woken.
    pub(super) fn read(self: &Arc<Self>) {
        self.ensure_task();
        self.read_now();
        if self.replica.is_dirty() {
            self.wake_subscribers();
        }
    }

    fn read_now(&self) {
        let waker = Waker::from(Arc::clone(&self.signal));
        let mut cx = Context::from_waker(&waker);
        let mut has_read = false;
        let mut rounds = 0;
        self.signal.dirty.pump(&self.reading, ROUNDS, |reading| {
            has_read |= reading.poll(&self.replica, &self.backplane, &mut cx);
            rounds += 1;
        });
        if rounds == ROUNDS && self.signal.dirty.is_marked() {
            // The task goes on with it, after others have had their turn.
            self.signal.task.notify_one();
        }
        if has_read {
            self.has_progressed();
        }
    }

    pub(super) fn has_progressed(&self) {
        self.progress.notify_waiters();
    }

    /// Waits for a change of the replica that gives something.
    pub(super) async fn wait_for<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.progress.notified());
            // Registered first, so that a change between the two is not missed.
            changed.as_mut().enable();
            if let Some(found) = check() {
                return found;
            }
            changed.await;
        }
    }

    /// Waits, for a bounded time, until the replica has reached the log's head as it is now.
    pub(super) async fn catch_up(self: &Arc<Self>) {
        let until = Instant::now() + Duration::from_secs(2);
        let caught_up = async {
            let Ok(head) = self.backplane.head().await else {
                return;
            };
            let is_there = || (self.replica.visible() >= head.offset()).then_some(());
            self.wait_for(is_there).await;
        };
        // If it cannot catch up, the position counts as unknown to this node.
        let _ = timeout_at(until, caught_up).await;
    }

    // ===== pending subscribers =====

    pub(super) fn pending(&self) -> MutexGuard<'_, PendingList> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves all outcomes that can be known, if the window is read. The others follow with the
    /// next call, which has to wait for the future.
    fn resolve_pending(self: &Arc<Self>) -> Option<CatchingUp> {
        let (head, pending) = self.take_pending()?;
        let (ahead, others): (Subscribers, Subscribers) = pending
            .into_iter()
            .partition(|(_, subscriber)| subscriber.is_found_ahead_of(&head));
        self.resolve(others);
        if ahead.is_empty() {
            return None;
        }
        let back: Vec<_> = ahead
            .iter()
            .map(|(key, it)| (*key, Arc::clone(it)))
            .collect();
        self.pending().put_back(back.into_iter());
        for (key, subscriber) in ahead {
            // It may have left meanwhile.
            if !subscriber.is_waiting() {
                let _ = self.pending().remove(key);
            }
        }
        // It keeps the broker, but not for long.
        let core = Arc::clone(self);
        Some(Box::pin(async move { core.catch_up().await }))
    }

    /// Resolves all outcomes with what is known, if the window is read: there is no task that could
    /// wait.
    fn resolve_pending_now(&self) {
        if let Some((_, pending)) = self.take_pending() {
            self.resolve(pending);
        }
    }

    fn take_pending(&self) -> Option<(Position, Subscribers)> {
        let log = self.replica.lock();
        let head = log.head.filter(|_| log.is_window_read)?;
        let pending = self.pending().take();
        (!pending.is_empty()).then_some((head, pending))
    }

    fn resolve(&self, subscribers: Subscribers) {
        if subscribers.is_empty() {
            return;
        }
        for subscriber in subscribers.into_values() {
            subscriber.resolve();
            subscriber.wake();
        }
        self.has_progressed();
    }

    // ===== waking =====

    fn wake_subscribers(&self) {
        if self.has_task.load(Ordering::Acquire) {
            self.signal.task.notify_one();
        } else {
            self.wake_here();
        }
    }

    fn wake_here(&self) {
        let mut pass = WakeupPass::new(&self.replica);
        while pass.step() {}
        self.resolve_pending_now();
    }

    /// Sees to it that there is a task, where there is a runtime to spawn it on.
    fn ensure_task(self: &Arc<Self>) {
        if self.has_task.load(Ordering::Acquire) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has_task.swap(true, Ordering::AcqRel) {
            let core = Arc::downgrade(self);
            let guard = TaskGuard {
                has_task: Arc::clone(&self.has_task),
                core: Weak::clone(&core),
            };
            let spawned = runtime.spawn(run(core, Arc::clone(&self.signal), guard));
            *task = Some(spawned.abort_handle());
        }
    }

    /// When the task has to check again without a wake.
    fn next_check(&self) -> Option<Instant> {
        let expiry = self.replica.expire().map(|time| Instant::now() + time);
        let reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let retry = reading.retry_at();
        drop(reading);
        expiry.into_iter().chain(retry).min()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

/// Notes the end of the task, also when its runtime is shut down.
struct TaskGuard {
    has_task: Arc<AtomicBool>,
    core: Weak<Core>,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.has_task.store(false, Ordering::Release);
        // Publishers that were before this have left their subscribers to the task.
        if let Some(core) = self.core.upgrade() {
            core.read_now();
            core.wake_here();
        }
    }
}

/// The broker's task, which does not keep the broker alive.
async fn run(core: Weak<Core>, signal: Arc<Signal>, _guard: TaskGuard) {
    let mut catching_up: Option<CatchingUp> = None;
    loop {
        // To the end of the queue: publishers that are ready go first.
        yield_now().await;
        let Some(core) = core.upgrade() else {
            return;
        };
        core.read_now();
        let mut pass = WakeupPass::new(&core.replica);
        while pass.step() {
            yield_now().await;
        }
        if catching_up.is_none() {
            catching_up = core.resolve_pending();
        }
        let next_check = core.next_check();
        drop(core);
        let mut signalled = pin!(async {
            match next_check {
                // Either way it is time to check again.
                Some(time) => drop(timeout_at(time, signal.task.notified()).await),
                None => signal.task.notified().await,
            }
        });
        poll_fn(|cx| {
            if let Some(it) = &mut catching_up {
                if it.as_mut().poll(cx).is_ready() {
                    catching_up = None;
                    return Poll::Ready(());
                }
            }
            signalled.as_mut().poll(cx)
        })
        .await;
    }
}
