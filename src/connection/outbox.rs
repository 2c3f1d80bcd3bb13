//! The bounded queue of events that are sent straight to one connection.
//!
//! 1. It holds at most `events` frames and at most `bytes` bytes; a frame that is larger than
//!    `bytes` is taken when nothing else is queued.
//! 2. Senders that wait are served in the order in which they came: one that has not waited does
//!    not overtake one that has.
//! 3. Room is passed on: whoever takes it, or leaves the queue, hands the next waiter to its
//!    caller to be woken, for as long as there is room.
//! 4. It allocates nothing until it is used, and keeps little once it is empty.
//!
//! It knows no lock and wakes nobody: its owner does, outside the lock that guards it.

use std::{collections::VecDeque, mem, task::Waker};

use bytes::Bytes;

/// How large a merged frame may become.
const MERGED: usize = 32 * 1024;

/// How many places an empty queue keeps.
const KEPT: usize = 8;

/// How much an outbox takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// A place in the queue of waiting senders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// Those who wait for room, first come, first served.
pub(super) type Waiters = VecDeque<(Ticket, Waker)>;

#[derive(Debug)]
pub(super) struct Outbox {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    capacity: Capacity,
    waiters: Waiters,
    next_ticket: u64,
}

impl Outbox {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            frames: VecDeque::new(),
            bytes: 0,
            capacity,
            waiters: VecDeque::new(),
            next_ticket: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether a frame of this size may be pushed now, by a sender that holds this ticket.
    pub(super) fn admits(&self, size: usize, ticket: Option<Ticket>) -> bool {
        let is_next = match self.waiters.front() {
            None => true,
            Some((first, _)) => ticket == Some(*first),
        };
        is_next && self.has_room(size)
    }

    pub(super) fn push(&mut self, frame: Vec<u8>) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Enters the queue of waiting senders, or stays at the place taken before. Gives back the
    /// waker that stood there, to be dropped outside the lock.
    pub(super) fn wait(
        &mut self,
        ticket: Option<Ticket>,
        waker: &Waker,
    ) -> (Ticket, Option<Waker>) {
        if let Some(ticket) = ticket {
            if let Ok(at) = self.position(ticket) {
                let place = &mut self.waiters[at].1;
                if place.will_wake(waker) {
                    return (ticket, None);
                }
                let old = mem::replace(place, waker.clone());
                return (ticket, Some(old));
            }
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiters.push_back((ticket, waker.clone()));
        (ticket, None)
    }

    /// Leaves the queue of waiting senders. Gives back the waker that stood there, to be dropped
    /// outside the lock.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<Waker> {
        let at = self.position(ticket).ok()?;
        let (_, waker) = self.waiters.remove(at)?;
        if self.waiters.is_empty() {
            self.waiters = VecDeque::new();
        }
        Some(waker)
    }

    /// The waiter to wake, if there is room.
    pub(super) fn next_waiter(&self) -> Option<Waker> {
        if self.has_room(0) {
            self.waiters.front().map(|(_, waker)| waker.clone())
        } else {
            None
        }
    }

    /// Takes what is queued, up to one merged frame's worth, behind `first`.
    ///
    /// A single frame goes out as it is, without a copy.
    pub(super) fn take(&mut self, first: Option<Vec<u8>>) -> Option<Bytes> {
        let first = match first {
            Some(first) => first,
            None => self.pop()?,
        };
        let mut size = first.len();
        let mut count = 0;
        for frame in &self.frames {
            if size + frame.len() > MERGED {
                break;
            }
            size += frame.len();
            count += 1;
        }
        let taken = if count == 0 {
            first
        } else {
            let mut merged = Vec::with_capacity(size);
            merged.extend_from_slice(&first);
            for frame in self.frames.drain(..count) {
                merged.extend_from_slice(&frame);
            }
            self.bytes -= merged.len() - first.len();
            merged
        };
        if self.frames.is_empty() && self.frames.capacity() > KEPT {
            self.frames = VecDeque::new();
        }
        Some(taken.into())
    }

    /// Drops what is queued, and gives every waiter to be woken.
    pub(super) fn clear(&mut self) -> Waiters {
        self.frames = VecDeque::new();
        self.bytes = 0;
        self.dismiss()
    }

    /// Gives every waiter to be woken: there is nothing to wait for any more.
    pub(super) fn dismiss(&mut self) -> Waiters {
        mem::take(&mut self.waiters)
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    fn has_room(&self, size: usize) -> bool {
        self.frames.is_empty()
            || (self.frames.len() < self.capacity.events
                && self.bytes.saturating_add(size) <= self.capacity.bytes)
    }

    fn position(&self, ticket: Ticket) -> Result<usize, usize> {
        self.waiters
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
    }
}
