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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
};

use bytes::Bytes;

use super::{
    core::Replica,
    handshake::Armed,
    reading::Core,
    resume::{GapReason, Outcome, Verdict},
    settings::SlowConsumer,
    topic::Topic,
};
use crate::{
    CloseReason, Event,
    connection::{Batch, Source, SourceWaker},
    log::Position,
};

pub(super) struct Subscriber {
    pub(super) replica: Arc<Replica>,
    /// What reads the log, for as long as somebody subscribes.
    _core: Arc<Core>,
    connection: SourceWaker,
    /// The body sleeps, and is to be woken.
    armed: Armed,
    /// How many topics there are.
    topics: AtomicUsize,
    /// The offset of the last id that was given, as the cursors have it.
    given: AtomicU64,
    /// Guards the cursors and what waits to be told.
    state: Mutex<Cursors>,
}

pub(super) struct Cursors {
    pub(super) topics: Vec<Cursor>,
    is_live: bool,
    /// How many subscriptions wait for the window to be read.
    pub(super) undecided: Vec<Undecided>,
    /// A gap that has not been told.
    gap: Option<Gap>,
    /// The place that the client has not been given.
    place: Option<Position>,
    /// Whether it can ride on the welcome.
    place_in_welcome: bool,
    /// Whether the client came with it, so that it need not be told apart from the welcome.
    place_is_known: bool,
    /// The offset of the last id that was given.
    last_given: u64,
    /// How many losses of the log have been told.
    losses: u64,
    is_detached: bool,
}

pub(super) struct Cursor {
    pub(super) topic: Arc<Topic>,
    /// Its key among the topic's subscribers.
    pub(super) key: usize,
    /// The number of the next entry.
    pub(super) next: u64,
    /// Entries up to this offset go out without their ids, which would run backwards: they are
    /// replayed on a connection that has been given later ones.
    pub(super) without_ids: u64,
}

/// A subscription that was made before the window was read.
pub(super) struct Undecided {
    pub(super) topics: Vec<Arc<Topic>>,
    pub(super) from: Option<Position>,
    /// The place was ahead of this node already, when the window had been read.
    pub(super) was_ahead: bool,
    pub(super) outcome: Arc<Mutex<Outcome>>,
}

#[derive(Clone, Copy)]
struct Gap {
    reason: GapReason,
    /// None: nobody knows.
    missed: Option<u64>,
}

