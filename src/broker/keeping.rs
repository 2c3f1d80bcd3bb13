//! What goes from a node's replica, because it is old or because there is no room for it.

use std::time::Duration;

use super::{replica::Replica, store::Store};

/// How many entries are dropped for their age while publishers wait for the lock.
const EXPIRED_AT_A_TIME: usize = 4096;

impl Replica {
    /// Drops what is older than the history's age, some at a time. Gives the time until there is
    /// more to drop.
    pub(super) fn expire(&self) -> Option<Duration> {
        let age = u64::try_from(self.settings.history.age.as_millis()).unwrap_or(u64::MAX);
        let now = self.now();
        let mut log = self.lock();
        let mut next = Some(Duration::ZERO);
        for _ in 0..EXPIRED_AT_A_TIME {
            let oldest = log.oldest_time().map(|time| time.saturating_add(age));
            if oldest.is_none_or(|expires| expires > now) {
                next = oldest.map(|expires| Duration::from_millis(expires - now));
                break;
            }
            log.drop_oldest();
        }
        // Nothing may be published for long: then nobody else gives the room back.
        log.tidy();
        next
    }
}

impl Store {
    /// Drops the oldest entry, whosever it is.
    pub(super) fn drop_oldest(&mut self) {
        while let Some((topic, offset)) = self.order.pop_front() {
            let mut ring = topic.ring_mut();
            if ring.oldest().is_some_and(|oldest| oldest.offset == offset) {
                if let Some(entry) = ring.pop() {
                    self.entries -= 1;
                    self.bytes -= entry.cost();
                }
                let is_empty = ring.len() == 0;
                drop(ring);
                if is_empty {
                    self.bytes -= topic.cost();
                    self.forget_if_idle(&topic);
                }
                return;
            }
        }
    }

    /// Keeps the list of all entries from filling with those that their topics have dropped.
    pub(super) fn tidy(&mut self) {
        if self.order.len() > 2 * self.entries + 1024 {
            self.order.retain(|(topic, offset)| {
                let ring = topic.ring();
                ring.oldest().is_some_and(|oldest| oldest.offset <= *offset)
            });
        }
        if self.order.capacity() > 1024 && self.order.len() < self.order.capacity() / 4 {
            let room = self.order.len() * 2;
            self.order.shrink_to(room);
        }
    }

    /// When the oldest entry came.
    fn oldest_time(&mut self) -> Option<u64> {
        loop {
            let (topic, offset) = self.order.front()?;
            let ring = topic.ring();
            if let Some(oldest) = ring.oldest().filter(|oldest| oldest.offset == *offset) {
                return Some(oldest.time);
            }
            drop(ring);
            self.order.pop_front();
        }
    }
}
