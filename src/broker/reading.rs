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
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{AbortHandle, yield_now},
    time::{Instant, timeout_at},
};

use super::{
    core::Replica, handshake::Dirty, pending::CatchingUp, settings::Settings, topic::Topic,
};
use crate::{
    backplane::{Backplane, ReadError, RecordStream, Start},
    log::{Epoch, Position},
};

pub(super) struct Core {
    pub(super) replica: Arc<Replica>,
    pub(super) backplane: Arc<dyn Backplane>,
    /// Guards the log's stream: held by whoever reads.
    reading: Mutex<Reading>,
    signal: Arc<Signal>,
    /// Notified when the replica has changed.
    progress: Notify,
    /// Guards the handle of the broker's task.
    task: Mutex<Option<AbortHandle>>,
    has_task: Arc<AtomicBool>,
}

struct Reading {
    state: State,
    /// The log's life when it was opened.
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

enum State {
    Idle,
    Opening(Opening),
    Open(RecordStream),
    /// The log could not be read. The task tries again at this time.
    Resting(Instant),
}

/// What the log's stream wakes.
struct Signal {
    dirty: Dirty,
    /// Publishers that will read by themselves.
    publishing: AtomicUsize,
    task: Notify,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.dirty.mark();
        if self.publishing.load(Ordering::SeqCst) == 0 {
            self.task.notify_one();
        }
    }
}

/// A publisher between its append and its reading.
pub(super) struct Publishing<'a>(&'a Signal);

impl Drop for Publishing<'_> {
    fn drop(&mut self) {
        self.0.publishing.fetch_sub(1, Ordering::SeqCst);
        // Where its reading was cut short, the task has to do it.
        if self.0.dirty.is_marked() {
            self.0.task.notify_one();
        }
    }
}

impl Core {
    pub(super) fn new(backplane: Arc<dyn Backplane>, settings: Settings) -> Self {
        let may_be_rewritten = backplane.may_be_rewritten();
        Self {
            replica: Arc::new(Replica::new(settings, may_be_rewritten)),
            backplane,
            reading: Mutex::new(Reading {
                state: State::Idle,
                epoch: None,
                last: None,
                is_rewritten: false,
                failures: 0,
                rewrites: 0,
            }),
            signal: Arc::new(Signal {
                dirty: Dirty::new(),
                publishing: AtomicUsize::new(0),
                task: Notify::new(),
            }),
            progress: Notify::new(),
            task: Mutex::new(None),
            has_task: Arc::default(),
        }
    }

