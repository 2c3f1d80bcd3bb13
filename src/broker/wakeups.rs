//! Waking: the signal that the log's stream gives, and the passes over subscribers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use tokio::sync::Notify;

use super::{handshake::Dirty, replica::Replica, topic::Topic};

/// What the log's stream wakes.
pub(super) struct Signal {
    pub(super) dirty: Dirty,
    /// Publishers that will read by themselves.
    publishing: AtomicUsize,
    pub(super) task: Notify,
}

impl Signal {
    pub(super) fn new() -> Self {
        Self {
            dirty: Dirty::new(),
            publishing: AtomicUsize::new(0),
            task: Notify::new(),
        }
    }

    /// Marks a publisher that will read by itself.
    pub(super) fn publishing(&self) -> Publishing<'_> {
        self.publishing.fetch_add(1, Ordering::SeqCst);
        Publishing(self)
    }
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

/// How many topics a step of waking looks at.
const TOPICS_AT_A_TIME: usize = 64;

/// One round of waking, in steps.
pub(super) struct WakeupPass {
    topics: Vec<(Arc<Topic>, bool)>,
    /// The offset before which an id is far behind.
    far_behind: u64,
    from: usize,
    wakers: Vec<Waker>,
}

impl WakeupPass {
    pub(super) fn new(replica: &Replica) -> Self {
        Self {
            topics: replica.take_dirty(),
            far_behind: replica.far_behind(),
            from: 0,
            wakers: Vec::new(),
        }
    }

    /// Wakes some. Tells whether there are more.
    pub(super) fn step(&mut self) -> bool {
        // Topics with few subscribers share a step.
        for _ in 0..TOPICS_AT_A_TIME {
            let Some((topic, all)) = self.topics.last() else {
                break;
            };
            let behind = (!*all).then_some(self.far_behind);
            let next = topic.take_wakers(self.from, behind, &mut self.wakers);
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
impl Drop for WakeupPass {
    fn drop(&mut self) {
        while self.step() {}
    }
}