impl Subscriber {
    pub(super) fn new(core: &Arc<Core>, connection: SourceWaker) -> Self {
        let replica = Arc::clone(&core.replica);
        let losses = replica.losses();
        Self {
            replica,
            _core: Arc::clone(core),
            connection,
            armed: Armed::new(),
            topics: AtomicUsize::new(0),
            given: AtomicU64::new(0),
            state: Mutex::new(Cursors {
                topics: Vec::new(),
                is_live: false,
                undecided: Vec::new(),
                gap: None,
                place: None,
                place_in_welcome: false,
                place_is_known: false,
                last_given: 0,
                losses,
                is_detached: false,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Cursors> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The waker of the body, if it sleeps.
    pub(super) fn take_waker(&self) -> Option<Waker> {
        // Most of those that are awake are passed over without their lock.
        if self.armed.take() {
            self.connection.take()
        } else {
            None
        }
    }

    /// Whether the place that the client has is so old that it should be given a new one.
    pub(super) fn is_far_behind(&self) -> bool {
        // Not the lock: this is asked under that of a topic's subscribers.
        let given = self.given.load(Ordering::Acquire);
        self.is_subscribed() && self.is_far(given, self.replica.visible())
    }

    fn is_far(&self, given: u64, visible: u64) -> bool {
        visible.saturating_sub(given) > (self.replica.settings.window / 2) as u64
    }

    pub(super) fn close_reason(&self) -> CloseReason {
        self.connection.close_reason()
    }

    pub(super) fn count(&self, cursors: &Cursors) {
        self.topics.store(cursors.topics.len(), Ordering::Release);
    }

    /// Writes what has to be told, then the events. Tells whether the subscriber may go on.
    fn pull_into(&self, cursors: &mut Cursors, batch: &mut Batch) -> bool {
        if !cursors.is_live || !cursors.undecided.is_empty() {
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
                cursors.gap = None;
            }
            if let Some(place) = cursors.place.filter(|_| cursors.place_is_known) {
                cursors.give(place.offset());
            }
            if let Some(place) = cursors.place {
                let frame = self.position_frame(place);
                if !batch.admits(frame.len()) {
                    return true;
                }
                batch.push(frame);
                cursors.give(place.offset());
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
                cursors.last_given = offset;
            }
        }
        self.bring_up_to_date(cursors, visible, batch);
        true
    }

    /// Writes a `position` event when the client's place has fallen far behind. All entries up to
    /// `visible` have gone out.
    fn bring_up_to_date(&self, cursors: &mut Cursors, visible: u64, batch: &mut Batch) {
        if cursors.topics.is_empty() || !self.is_far(cursors.last_given, visible) {
            return;
        }
        let log = self.replica.lock();
        let Some(head) = log.head.filter(|head| head.offset() == visible) else {
            // More has come meanwhile: the next pull will see to it.
            return;
        };
        drop(log);
        let frame = self.position_frame(head);
        if batch.admits(frame.len()) {
            batch.push(frame);
            cursors.last_given = visible;
        }
    }

    fn position_frame(&self, place: Position) -> Bytes {
        let settings = &self.replica.settings;
        let event = Event::with_type(settings.position_event.as_str(), "{}");
        place.frame(&event.into_lines())
    }
}

impl Cursors {
    /// The entry that comes next, of all topics: whose it is, its offset and its frame. Notes what
    /// was lost before it.
    fn next_entry(&mut self, replica: &Replica, visible: u64) -> Option<(usize, u64, Bytes)> {
        let mut best: Option<(usize, u64, Bytes)> = None;
        for at in 0..self.topics.len() {
            let cursor = &mut self.topics[at];
            if !cursor.topic.reaches(cursor.next) {
                continue;
            }
            let ring = cursor.topic.ring();
            let Some(number) = ring.continues(cursor.next) else {
                continue;
            };
            let has_joined = number != cursor.next;
            cursor.next = number;
            let lost = ring.first().saturating_sub(cursor.next);
            let next = cursor.next + lost;
            let entry = ring.entry(next).filter(|entry| entry.offset <= visible);
            let found = entry
                .filter(|entry| best.as_ref().is_none_or(|best| entry.offset < best.1))
                .map(|entry| (at, entry.offset, entry.frame.clone()));
            drop(ring);
            if has_joined {
                // The loss that this is comes before the first event of the other log.
                self.note_losses(replica);
            }
            let cursor = &mut self.topics[at];
            if lost > 0 {
                cursor.next = next;
                self.note_gap(GapReason::Lagged, Some(lost));
            }
            best = found.or(best);
        }
        best
    }

    /// Notes a gap when the log has lost something for all.
    fn note_losses(&mut self, replica: &Replica) {
        let losses = replica.losses();
        if self.losses != losses {
            self.losses = losses;
            self.note_gap(GapReason::Lost, None);
            // Offsets may count anew.
            self.last_given = self.last_given.min(replica.visible());
        }
    }

    pub(super) fn note_gap(&mut self, reason: GapReason, missed: Option<u64>) {
        self.gap = Some(match self.gap {
            None => Gap { reason, missed },
            Some(gap) => Gap {
                reason: gap.reason,
                missed: gap.missed.zip(missed).map(|(a, b)| a + b),
            },
        });
    }

    fn gap_frame(&self, replica: &Replica) -> Bytes {
        let (reason, missed) = match self.gap {
            Some(gap) => (gap.reason.as_str(), gap.missed),
            None => ("", None),
        };
        let missed = missed.map_or_else(|| "null".to_owned(), |missed| missed.to_string());
        let data = format!(r#"{{"reason":"{reason}","missed":{missed}}}"#);
        Event::with_type(replica.settings.gap_event.as_str(), &data).into_bytes()
    }

    /// Notes where a subscription begins, by what was found, of which it is the first.
    /// `is_late`: the log could not be read until now.
    pub(super) fn begin(&mut self, verdict: Verdict, head: Position, is_late: bool) {
        if let Verdict::Gap(reason) = verdict {
            self.note_gap(reason, None);
        }
        let place = match verdict {
            Verdict::Exact(place) => place,
            _ => head,
        };
        // One that is live has been given a place, unless it had to wait for the log.
        let has_none = is_late && self.place.is_none() && self.last_given == 0;
        // The earliest counts: what follows it comes in order.
        if (!self.is_live || has_none) && self.place.is_none_or(|it| place.offset() <= it.offset())
        {
            self.place = Some(place);
            self.place_is_known = matches!(verdict, Verdict::Exact(_));
            self.place_in_welcome |= self.place_is_known;
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    pub(super) fn last_given(&self) -> u64 {
        self.last_given
    }

    fn give(&mut self, offset: u64) {
        self.place = None;
        self.last_given = offset;
    }

    pub(super) fn has(&self, topic: &Arc<Topic>) -> bool {
        self.topics.iter().any(|it| Arc::ptr_eq(&it.topic, topic))
    }

    pub(super) fn is_detached(&self) -> bool {
        self.is_detached
    }
}

impl Source for Subscriber {
    fn pull(&self, batch: &mut Batch) {
        let mut cursors = self.lock();
        let goes_on = self.pull_into(&mut cursors, batch);
        self.given.store(cursors.last_given, Ordering::Release);
        drop(cursors);
        if !goes_on {
            self.connection.close(CloseReason::SlowConsumer);
        }
    }

    fn arm(&self) {
        self.armed.arm();
    }

    fn welcome_id(&self) -> Option<String> {
        let mut cursors = self.lock();
        // A gap comes first: whoever is cut after the welcome alone must be told again.
        if !cursors.place_in_welcome || cursors.gap.is_some() {
            return None;
        }
        let place = cursors.place?;
        cursors.give(place.offset());
        self.given.store(cursors.last_given, Ordering::Release);
        Some(place.to_string())
    }

    fn go_live(&self, nothing_was_sent: bool) {
        let mut cursors = self.lock();
        cursors.is_live = true;
        cursors.place_in_welcome |= nothing_was_sent;
    }

    fn is_subscribed(&self) -> bool {
        self.topics.load(Ordering::Acquire) > 0
    }

    fn visit(&self) {
        // A body that is not polled does not see that it has fallen off its ring.
        if self.replica.settings.slow_consumer == SlowConsumer::Disconnect {
            let mut cursors = self.lock();
            let has_lagged = cursors.is_live && cursors.topics.iter().any(Cursor::has_lagged);
            if has_lagged {
                cursors.is_live = false;
                drop(cursors);
                self.connection.close(CloseReason::SlowConsumer);
            }
        }
    }

    fn detach(&self) {
        let mut cursors = self.lock();
        cursors.is_detached = true;
        cursors.undecided.clear();
        let topics = std::mem::take(&mut cursors.topics);
        self.count(&cursors);
        drop(cursors);
        for cursor in topics {
            cursor.leave(&self.replica);
        }
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The frame less its last line, which is the id.
fn without_id(frame: &Bytes) -> Bytes {
    let id = memchr::memmem::rfind(frame, b"\nid: ").map_or(0, |at| at + 1);
    let mut frame = frame[..id].to_vec();
    frame.push(b'\n');
    frame.into()
}

impl Cursor {
    fn has_lagged(&self) -> bool {
        self.topic.ring().first() > self.next
    }

    /// Takes the subscription out of its topic.
    pub(super) fn leave(self, replica: &Replica) {
        if self.topic.remove(self.key) {
            replica.lock().forget_if_idle(&self.topic);
        }
    }
}
