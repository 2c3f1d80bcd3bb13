//! From entries to what a reader is told.
//!
//! Each record names the one before it, with its epoch and its tag. So whatever is not as it should
//! be shows at the next record: one that is missing, another log, one that was rewritten.

use crate::{
    backplane::{
        Read, ReadError,
        envelope::{self, Stored},
    },
    log::{Epoch, Position},
};

use super::{
    entry::{Entry, Id},
    link::State,
};

#[derive(Debug)]
pub(super) struct Chain {
    epoch: Epoch,
    /// The entry that was read last.
    pub(super) id: Id,
    /// The place that was told last.
    told: Position,
    /// The tag of the record there. None: it is no link of the chain, or unknown.
    tag: Option<u32>,
    max_record: usize,
    /// How many entries were passed over.
    pub(super) skipped: u64,
}

impl Chain {
    /// Begins with what the log retains.
    pub(super) fn from_start(state: &State, max_record: usize) -> Self {
        Self {
            epoch: state.epoch,
            id: Id(state.base, u64::MAX),
            told: Position::new(state.epoch, 0, 0),
            tag: Some(0),
            max_record,
            skipped: 0,
        }
    }

    /// Begins after this place, if it is in the log: `entry` is what stands there, if anything does.
    pub(super) fn after(
        place: Position,
        entry: Option<&Entry>,
        state: &State,
        max_record: usize,
    ) -> Result<Self, ReadError> {
        let mut chain = Self::from_start(state, max_record);
        if place.epoch() != state.epoch {
            return Err(ReadError::rewritten());
        }
        if place.offset() == 0 {
            return Ok(chain);
        }
        chain.id = Id(place.offset(), 0);
        chain.told = place;
        chain.tag = Some(place.tag());
        let head = state.head();
        match entry {
            Some(entry) if tag_of(entry) != place.tag() => return Err(ReadError::rewritten()),
            Some(entry) if entry.link.is_none() => chain.tag = None,
            Some(_) => {}
            None if head.offset() < place.offset() => return Err(ReadError::rewritten()),
            None if head.offset() == place.offset() && head.tag() != place.tag() => {
                return Err(ReadError::rewritten());
            }
            None if place.tag() == 0 => chain.tag = None,
            None => {}
        }
        Ok(chain)
    }

    /// The place that was told last.
    pub(super) fn told(&self) -> Position {
        self.told
    }

    /// Compares with the log as it stands. Tells whether there is more in it, or was.
    pub(super) fn compare(&self, state: &State) -> Result<bool, ReadError> {
        let head = state.head();
        let is_other = head.epoch() != self.epoch
            || self.tag.is_some_and(|tag| {
                let is_changed = head.offset() == self.told.offset() && head.tag() != tag;
                is_changed || head.offset() < self.told.offset()
            });
        if is_other {
            return Err(ReadError::rewritten());
        }
        Ok(head.offset() > self.told.offset())
    }

    /// Everything up to the head is gone, without having been read.
    pub(super) fn lose_up_to(&mut self, head: Position) -> Read {
        self.told = head;
        self.tag = Some(head.tag());
        self.id = self.id.max(Id(head.offset(), 0));
        Read::Lost(head)
    }

    /// Takes the next entry, and tells of it. Nothing is taken where it does not follow what was
    /// told last.
    pub(super) fn push(
        &mut self,
        entry: &Entry,
        told: &mut impl FnMut(Read),
    ) -> Result<(), Mismatch> {
        let stored = envelope::decode(&entry.envelope);
        if stored == Stored::Foreign {
            self.id = entry.id;
            self.skipped += 1;
            return Ok(());
        }
        let Some(link) = entry.link else {
            self.id = entry.id;
            self.skipped += 1;
            told(self.unlinked(entry.id.0, stored));
            return Ok(());
        };
        let follows = match self.tag {
            _ if link.epoch != self.epoch || entry.id.0 <= self.told.offset() => false,
            Some(tag) if link.offset == self.told.offset() => link.tag == tag,
            Some(_) => link.offset > self.told.offset(),
            None => true,
        };
        if !follows {
            return Err(Mismatch);
        }
        if link.offset > self.told.offset() {
            told(Read::Lost(Position::new(self.epoch, link.offset, link.tag)));
        }
        told(self.linked(entry, stored));
        Ok(())
    }

    /// Takes an entry that does not follow, of a log that is as it was: somebody has damaged it.
    pub(super) fn push_anyway(&mut self, entry: &Entry, told: &mut impl FnMut(Read)) {
        told(Read::Lost(self.told));
        let is_next = entry.id.0 > self.told.offset();
        match entry.link {
            Some(link) if link.epoch == self.epoch && is_next => {
                told(self.linked(entry, envelope::decode(&entry.envelope)));
            }
            _ => {
                self.id = entry.id;
                self.skipped += 1;
            }
        }
    }

    fn linked(&mut self, entry: &Entry, stored: Stored) -> Read {
        let is_too_large = entry.envelope.len() > self.max_record;
        let (tag, record, topic) = match stored {
            Stored::Record { tag, record } if is_too_large => {
                (tag, None, Some(record.topic().clone()))
            }
            Stored::Record { tag, record } => (tag, Some(record), None),
            Stored::Unreadable { tag, topic } => (tag, None, topic),
            Stored::Foreign => (0, None, None),
        };
        self.id = entry.id;
        self.told = Position::new(self.epoch, entry.id.0, tag);
        self.tag = Some(tag);
        match record {
            Some(record) => Read::Record(self.told, record),
            None => {
                self.skipped += 1;
                Read::Unreadable(self.told, topic)
            }
        }
    }

    /// What looks like ours, but was not appended as ours are.
    fn unlinked(&mut self, offset: u64, stored: Stored) -> Read {
        let (tag, topic) = match stored {
            Stored::Record { tag, record } => (tag, Some(record.topic().clone())),
            Stored::Unreadable { tag, topic } => (tag, topic),
            Stored::Foreign => (0, None),
        };
        if offset <= self.told.offset() {
            // Two entries have one offset: there is no place for the second.
            return Read::Lost(self.told);
        }
        self.told = Position::new(self.epoch, offset, tag);
        self.tag = None;
        Read::Unreadable(self.told, topic)
    }
}

/// An entry does not follow what was told last: the log may have been rewritten.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch;

/// The tag of a record, or 0.
pub(super) fn tag_of(entry: &Entry) -> u32 {
    match envelope::decode(&entry.envelope) {
        Stored::Record { tag, .. } | Stored::Unreadable { tag, .. } => tag,
        Stored::Foreign => 0,
    }
}
