//! The tags of the latest records of all topics, by offset.
//!
//! A position is known if its record is one of them: only then is it certain that the log has not
//! been rewritten since a client received it.

use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Window {
    /// The offset of the first tag.
    start: u64,
    /// No tag: there was no record, or it could not be read.
    tags: VecDeque<Option<u32>>,
    capacity: usize,
}

impl Window {
    /// A window of the latest `capacity` offsets, which begins after this one.
    pub(crate) fn after(offset: u64, capacity: usize) -> Self {
        Self {
            start: offset + 1,
            tags: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    /// Records the next tag. Offsets that were skipped have no tags.
    pub(crate) fn push(&mut self, offset: u64, tag: u32) {
        let end = self.start + self.tags.len() as u64;
        let holes = offset.saturating_sub(end);
        if holes >= self.capacity as u64 {
            self.tags.clear();
            self.start = offset;
        } else {
            for _ in 0..holes {
                self.push_next(None);
            }
        }
        self.push_next(Some(tag));
    }

    /// The tag of the record at this offset, if it is known.
    pub(crate) fn tag(&self, offset: u64) -> Option<u32> {
        let at = offset.checked_sub(self.start)?;
        *self.tags.get(usize::try_from(at).ok()?)?
    }

    fn push_next(&mut self, tag: Option<u32>) {
        if self.tags.len() == self.capacity {
            self.tags.pop_front();
            self.start += 1;
        }
        self.tags.push_back(tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_keeps_only_the_latest_records() {
        let mut window = Window::after(10, 3);
        for offset in [11, 12, 14] {
            window.push(offset, offset as u32);
        }
        let tags = [10, 11, 12, 13, 14, 15].map(|offset| window.tag(offset));
        assert_eq!(tags, [None, None, Some(12), None, Some(14), None]);
        window.push(100, 100);
        assert_eq!(
            [14, 99, 100].map(|offset| window.tag(offset)),
            [None, None, Some(100)]
        );
    }
}
