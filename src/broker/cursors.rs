//! The cursors of one connection's subscriptions, and what is still to be announced to it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{
    outcome::{GapReason, Outcome, ResumeDecision},
    replica::Replica,
    topic::Topic,
};
use crate::{Event, log::Position};

pub(super) struct Cursors {
    pub(super) topics: Vec<Cursor>,
    pub(super) is_live: bool,
    /// Since when, in the broker's count of milliseconds: what is older did not wait for the body.
    pub(super) live_since: u64,
    /// Subscriptions that wait for the window to be read.
    pub(super) pending: Vec<PendingTopics>,
    /// A gap that has not been announced.
    pub(super) gap: Option<Gap>,
    /// The position that has not been sent to the client.
    pub(super) position: Option<Position>,
    /// Whether it can ride on the welcome.
    pub(super) position_in_welcome: bool,
    /// Whether the client sent it, so that no event of its own is needed for it.
    pub(super) position_is_known: bool,
    /// The offset of the last id that was sent.
    pub(super) last_sent: u64,
    /// How many losses of the log have been announced.
    pub(super) losses: u64,
    /// The generation of the log that these positions belong to.
    pub(super) generation: u64,
    pub(super) is_detached: bool,
    /// The key in the list of pending subscribers.
    pub(super) pending_key: Option<u64>,
}

pub(super) struct Cursor {
    pub(super) topic: Arc<Topic>,
    /// Its key among the topic's subscribers.
    pub(super) key: usize,
    /// The number of the next entry.
    pub(super) next: u64,
    /// Entries up to this offset go out without their ids, which would run backwards: they are
    /// replayed on a connection to which later ones have been sent.
    pub(super) without_ids: u64,
}

/// A subscription that was made before the window was read.
pub(super) struct PendingTopics {
    pub(super) topics: Vec<Arc<Topic>>,
    pub(super) from: Option<Position>,
    pub(super) is_explicit: bool,
    /// The position was already ahead of this node when the window had been read.
    pub(super) was_ahead: bool,
    pub(super) outcome: Arc<Mutex<Outcome>>,
}

/// How a subscription came to its position.
#[derive(Clone, Copy)]
pub(super) struct PositionOrigin {
    /// The server has set it, not the client.
    pub(super) is_explicit: bool,
    /// The log could not be read until now.
    pub(super) is_late: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Gap {
    pub(super) reason: GapReason,
    /// None: the number is not known.
    pub(super) missed: Option<u64>,
}

impl Cursors {
    pub(super) fn new(replica: &Replica) -> Self {
        Self {
            topics: Vec::new(),
            is_live: false,
            live_since: 0,
            pending: Vec::new(),
            gap: None,
            position: None,
            position_in_welcome: false,
            position_is_known: false,
            last_sent: 0,
            losses: replica.losses(),
            generation: replica.generation(),
            is_detached: false,
            pending_key: None,
        }
    }

    /// Returns the next entry of all topics: the index of its cursor, its offset and its frame.
    /// Records what was lost before it.
    pub(super) fn next_entry(
        &mut self,
        replica: &Replica,
        visible: u64,
    ) -> Option<(usize, u64, Bytes)> {
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
    pub(super) fn note_losses(&mut self, replica: &Replica) {
        let losses = replica.losses();
        if self.losses != losses {
            self.losses = losses;
            self.note_gap(GapReason::Lost, None);
            self.check_generation(replica);
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

    pub(super) fn gap_frame(&self, replica: &Replica) -> Bytes {
        let (reason, missed) = match self.gap {
            Some(gap) => (gap.reason.as_str(), gap.missed),
            None => ("", None),
        };
        let missed = missed.map_or_else(|| "null".to_owned(), |missed| missed.to_string());
        let data = format!(r#"{{"reason":"{reason}","missed":{missed}}}"#);
        Event::with_type(replica.settings.gap_event.as_str(), &data).into_bytes()
    }

    /// Records the position at which a subscription begins.
    pub(super) fn begin(
        &mut self,
        decision: ResumeDecision,
        head: Position,
        origin: PositionOrigin,
    ) {
        if let ResumeDecision::Gap(reason) = decision {
            self.note_gap(reason, None);
        }
        // A live subscriber has been sent a position, unless it had to wait for the log.
        if (self.is_live && !origin.is_late) || self.last_sent > 0 {
            return;
        }
        let (position, is_exact) = match decision {
            ResumeDecision::Exact(position) => (position, true),
            _ => (head, false),
        };
        // The client's own position stands. Else the earliest counts: what follows it comes in
        // order.
        let is_known = is_exact && !origin.is_explicit;
        let is_earlier = self
            .position
            .is_none_or(|it| position.offset() <= it.offset());
        if is_known || (is_earlier && !self.position_is_known) {
            self.position = Some(position);
            self.position_is_known = is_known;
            self.position_in_welcome |= is_exact;
        }
        if let Some(known) = self.position.filter(|_| self.position_is_known) {
            for cursor in &mut self.topics {
                cursor.without_ids = known.offset();
            }
        }
    }

    /// Forgets the positions of an earlier generation of the log.
    fn check_generation(&mut self, replica: &Replica) {
        let generation = replica.generation();
        if self.generation == generation {
            return;
        }
        self.generation = generation;
        self.last_sent = 0;
        if self.position.is_some() {
            self.position = replica.window_end();
            self.position_is_known = false;
        }
        for cursor in &mut self.topics {
            cursor.without_ids = 0;
        }
    }

    pub(super) fn mark_sent(&mut self, offset: u64) {
        self.position = None;
        self.last_sent = offset;
    }

    pub(super) fn has(&self, topic: &Arc<Topic>) -> bool {
        self.topics.iter().any(|it| Arc::ptr_eq(&it.topic, topic))
    }
}

impl Cursor {
    pub(super) fn has_lagged(&self) -> bool {
        let ring = self.topic.ring();
        let next = ring.continues(self.next);
        next.is_some_and(|next| ring.first() > next)
    }

    /// When the next entry came, in the broker's count, if there is one.
    pub(super) fn waits_since(&self) -> Option<u64> {
        if !self.topic.reaches(self.next) {
            return None;
        }
        let ring = self.topic.ring();
        let entry = ring.entry(self.next.max(ring.first()));
        entry.map(|entry| entry.time)
    }

    /// Takes the subscription out of its topic.
    pub(super) fn leave(self, replica: &Replica) {
        if self.topic.remove(self.key) {
            replica.lock().forget_if_idle(&self.topic);
        }
    }
}
