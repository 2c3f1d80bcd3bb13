//! Those who have subscribed before the window was read, and are still to be told what became of
//! their places.
//!
//! A client may come from a node that has read further than the window reached when it was opened
//! here. So before its place counts as unknown, the log is asked for its head once more, and read up
//! to there: for that time the client stays pending.

use std::{future::Future, mem, pin::Pin, sync::Arc};

use tokio::time::Instant;

use super::{reading::Core, store::Store, subscriber::Subscriber};
use crate::log::Position;

/// Resolves when the node has caught up with the log, or cannot.
pub(super) type CatchingUp = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Core {
    /// Tells all whose places can be told, if the window is read. The others are told by the next
    /// call, which has to wait for the future.
    pub(super) fn decide_pending(self: &Arc<Self>) -> Option<CatchingUp> {
        let (head, undecided) = self.take_undecided()?;
        let is_ahead = |it: &Arc<Subscriber>| it.is_found_ahead_of(&head);
        let (ahead, others): (Vec<_>, _) = undecided.into_iter().partition(is_ahead);
        self.decide(others);
        if ahead.is_empty() {
            return None;
        }
        self.replica.lock().undecided.extend(ahead);
        // It keeps the broker, but not for long.
        let core = Arc::clone(self);
        Some(Box::pin(async move { core.catch_up().await }))
    }

    /// Tells all, whatever can be known, if the window is read: there is no task that could wait.
    pub(super) fn decide_pending_now(&self) {
        if let Some((_, undecided)) = self.take_undecided() {
            self.decide(undecided);
        }
    }

    fn take_undecided(&self) -> Option<(Position, Vec<Arc<Subscriber>>)> {
        let mut log = self.replica.lock();
        let Store {
            head: Some(head),
            is_window_read: true,
            undecided,
            ..
        } = &mut *log
        else {
            return None;
        };
        (!undecided.is_empty()).then(|| (*head, mem::take(undecided)))
    }

    fn decide(&self, subscribers: Vec<Arc<Subscriber>>) {
        if subscribers.is_empty() {
            return;
        }
        for subscriber in subscribers {
            subscriber.decide();
            if let Some(waker) = subscriber.take_waker(Instant::now()) {
                waker.wake();
            }
        }
        self.has_progressed();
    }
}
