//! The subscriptions of one connection: a cursor into each ring, merged by position.
//!
//! 1. Each cursor holds the number of the next entry of its ring; entries go out in the order of
//!    their offsets, over all topics.
//! 2. Nothing goes out before the subscriber is live.
//! 3. A cursor whose next entry was dropped knows how many it has lost: they are announced before
//!    anything that comes after them.
//! 4. An id goes out with each event. When the last one falls far behind the log, a `position`
//!    event brings the client up to date, so that a quiet topic does not come to look like a gap.

use std::{
    any::Any,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    core::Core,
    cursors::{Cursor, Cursors, Gap},
    outcome::GapReason,
    replica::Replica,
    settings::SlowConsumer,
    waiter::Waiter,
};
use crate::{
    CloseReason, Event,
    connection::{Batch, Source, SourceWaker},
    log::Position,
};

pub(super) struct Subscriber {
    pub(super) replica: Arc<Replica>,
    /// Reads the log; kept alive as long as there is a subscriber.
    pub(super) core: Arc<Core>,
    /// What the topics have of it.
    pub(super) waiter: Arc<Waiter>,
    /// Guards the cursors and what is still to be announced.
    state: Mutex<Cursors>,
}

impl Subscriber {
    pub(super) fn new(core: &Arc<Core>, connection: SourceWaker) -> Self {
        let replica = Arc::clone(&core.replica);
        Self {
            replica,
            core: Arc::clone(core),
            waiter: Arc::new(Waiter::new(connection)),
            state: Mutex::new(Cursors::new(&core.replica)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Cursors> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_far(&self, sent: u64, visible: u64) -> bool {
        visible.saturating_sub(sent) > (self.replica.settings.window / 2) as u64
    }

    pub(super) fn close_reason(&self) -> CloseReason {
        self.waiter.close_reason()
    }

    pub(super) fn count(&self, cursors: &Cursors) {
        self.waiter.set_topics(cursors.topics.len());
    }

    /// Writes what is to be announced, then the events. Returns whether the subscriber may
    /// continue.
    fn pull_into(&self, cursors: &mut Cursors, batch: &mut Batch) -> bool {
        if !cursors.is_live || !cursors.pending.is_empty() {
            return true;
        }
        let disconnects = self.replica.settings.slow_consumer == SlowConsumer::Disconnect;
        cursors.note_losses(&self.replica);
        let visible = self.replica.visible();
        loop {
            let next = cursors.next_entry(&self.replica, visible);
            if cursors.gap.is_some() {
                let has_lagged = cursors
                    .gap
                    .is_some_and(|gap| gap.reason == GapReason::Lagged);
                if disconnects && has_lagged {
                    cursors.is_live = false;
                    return false;
                }
                let frame = cursors.gap_frame(&self.replica);
                if !batch.admits(frame.len()) {
                    return true;
                }
                batch.push(frame);
                self.gap_sent(cursors.gap.take());
            }
            if let Some(position) = cursors.position.filter(|_| cursors.position_is_known) {
                cursors.mark_sent(position.offset());
            }
            if let Some(position) = cursors.position {
                let frame = self.position_frame(position);
                if !batch.admits(frame.len()) {
                    return true;
                }
                batch.push(frame);
                cursors.mark_sent(position.offset());
            }
            let Some((at, offset, frame)) = next else {
                break;
            };
            if frame.is_empty() {
                cursors.topics[at].next += 1;
                cursors.note_gap(GapReason::Unreadable, Some(1));
                continue;
            }
            if !batch.admits(frame.len()) {
                return true;
            }
            let cursor = &mut cursors.topics[at];
            cursor.next += 1;
            if offset <= cursor.without_ids {
                batch.push(without_id(&frame));
            } else {
                batch.push(frame);
                cursors.last_sent = offset;
            }
        }
        self.bring_up_to_date(cursors, visible, batch);
        true
    }

    /// Counts a gap that has been written.
    fn gap_sent(&self, gap: Option<Gap>) {
        let Some(gap) = gap else {
            return;
        };
        self.replica.tally.gap();
        if gap.reason == GapReason::Lagged {
            self.replica.tally.lagged(gap.missed.unwrap_or(0));
        }
        self.waiter.trace_gap(gap.reason.as_str(), gap.missed);
    }

    /// Writes a `position` event when the client's position has fallen far behind. All entries up
    /// to `visible` have gone out.
    fn bring_up_to_date(&self, cursors: &mut Cursors, visible: u64, batch: &mut Batch) {
        if cursors.topics.is_empty() || !self.is_far(cursors.last_sent, visible) {
            return;
        }
        let log = self.replica.lock();
        let Some(head) = log.head.filter(|head| head.offset() == visible) else {
            // More has been appended meanwhile: the next pull takes care of it.
            return;
        };
        drop(log);
        let frame = self.position_frame(head);
        if batch.admits(frame.len()) {
            batch.push(frame);
            cursors.last_sent = visible;
        }
    }

    fn position_frame(&self, position: Position) -> Bytes {
        let settings = &self.replica.settings;
        let event = Event::with_type(settings.position_event.as_str(), "{}");
        position.frame(&event.into_lines())
    }
}

impl Source for Subscriber {
    fn pull(&self, batch: &mut Batch) {
        let mut cursors = self.lock();
        let goes_on = self.pull_into(&mut cursors, batch);
        self.waiter.set_sent(cursors.last_sent);
        drop(cursors);
        if !goes_on {
            self.waiter.close(CloseReason::SlowConsumer);
        }
    }

    fn arm(&self) {
        self.waiter.arm();
    }

    fn welcome_id(&self) -> Option<String> {
        let mut cursors = self.lock();
        // A gap comes first: a client that disconnects right after the welcome must see it again.
        let may_have_gap = cursors.gap.is_some() || cursors.losses != self.replica.losses();
        if !cursors.position_in_welcome || may_have_gap {
            return None;
        }
        let position = cursors.position?;
        cursors.mark_sent(position.offset());
        self.waiter.set_sent(cursors.last_sent);
        Some(position.to_string())
    }

    fn go_live(&self, nothing_was_sent: bool) {
        let mut cursors = self.lock();
        cursors.is_live = true;
        cursors.live_since = self.replica.now();
        cursors.position_in_welcome |= nothing_was_sent;
    }

    fn is_subscribed(&self) -> bool {
        self.waiter.has_topics()
    }

    fn visit(&self) -> Option<Instant> {
        let mut cursors = self.lock();
        if !cursors.is_live {
            return None;
        }
        // A body that is not polled does not see that it has fallen off its ring.
        if self.replica.settings.slow_consumer == SlowConsumer::Disconnect {
            // A subscriber is not slow because of a loss of the log.
            let is_announced = cursors.losses == self.replica.losses();
            if is_announced && cursors.topics.iter().any(Cursor::has_lagged) {
                cursors.is_live = false;
                drop(cursors);
                self.waiter.close(CloseReason::SlowConsumer);
                return None;
            }
        }
        let times = cursors.topics.iter().filter_map(Cursor::waits_since);
        let since = times.min()?.max(cursors.live_since);
        Some(self.replica.time_of(since))
    }

    fn detach(&self) {
        let mut cursors = self.lock();
        cursors.is_detached = true;
        cursors.pending.clear();
        let pending = cursors.pending_key.take();
        let topics = std::mem::take(&mut cursors.topics);
        self.count(&cursors);
        drop(cursors);
        let left = pending.and_then(|key| self.core.pending().remove(key));
        // Outside the lock of the list: this may be the last handle of a subscriber.
        drop(left);
        for cursor in topics {
            cursor.leave(&self.replica);
        }
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The frame less its last line, which is the id.
fn without_id(frame: &[u8]) -> Bytes {
    let id = memchr::memmem::rfind(frame, b"\nid: ").map_or(0, |at| at + 1);
    let mut frame = frame[..id].to_vec();
    frame.push(b'\n');
    frame.into()
}
