//! Where the subscriptions of one connection are, and what it has still to be told.

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
    /// How many subscriptions wait for the window to be read.
    pub(super) undecided: Vec<Undecided>,
    /// A gap that has not been told.
    pub(super) gap: Option<Gap>,
    /// The place that the client has not been given.
    pub(super) place: Option<Position>,
    /// Whether it can ride on the welcome.
    pub(super) place_in_welcome: bool,
    /// Whether the client came with it, so that it need not be told apart from the welcome.
    pub(super) place_is_known: bool,
    /// The offset of the last id that was given.
    pub(super) last_given: u64,
    /// How many losses of the log have been told.
    pub(super) losses: u64,
    /// The log whose places are meant, counted from the first that this node has read.
    pub(super) lives: u64,
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
    /// replayed on a connection that has been given later ones.
    pub(super) without_ids: u64,
}

/// A subscription that was made before the window was read.
pub(super) struct Undecided {
    pub(super) topics: Vec<Arc<Topic>>,
    pub(super) from: Option<Position>,
    pub(super) is_explicit: bool,
    /// The place was ahead of this node already, when the window had been read.
    pub(super) was_ahead: bool,
    pub(super) outcome: Arc<Mutex<Outcome>>,
}

/// How a subscription came to its place.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    /// The server has named it, not the client.
    pub(super) is_explicit: bool,
    /// The log could not be read until now.
    pub(super) is_late: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Gap {
    pub(super) reason: GapReason,
    /// None: nobody knows.
    pub(super) missed: Option<u64>,
}

impl Cursors {
    pub(super) fn new(replica: &Replica) -> Self {
        Self {
            topics: Vec::new(),
            is_live: false,
            live_since: 0,
            undecided: Vec::new(),
            gap: None,
            place: None,
            place_in_welcome: false,
            place_is_known: false,
            last_given: 0,
            losses: replica.losses(),
            lives: replica.lives(),
            is_detached: false,
            pending_key: None,
        }
    }

    /// The entry that comes next, of all topics: whose it is, its offset and its frame. Notes what
    /// was lost before it.
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
            self.look_at_life(replica);
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

    /// Notes where a subscription begins, by what was found.
    pub(super) fn begin(&mut self, decision: ResumeDecision, head: Position, origin: Origin) {
        if let ResumeDecision::Gap(reason) = decision {
            self.note_gap(reason, None);
        }
        // One that is live has been given a place, unless it had to wait for the log.
        if (self.is_live && !origin.is_late) || self.last_given > 0 {
            return;
        }
        let (place, is_exact) = match decision {
            ResumeDecision::Exact(place) => (place, true),
            _ => (head, false),
        };
        // The client's own place stands. Else the earliest counts: what follows it comes in order.
        let is_known = is_exact && !origin.is_explicit;
        let is_earlier = self.place.is_none_or(|it| place.offset() <= it.offset());
        if is_known || (is_earlier && !self.place_is_known) {
            self.place = Some(place);
            self.place_is_known = is_known;
            self.place_in_welcome |= is_exact;
        }
        if let Some(known) = self.place.filter(|_| self.place_is_known) {
            for cursor in &mut self.topics {
                cursor.without_ids = known.offset();
            }
        }
    }

    /// Forgets the places of a log that is not the broker's any more.
    fn look_at_life(&mut self, replica: &Replica) {
        let lives = replica.lives();
        if self.lives == lives {
            return;
        }
        self.lives = lives;
        self.last_given = 0;
        if self.place.is_some() {
            self.place = replica.window_end();
            self.place_is_known = false;
        }
        for cursor in &mut self.topics {
            cursor.without_ids = 0;
        }
    }

    pub(super) fn give(&mut self, offset: u64) {
        self.place = None;
        self.last_given = offset;
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
