//! A node's replica of the log: the topics, their rings, and what is known of the log.
//!
//! 1. There is one appender: whoever holds the reading (see `core`). It holds the log's lock for
//!    each record.
//! 2. A record's entry is in its ring before `visible` says so, and readers go no further than what
//!    they have read of `visible` first. So a position and all that is before it become visible
//!    together.
//! 3. For each topic, everything after its loss mark is in its ring. The mark is the later of the
//!    ring's own and `floor`. It only rises.
//! 4. A topic is in the index while it has entries or subscribers. One that leaves it leaves its
//!    loss mark in `floor`.
//! 5. Locks are taken in this order: a subscriber's cursors, the log, a ring or a topic's
//!    subscribers, a connection.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    handshake::Visible,
    outcome::{GapReason, ResumeDecision},
    settings::BrokerSettings,
    stats::{BrokerStats, BrokerTally},
    store::Store,
    topic::Topic,
};
use crate::{
    backplane::{Read, TopicName},
    log::{Entry, Epoch, Position, Window},
};

pub(super) struct Replica {
    pub(super) settings: BrokerSettings,
    /// Whether the log may be rewritten within an epoch.
    may_be_rewritten: bool,
    /// The offset up to which entries are visible.
    visible: Visible,
    /// Raised whenever all subscribers may have lost something.
    losses: AtomicU64,
    /// The generation of the log: rises when it proves to be another one.
    generation: AtomicU64,
    pub(super) tally: BrokerTally,
    /// Guards everything that is known of the log, and the index of topics.
    log: Mutex<Store>,
    /// The next pass wakes all subscribers: something that is not an event is to be announced.
    wakes_all: AtomicBool,
    /// The next pass wakes subscribers whose positions have fallen far behind.
    sweeps: AtomicBool,
    epoch_start: Instant,
}