    /// Marks a publisher that will call [`read`](Self::read).
    pub(super) fn publishing(&self) -> Publishing<'_> {
        self.signal.publishing.fetch_add(1, Ordering::SeqCst);
        Publishing(&self.signal)
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
            has_read |= reading.poll(self, &mut cx);
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
    pub(super) async fn wait_for<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut changed = pin!(self.progress.notified());
            // Registered first, so that a change between the two is not missed.
            changed.as_mut().enable();
            if let Some(found) = look() {
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
        // Where it cannot, the place is one that this node does not know.
        let _ = timeout_at(until, caught_up).await;
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
        let mut pass = Pass::new(&self.replica);
        while pass.step() {}
        self.decide_pending_now();
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

    /// When the task has to look again by itself.
    fn next_look(&self) -> Option<Instant> {
        let expiry = self.replica.expire().map(|time| Instant::now() + time);
        let reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let retry = match reading.state {
            State::Resting(until) => Some(until),
            _ => None,
        };
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

impl Reading {
    /// Reads until the log has nothing more now. Tells whether anything was read.
    fn poll(&mut self, core: &Core, cx: &mut Context<'_>) -> bool {
        let mut has_read = false;
        loop {
            match &mut self.state {
                State::Idle => self.state = State::Opening(self.open(core)),
                State::Opening(opening) => match opening.as_mut().poll(cx) {
                    Poll::Pending => return has_read,
                    Poll::Ready(Ok((head, stream))) => {
                        core.replica
                            .opened(head, std::mem::take(&mut self.is_rewritten));
                        self.epoch = Some(head.epoch());
                        self.state = State::Open(stream);
                        has_read = true;
                    }
                    Poll::Ready(Err(error)) => self.failed(&error),
                },
                State::Open(stream) => match stream.as_mut().poll_next(cx) {
                    Poll::Pending => return has_read,
                    // It was replaced between being read and being asked for its head.
                    Poll::Ready(Some(Ok(read))) if Some(read.position().epoch()) != self.epoch => {
                        self.failed(&ReadError::rewritten());
                    }
                    Poll::Ready(Some(Ok(read))) => {
                        self.failures = 0;
                        self.rewrites = 0;
                        self.last = Some(read.position());
                        core.replica.apply(read);
                        has_read = true;
                    }
                    Poll::Ready(Some(Err(error))) => self.failed(&error),
                    Poll::Ready(None) => self.failed(&ReadError::unavailable("log has ended")),
                },
                State::Resting(until) if *until <= Instant::now() => self.state = State::Idle,
                State::Resting(_) => return has_read,
            }
        }
    }

    fn open(&self, core: &Core) -> Opening {
        let backplane = Arc::clone(&core.backplane);
        let start = self.last.map_or(Start::Window, Start::After);
        Box::pin(async move {
            let stream = backplane.read(start).await?;
            // Later, so that it is the head of what is read: in between, another server may have taken
            // the log over, with less in it, and the head of the old one would be waited for in vain.
            let head = backplane.head().await?;
            Ok((head, stream))
        })
    }

    /// Rests before the next try, longer each time; or begins anew with a log that is another one.
    fn failed(&mut self, error: &ReadError) {
        self.failures += 1;
        if error.is_rewritten() {
            self.last = None;
            self.is_rewritten = true;
            self.rewrites += 1;
        }
        // Clients of a log that comes back are not to wait for it much longer than it took.
        let longest = Duration::from_millis(100 << self.failures.min(4));
        let rest = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        // The log is there, also where it was away before: only one that changes again and again is
        // not gone after at once.
        let is_new_log = error.is_rewritten() && self.rewrites == 1;
        self.state = if is_new_log {
            State::Idle
        } else {
            State::Resting(Instant::now() + rest)
        };
    }
}

/// How often one who reads looks again, before the broker's task has to go on. A stream that wants
/// others to have their turn wakes at once and gives nothing, however often it is polled by somebody
/// who is no task, as in `block_on`.
const ROUNDS: usize = 8;

/// How many topics a step of waking looks at.
const TOPICS_AT_A_TIME: usize = 64;

/// One round of waking, in steps.
struct Pass {
    topics: Vec<(Arc<Topic>, bool)>,
    from: usize,
    wakers: Vec<Waker>,
}

impl Pass {
    fn new(replica: &Replica) -> Self {
        Self {
            topics: replica.take_dirty(),
            from: 0,
            wakers: Vec::new(),
        }
    }

    /// Wakes some. Tells whether there are more.
    fn step(&mut self) -> bool {
        // Topics with few subscribers share a step.
        for _ in 0..TOPICS_AT_A_TIME {
            let Some((topic, all)) = self.topics.last() else {
                break;
            };
            let next = topic.take_wakers(self.from, *all, &mut self.wakers);
            self.from = next.unwrap_or(0);
            if next.is_some() {
                break;
            }
            self.topics.pop();
        }
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
        !self.topics.is_empty()
    }
}

/// What a task that is ended between two steps still owes.
impl Drop for Pass {
    fn drop(&mut self) {
        while self.step() {}
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
        let mut pass = Pass::new(&core.replica);
        while pass.step() {
            yield_now().await;
        }
        if catching_up.is_none() {
            catching_up = core.decide_pending();
        }
        let next_look = core.next_look();
        drop(core);
        let mut signalled = pin!(async {
            match next_look {
                // Either way it is time to look again.
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
