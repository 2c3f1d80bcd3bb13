//! The sequence of records: from entries to what a reader reports.
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
    connection::LogState,
    entry::{Id, StreamEntry},
};

#[derive(Debug)]
pub(super) struct Sequence {
    epoch: Epoch,
    /// The entry that was read last.
    pub(super) id: Id,
    /// The position that was reported last.
    reported: Position,
    /// The tag of the record there. `None` if the record is not part of the sequence, or is unknown.
    tag: Option<u32>,
    max_record: usize,
    /// How many entries were passed over.
    pub(super) skipped: u64,
}

impl Sequence {
    /// Begins with what the log retains.
    pub(super) fn from_start(state: &LogState, max_record: usize) -> Self {
        Self {
            epoch: state.epoch,
            id: Id(state.base, u64::MAX),
            reported: Position::new(state.epoch, 0, 0),
            tag: Some(0),
            max_record,
            skipped: 0,
        }
    }

    /// Begins after this position, if it is in the log: `entry` is what stands there, if anything
    /// does.
    pub(super) fn after(
        position: Position,
        entry: Option<&StreamEntry>,
        state: &LogState,
        max_record: usize,
    ) -> Result<Self, ReadError> {
        let mut sequence = Self::from_start(state, max_record);
        if position.epoch() != state.epoch {
            return Err(ReadError::rewritten());
        }
        if position.offset() == 0 {
            return Ok(sequence);
        }
        sequence.id = Id(position.offset(), 0);
        sequence.reported = position;
        sequence.tag = Some(position.tag());
        let head = state.head();
        match entry {
            Some(entry) if tag_of(entry) != position.tag() => return Err(ReadError::rewritten()),
            Some(entry) if entry.previous.is_none() => sequence.tag = None,
            Some(_) => {}
            None if head.offset() < position.offset() => return Err(ReadError::rewritten()),
            None if head.offset() == position.offset() && head.tag() != position.tag() => {
                return Err(ReadError::rewritten());
            }
            None if position.tag() == 0 => sequence.tag = None,
            None => {}
        }
        Ok(sequence)
    }

    /// The position that was reported last.
    pub(super) fn reported(&self) -> Position {
        self.reported
    }

    /// Compares with the log as it stands. Tells whether there is more in it, or was.
    pub(super) fn compare(&self, state: &LogState) -> Result<bool, ReadError> {
        let head = state.head();
        let is_other = head.epoch() != self.epoch
            || self.tag.is_some_and(|tag| {
                let is_changed = head.offset() == self.reported.offset() && head.tag() != tag;
                is_changed || head.offset() < self.reported.offset()
            });
        if is_other {
            return Err(ReadError::rewritten());
        }
        Ok(head.offset() > self.reported.offset())
    }

    /// Everything up to the head is gone, without having been read.
    pub(super) fn lose_up_to(&mut self, head: Position) -> Read {
        self.reported = head;
        self.tag = Some(head.tag());
        self.id = self.id.max(Id(head.offset(), 0));
        Read::Lost(head)
    }

    /// Takes the next entry, and tells of it. Nothing is taken where it does not follow what was
    /// reported last.
    pub(super) fn push(
        &mut self,
        entry: &StreamEntry,
        reported: &mut impl FnMut(Read),
    ) -> Result<(), Mismatch> {
        let stored = envelope::decode(&entry.envelope);
        if stored == Stored::Foreign {
            self.id = entry.id;
            self.skipped += 1;
            return Ok(());
        }
        let Some(previous) = entry.previous else {
            self.id = entry.id;
            self.skipped += 1;
            reported(self.unlinked(entry.id.0, stored));
            return Ok(());
        };
        let follows = match self.tag {
            _ if previous.epoch != self.epoch || entry.id.0 <= self.reported.offset() => false,
            Some(tag) if previous.offset == self.reported.offset() => previous.tag == tag,
            Some(_) => previous.offset > self.reported.offset(),
            None => true,
        };
        if !follows {
            return Err(Mismatch);
        }
        if previous.offset > self.reported.offset() {
            reported(Read::Lost(Position::new(
                self.epoch,
                previous.offset,
                previous.tag,
            )));
        }
        reported(self.linked(entry, stored));
        Ok(())
    }

    /// Takes an entry that does not follow, of a log that is as it was: somebody has damaged it.
    pub(super) fn push_anyway(&mut self, entry: &StreamEntry, reported: &mut impl FnMut(Read)) {
        reported(Read::Lost(self.reported));
        let is_next = entry.id.0 > self.reported.offset();
        match entry.previous {
            Some(previous) if previous.epoch == self.epoch && is_next => {
                reported(self.linked(entry, envelope::decode(&entry.envelope)));
            }
            _ => {
                self.id = entry.id;
                self.skipped += 1;
            }
        }
    }

