//! The events that a topic keeps.
//!
//! 1. Entries are in the order of their offsets, which strictly rise.
//! 2. Entries are numbered from 0 in the order in which they came, and keep their numbers: a live
//!    cursor that holds the number of its next entry knows how many it has lost.
//!    Cursors of another generation of the log are recognised by their numbers too.
//! 3. `lost` is the offset of the last entry that was dropped, or is a hole. A client that resumes
//!    from an earlier position gets a gap.

use std::collections::VecDeque;

use bytes::Bytes;

/// One event of a topic.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) tag: u32,
    /// The event as written to the wire, with its id. Empty for a hole: the record at this position
    /// cannot be sent to clients.
    pub(crate) frame: Bytes,
    /// When it came, in the broker's count of milliseconds.
    pub(crate) time: u64,
}

impl Entry {
    /// What an entry counts against a limit in bytes: its frame, and its slots in the tables.
    pub(crate) fn cost(&self) -> usize {
        self.frame.len() + 128
    }
}

#[derive(Debug, Default)]
pub(crate) struct Ring {
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    first: u64,
    bytes: usize,
    /// The number of the first entry of this log: cursors before it are of another one.
    began: u64,
    /// Where those go on. None: not before this log has been read.
    joins: Option<u64>,
    /// The last entry that was dropped, or is a hole: its offset and tag.
    lost: (u64, u32),
}

impl Ring {
    pub(crate) fn push(&mut self, entry: Entry) {
        debug_assert!(
            self.entries
                .back()
                .is_none_or(|last| last.offset < entry.offset)
        );
        if entry.frame.is_empty() {
            self.lose(entry.offset, entry.tag);
        }
        self.bytes += entry.cost();
        self.entries.push_back(entry);
    }

    /// Drops the oldest entry.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.first += 1;
        self.bytes -= entry.cost();
        self.lose(entry.offset, entry.tag);
        // Half of the room is kept for the next entries.
        if self.entries.capacity() > 32 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        Some(entry)
    }

    /// Records that everything up to this offset may be missing.
    fn lose(&mut self, offset: u64, tag: u32) {
        if offset > self.lost.0 {
            self.lost = (offset, tag);
        }
    }

    /// Drops everything, and what is known of losses: the log is another one, and its offsets count
    /// anew. Cursors stay where they are until [`joins`](Self::set_joins) is known.
    pub(crate) fn reset(&mut self) {
        while self.pop().is_some() {}
        self.lost = (0, 0);
        // A number that no entry has, so that cursors of the old log are recognised.
        self.first += 1;
        self.began = self.first;
        self.joins = None;
    }

    /// The new log has been read: cursors of the old one go on with what comes now.
    pub(crate) fn set_joins(&mut self) {
        self.joins = Some(self.end());
    }

    /// The number that a cursor with this one goes on with, if it may go on already.
    pub(crate) fn continues(&self, number: u64) -> Option<u64> {
        if number < self.began {
            self.joins
        } else {
            Some(number)
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn oldest(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// The offset up to which something may have been lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.0
    }

    /// The number that the next entry will have.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The number of the first entry that is kept.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The entry of this number, if it is kept.
    pub(crate) fn entry(&self, number: u64) -> Option<&Entry> {
        let at = number.checked_sub(self.first)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// The number of the first entry after this offset.
    pub(crate) fn number_after(&self, offset: u64) -> u64 {
        let at = self.entries.partition_point(|entry| entry.offset <= offset);
        self.first + at as u64
    }

    /// The tag of the record at this offset, where it is one of this topic and still known.
    pub(crate) fn tag_at(&self, offset: u64) -> Option<u32> {
        if self.lost.0 == offset && offset != 0 {
            return Some(self.lost.1);
        }
        let at = self.entries.partition_point(|entry| entry.offset < offset);
        let entry = self.entries.get(at)?;
        (entry.offset == offset).then_some(entry.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64) -> Entry {
        Entry {
            offset,
            tag: offset as u32 * 10,
            frame: Bytes::from_static(b"data: x\n\n"),
            time: 0,
        }
    }

    #[test]
    fn numbers_stay_when_entries_are_dropped() {
        let mut ring = Ring::default();
        for offset in [3, 5, 9] {
            ring.push(entry(offset));
        }
        assert_eq!((ring.first(), ring.end(), ring.lost()), (0, 3, 0));
        ring.pop();
        assert_eq!((ring.first(), ring.end(), ring.lost()), (1, 3, 3));
        assert!(ring.entry(0).is_none());
        assert_eq!(ring.entry(1).map(|entry| entry.offset), Some(5));
        assert!(ring.entry(3).is_none());
    }

    #[test]
    fn offset_between_two_entries_yields_the_later_one() {
        let mut ring = Ring::default();
        for offset in [3, 5, 9] {
            ring.push(entry(offset));
        }
        assert_eq!(
            [2, 3, 4, 5, 8, 9].map(|offset| ring.number_after(offset)),
            [0, 1, 1, 2, 2, 3]
        );
    }

    #[test]
    fn tags_are_known_back_to_the_last_lost_entry() {
        let mut ring = Ring::default();
        for offset in [3, 5, 9] {
            ring.push(entry(offset));
        }
        ring.pop();
        ring.pop();
        assert_eq!(
            [0, 3, 5, 6, 9].map(|offset| ring.tag_at(offset)),
            [None, None, Some(50), None, Some(90)]
        );
    }

    #[test]
    fn hole_counts_as_lost_but_keeps_its_number() {
        let mut ring = Ring::default();
        ring.push(entry(3));
        ring.push(Entry {
            frame: Bytes::new(),
            ..entry(5)
        });
        ring.push(entry(9));
        assert_eq!((ring.first(), ring.end(), ring.lost()), (0, 3, 5));
        ring.pop();
        assert_eq!(ring.lost(), 5);
    }

    #[test]
    fn cursors_of_the_old_log_continue_once_joined() {
        let mut ring = Ring::default();
        ring.push(entry(3));
        let (old, at_head) = (0, ring.end());
        ring.reset();
        let new = ring.end();
        ring.push(entry(1));
        let continued = |ring: &Ring| [old, at_head, new].map(|it| ring.continues(it));
        assert_eq!(continued(&ring), [None, None, Some(new)]);
        ring.set_joins();
        ring.push(entry(2));
        let next = Some(new + 1);
        assert_eq!(continued(&ring), [next, next, Some(new)]);
    }

    #[test]
    fn byte_count_of_an_emptied_ring_is_zero() {
        let mut ring = Ring::default();
        (1..100).for_each(|offset| ring.push(entry(offset)));
        assert!(ring.bytes() >= 99 * 9);
        while ring.pop().is_some() {}
        assert_eq!((ring.bytes(), ring.len()), (0, 0));
    }
}
