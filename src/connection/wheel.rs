//! A timing wheel over small integer keys, each with at most one timer.
//!
//! 1. A key's timer stands in the slot of its tick modulo the number of slots; timers of later
//!    rounds share the slot and are passed over until their round.
//! 2. Setting, moving and cancelling a timer takes constant time: slots are doubly linked lists
//!    whose links lie in one vector, by key.
//! 3. It knows no clock: its owner says what tick it is.

const SLOTS: usize = 256;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Wheel {
    /// The first key of each slot.
    heads: Box<[u32; SLOTS]>,
    links: Vec<TimerLink>,
    /// Every tick up to this one has been expired.
    expired: u64,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct TimerLink {
    previous: u32,
    next: u32,
    tick: u64,
    is_set: bool,
}

const UNSET: TimerLink = TimerLink {
    previous: NONE,
    next: NONE,
    tick: 0,
    is_set: false,
};

impl Wheel {
    pub(super) fn new() -> Self {
        Self {
            heads: Box::new([NONE; SLOTS]),
            links: Vec::new(),
            expired: 0,
            len: 0,
        }
    }

    /// Sets the timer of a key, in place of the one that it may have. A tick that has been expired
    /// counts as the next one. Gives the tick at which the timer will expire.
    pub(super) fn set(&mut self, key: usize, tick: u64) -> u64 {
        self.cancel(key);
        if self.links.len() <= key {
            self.links.resize(key + 1, UNSET);
        }
        let tick = tick.max(self.expired + 1);
        let slot = slot_of(tick);
        let next = self.heads[slot];
        self.links[key] = TimerLink {
            previous: NONE,
            next,
            tick,
            is_set: true,
        };
        if next != NONE {
            self.links[next as usize].previous = key as u32;
        }
        self.heads[slot] = key as u32;
        self.len += 1;
        tick
    }

    /// As [`set`](Self::set), unless the key has a timer that is earlier.
    pub(super) fn set_earlier(&mut self, key: usize, tick: u64) -> u64 {
        match self.links.get(key) {
            Some(link) if link.is_set && link.tick <= tick => link.tick,
            _ => self.set(key, tick),
        }
    }

    /// Takes the timer of a key away, if it has one.
    pub(super) fn cancel(&mut self, key: usize) {
        let Some(link) = self.links.get_mut(key).filter(|link| link.is_set) else {
            return;
        };
        let TimerLink {
            previous,
            next,
            tick,
            ..
        } = std::mem::replace(link, UNSET);
        if previous == NONE {
            self.heads[slot_of(tick)] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        self.len -= 1;
    }

    /// The tick at which to look next: that of the next timer, or an earlier one at which a slot
    /// has only timers of later rounds.
    pub(super) fn next_tick(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        (self.expired + 1..=self.expired + SLOTS as u64)
            .find(|tick| self.heads[slot_of(*tick)] != NONE)
    }

    /// Takes the timers that are due at `now` out of the wheel.
    pub(super) fn expire(&mut self, now: u64, due: &mut Vec<usize>) {
        let rounds_end = self.expired.saturating_add(SLOTS as u64);
        for tick in self.expired + 1..=now.min(rounds_end) {
            let mut key = self.heads[slot_of(tick)];
            while key != NONE {
                let link = self.links[key as usize];
                if link.tick <= now {
                    due.push(key as usize);
                    self.cancel(key as usize);
                }
                key = link.next;
            }
        }
        self.expired = self.expired.max(now);
    }
}

fn slot_of(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, u64),
        SetEarlier(usize, u64),
        Cancel(usize),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20_usize, 0..2_000_u64).prop_map(|(key, after)| Step::Set(key, after)),
            (0..20_usize, 0..2_000_u64).prop_map(|(key, after)| Step::SetEarlier(key, after)),
            (0..20_usize).prop_map(Step::Cancel),
            (0..700_u64).prop_map(Step::Advance),
        ]
    }

    proptest! {
        #[test]
        fn wheel_expires_the_same_keys_as_a_map(steps in prop::collection::vec(step(), 1..200)) {
            let mut wheel = Wheel::new();
            let mut model = BTreeMap::new();
            let mut now = 0;
            for step in steps {
                match step {
                    Step::Set(key, after) => {
                        let tick = wheel.set(key, now + after);
                        prop_assert_eq!(tick, (now + after).max(now + 1));
                        model.insert(key, tick);
                    }
                    Step::SetEarlier(key, after) => {
                        let tick = wheel.set_earlier(key, now + after);
                        let earlier = model.get(&key).copied().unwrap_or(u64::MAX);
                        prop_assert_eq!(tick, earlier.min((now + after).max(now + 1)));
                        model.insert(key, tick);
                    }
                    Step::Cancel(key) => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    Step::Advance(by) => {
                        now += by;
                        let mut due = Vec::new();
                        wheel.expire(now, &mut due);
                        due.sort_unstable();
                        let expected: Vec<_> =
                            model.extract_if(.., |_, tick| *tick <= now).map(|(key, _)| key).collect();
                        prop_assert_eq!(due, expected);
                    }
                }
                let earliest = model.values().min().copied();
                let next = wheel.next_tick();
                prop_assert_eq!(next.is_none(), earliest.is_none());
                prop_assert!(next <= earliest && next.is_none_or(|tick| tick > now));
            }
        }
    }
}