impl Replica {
    pub(super) fn new(settings: BrokerSettings, may_be_rewritten: bool) -> Self {
        let window = Window::after(0, settings.window);
        Self {
            settings,
            may_be_rewritten,
            visible: Visible::new(0),
            losses: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            tally: BrokerTally::new(),
            log: Mutex::new(Store::new(window)),
            wakes_all: AtomicBool::new(false),
            sweeps: AtomicBool::new(false),
            epoch_start: Instant::now(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Store> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn visible(&self) -> u64 {
        self.visible.get()
    }

    /// Whether anything of the log has been read yet.
    pub(super) fn has_head(&self) -> bool {
        self.lock().head.is_some()
    }

    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// Read after `losses`, which is raised later.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The position from which subscribers of an earlier generation continue.
    pub(super) fn window_end(&self) -> Option<Position> {
        self.lock().window_end
    }

    // ===== the appender =====

    /// The log was opened, and this is its head. If it is another one than before, or has been
    /// rewritten, nothing counts any more that was read from the old one.
    pub(super) fn opened(&self, head: Position, is_rewritten: bool) {
        let mut log = self.lock();
        let is_same = log.head.is_some_and(|known| known.epoch() == head.epoch());
        if !is_same || is_rewritten {
            self.reset(&mut log, head.epoch());
        }
        log.window_end = Some(head);
        self.settle(&mut log);
    }

    fn reset(&self, log: &mut Store, epoch: Epoch) {
        let is_first = log.head.is_none();
        log.head = Some(Position::new(epoch, 0, 0));
        log.window = Window::after(0, self.settings.window);
        log.floor = 0;
        log.last_sweep = 0;
        log.is_window_read = false;
        log.order.clear();
        log.topics.retain(|_, topic| {
            topic.ring_mut().reset();
            topic.is_read()
        });
        log.entries = 0;
        log.bytes = 0;
        self.visible.set(0);
        if !is_first {
            self.generation.fetch_add(1, Ordering::AcqRel);
            self.announce_loss();
        }
    }

    /// Announces a loss to every subscriber.
    fn announce_loss(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
        self.wakes_all.store(true, Ordering::Release);
    }

    /// Applies what was read from the log.
    pub(super) fn apply(&self, read: Read) {
        if matches!(read, Read::Unreadable(..)) {
            self.tally.unreadable();
        }
        let mut log = self.lock();
        match read {
            Read::Record(position, record) => {
                let is_event = self.settings.admits_lines(record.lines());
                if !is_event {
                    self.tally.unreadable();
                }
                let lines = is_event.then(|| record.lines());
                self.append(&mut log, position, record.topic(), lines);
            }
            Read::Unreadable(position, Some(topic)) => {
                self.append(&mut log, position, &topic, None);
            }
            Read::Lost(position) | Read::Unreadable(position, None) => {
                log.floor = log.floor.max(position.offset());
                // Before the window is read no subscriber has been promised anything.
                if log.is_window_read {
                    self.announce_loss();
                }
                self.pass(&mut log, position);
            }
            Read::Skipped(position) => self.pass(&mut log, position),
        }
        self.settle(&mut log);
    }

    /// Records a position at which there is no event.
    fn pass(&self, log: &mut Store, position: Position) {
        if log
            .head
            .is_some_and(|head| head.offset() >= position.offset())
        {
            return;
        }
        // Tag 0: what was there is no longer known.
        if position.tag() != 0 {
            log.window.push(position.offset(), position.tag());
        }
        log.head = Some(position);
        self.visible.set(position.offset());
    }

    /// Appends an event; or a hole, where there are no lines that may be sent to a client.
    fn append(
        &self,
        log: &mut Store,
        position: Position,
        topic: &TopicName,
        lines: Option<&Bytes>,
    ) {
        let offset = position.offset();
        let entry = Entry {
            offset,
            tag: position.tag(),
            frame: lines.map_or_else(Bytes::new, |lines| self.encode(position, lines)),
            time: self.now(),
        };
        let topic = log.topic_or_new(topic);
        log.window.push(offset, position.tag());
        log.entries += 1;
        log.bytes += entry.cost();
        let history = &self.settings.history;
        let (was_empty, entries, bytes) = topic.push(entry, history.events, history.bytes);
        if was_empty {
            log.bytes += topic.cost();
        }
        log.entries -= entries;
        log.bytes -= bytes;
        if topic.is_read() && !topic.is_dirty.swap(true, Ordering::AcqRel) {
            log.dirty.push(Arc::clone(&topic));
        }
        log.order.push_back((topic, offset));
        log.head = Some(position);
        self.visible.set(offset);

        while log.bytes > self.settings.bytes && log.entries > 1 {
            log.drop_oldest();
        }
        log.tidy();
        if offset - log.last_sweep > (self.settings.window / 8) as u64 {
            log.last_sweep = offset;
            self.sweeps.store(true, Ordering::Release);
        }
    }

    /// Writes the frame that every subscriber receives.
    fn encode(&self, position: Position, lines: &Bytes) -> Bytes {
        self.tally.record();
        position.frame(lines)
    }

    /// Records when the window has been read.
    fn settle(&self, log: &mut Store) {
        let (Some(head), Some(end)) = (log.head, log.window_end) else {
            return;
        };
        if !log.is_window_read && head.offset() >= end.offset() {
            log.is_window_read = true;
            for topic in log.topics.values() {
                topic.ring_mut().set_joins();
            }
            self.wakes_all.store(true, Ordering::Release);
        }
    }

    /// The end of this millisecond of the broker's count.
    pub(super) fn time_of(&self, time: u64) -> Instant {
        self.epoch_start + Duration::from_millis(time + 1)
    }

    pub(super) fn now(&self) -> u64 {
        let since = Instant::now().saturating_duration_since(self.epoch_start);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    // ===== subscribers =====

    /// A connection whose last id is older than this is due for a `position` event.
    pub(super) fn far_behind(&self) -> u64 {
        let distance = (self.settings.window / 2) as u64;
        self.visible().saturating_sub(distance)
    }

    /// Returns topics with subscribers to wake, and whether to wake all of them or only those whose
    /// positions have fallen far behind.
    pub(super) fn take_dirty(&self) -> Vec<(Arc<Topic>, bool)> {
        // The marks are taken off under the lock: an append that finds one is before this pass as a
        // whole, so that the pass wakes for it.
        let mut log = self.lock();
        let dirty = mem::take(&mut log.dirty);
        let wakes_all = self.wakes_all.swap(false, Ordering::AcqRel);
        let unmark = |topic: &Topic| topic.is_dirty.swap(false, Ordering::AcqRel);
        if self.sweeps.swap(false, Ordering::AcqRel) || wakes_all {
            // Not those without readers: they may be many.
            let of_topic = |topic: &Arc<Topic>| {
                let is_meant = unmark(topic) || wakes_all;
                topic.is_read().then(|| (Arc::clone(topic), is_meant))
            };
            return log.topics.values().filter_map(of_topic).collect();
        }
        let unmarked = dirty.into_iter().inspect(|topic| {
            unmark(topic);
        });
        unmarked.map(|topic| (topic, true)).collect()
    }

    /// Whether there is a subscriber to wake.
    pub(super) fn is_dirty(&self) -> bool {
        // Marks are made under the lock, and a task that ends checks them after it has recorded its
        // end.
        let log = self.lock();
        self.wakes_all.load(Ordering::Acquire)
            || self.sweeps.load(Ordering::Acquire)
            || !log.dirty.is_empty()
    }

    pub(super) fn topic(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.lock().topics.get(name.as_str()).cloned()
    }

    /// Returns the number of topics that are held in memory.
    pub(super) fn topic_count(&self) -> usize {
        self.lock().topics.len()
    }

    pub(super) fn stats(&self) -> BrokerStats {
        let mut stats = self.tally.snapshot();
        self.lock().count(&mut stats);
        stats
    }

    /// Resolves a client's position in these topics.
    pub(super) fn resume_decision(
        &self,
        log: &Store,
        topics: &[Arc<Topic>],
        from: Option<Position>,
    ) -> ResumeDecision {
        let (Some(position), Some(head)) = (from, log.head) else {
            return ResumeDecision::Fresh;
        };
        if position.epoch() != head.epoch() {
            return ResumeDecision::Gap(GapReason::OtherLog);
        }
        if position.offset() > head.offset() || !self.knows(log, &position, topics) {
            return ResumeDecision::Gap(GapReason::Unknown);
        }
        if topics
            .iter()
            .any(|topic| log.lost(topic) > position.offset())
        {
            return ResumeDecision::Gap(GapReason::Evicted);
        }
        ResumeDecision::Exact(position)
    }

    /// Whether a position belongs to this log, as far as can be known.
    fn knows(&self, log: &Store, position: &Position, topics: &[Arc<Topic>]) -> bool {
        let of_topics = || {
            topics
                .iter()
                .find_map(|it| it.ring().tag_at(position.offset()))
        };
        let known = log.window.tag(position.offset()).or_else(of_topics);
        match known {
            Some(tag) => tag == position.tag(),
            // Its own position of the empty log.
            None if position.offset() == 0 => position.tag() == 0,
            None => !self.may_be_rewritten,
        }
    }
}