    fn linked(&mut self, entry: &StreamEntry, stored: Stored) -> Read {
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
        self.reported = Position::new(self.epoch, entry.id.0, tag);
        self.tag = Some(tag);
        match record {
            Some(record) => Read::Record(self.reported, record),
            None => {
                self.skipped += 1;
                Read::Unreadable(self.reported, topic)
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
        if offset <= self.reported.offset() {
            // Two entries have one offset: there is no position for the second.
            return Read::Lost(self.reported);
        }
        self.reported = Position::new(self.epoch, offset, tag);
        self.tag = None;
        Read::Unreadable(self.reported, topic)
    }
}

/// An entry does not follow what was reported last: the log may have been rewritten.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch;

/// The tag of a record, or 0.
pub(super) fn tag_of(entry: &StreamEntry) -> u32 {
    match envelope::decode(&entry.envelope) {
        Stored::Record { tag, .. } | Stored::Unreadable { tag, .. } => tag,
        Stored::Foreign => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::{Record, redis::entry::Predecessor};

    const EPOCH: Epoch = Epoch::new(7);

    /// The record at this offset, with ten times that as its tag, after that one.
    fn entry(offset: u64, before: u64) -> StreamEntry {
        let record = Record::new("a".try_into().unwrap(), format!("data: {offset}\n"));
        StreamEntry {
            id: Id(offset, 0),
            envelope: envelope::encode(tag(offset), &record).into(),
            previous: Some(Predecessor {
                epoch: EPOCH,
                tag: tag(before),
                offset: before,
            }),
        }
    }

    fn tag(offset: u64) -> u32 {
        offset as u32 * 10
    }

    fn position(offset: u64) -> Position {
        Position::new(EPOCH, offset, tag(offset))
    }

    /// What is reported of these entries, in short; and whether they follow.
    fn reported(
        sequence: &mut Sequence,
        entries: &[StreamEntry],
    ) -> (Vec<(char, u64)>, Result<(), Mismatch>) {
        let mut reported = Vec::new();
        let mut report = |read: Read| {
            let kind = match read {
                Read::Record(..) => 'r',
                Read::Lost(_) => 'l',
                Read::Unreadable(..) => 'u',
                Read::Skipped(_) => 's',
            };
            reported.push((kind, read.position().offset()));
        };
        let follow = entries
            .iter()
            .try_for_each(|entry| sequence.push(entry, &mut report));
        (reported, follow)
    }

    fn sequence_at(offset: u64) -> Sequence {
        let state = LogState::new(EPOCH, 0, offset, tag(offset));
        Sequence::after(position(offset), None, &state, 1000).unwrap()
    }

    #[test]
    fn linked_records_are_read_and_holes_are_reported() {
        let entries = [entry(3, 2), entry(4, 3), entry(7, 6), entry(1000, 7)];
        let expected = vec![('r', 3), ('r', 4), ('l', 6), ('r', 7), ('r', 1000)];
        assert_eq!(reported(&mut sequence_at(2), &entries), (expected, Ok(())));
        // From the start, of a log that has lost its first records.
        let state = LogState::new(EPOCH, 0, 7, tag(7));
        let mut sequence = Sequence::from_start(&state, 1000);
        let expected = vec![('l', 6), ('r', 7)];
        assert_eq!(reported(&mut sequence, &[entry(7, 6)]), (expected, Ok(())));
    }

    #[test]
    fn entry_that_does_not_follow_is_a_mismatch() {
        let mut other_tag = entry(3, 2);
        other_tag.previous.as_mut().unwrap().tag ^= 1;
        let mut other_epoch = entry(3, 2);
        other_epoch.previous.as_mut().unwrap().epoch = Epoch::new(8);
        for bad in [entry(3, 1), entry(2, 1), other_tag, other_epoch] {
            let mut sequence = sequence_at(2);
            let (reported, follow) = reported(&mut sequence, std::slice::from_ref(&bad));
            assert_eq!((reported, follow), (vec![], Err(Mismatch)), "{bad:?}");
            assert_eq!((sequence.id, sequence.reported()), (Id(2, 0), position(2)));
        }
    }

    #[test]
    fn mismatched_log_is_continued_after_a_loss() {
        let mut sequence = sequence_at(2);
        let mut reads = Vec::new();
        sequence.push_anyway(&entry(3, 1), &mut |read| reads.push(read));
        assert!(matches!(&reads[..], [Read::Lost(lost), Read::Record(at, _)]
            if *lost == position(2) && *at == position(3)));
        assert_eq!(
            reported(&mut sequence, &[entry(4, 3)]),
            (vec![('r', 4)], Ok(()))
        );
    }

    #[test]
    fn log_with_an_earlier_or_other_end_is_another_log() {
        let state = |offset, tag| LogState::new(EPOCH, 0, offset, tag);
        let compare = |state: LogState| sequence_at(2).compare(&state).ok();
        assert_eq!(compare(state(2, tag(2))), Some(false));
        assert_eq!(compare(state(3, tag(3))), Some(true));
        assert_eq!(compare(state(2, 1)), None);
        assert_eq!(compare(state(1, tag(1))), None);
        assert_eq!(compare(LogState::new(Epoch::new(8), 0, 2, tag(2))), None);
    }

    #[test]
    fn reading_resumes_only_from_a_position_of_this_log() {
        let state = LogState::new(EPOCH, 0, 5, tag(5));
        let after = |position, found: Option<&StreamEntry>| {
            let sequence = Sequence::after(position, found, &state, 1000);
            sequence.is_ok()
        };
        assert!(after(position(0), None));
        assert!(after(position(3), Some(&entry(3, 2))));
        // It was dropped: whether anything is missing shows at the next record.
        assert!(after(position(3), None));
        assert!(after(position(5), None));
        assert!(!after(position(6), None));
        assert!(!after(Position::new(EPOCH, 5, 1), None));
        assert!(!after(Position::new(EPOCH, 3, 1), Some(&entry(3, 2))));
        assert!(!after(Position::new(Epoch::new(8), 3, tag(3)), None));
    }
}
