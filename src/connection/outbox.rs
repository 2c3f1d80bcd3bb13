//! The bounded queue of events that are sent straight to one connection.
//!
//! 1. It holds at most `events` events and at most `bytes` bytes; an event that is larger than
//!    `bytes` is taken when nothing else is queued.
//! 2. Senders that wait are served in the order in which they came: one that has not waited does
//!    not overtake one that has.
//! 3. Room is passed on: whoever takes it, or leaves the queue, hands the next waiter to its
//!    caller to be woken, for as long as there is room.
//! 4. It allocates nothing until it is used, and keeps little once it is empty.
//! 5. Events are merged when they come, as many as make one frame. So a burst costs one buffer, not
//!    one for each event that waits; an event that nothing follows is never copied.
//! 6. The last frame is empty only when all is.
//!
//! It knows no lock and wakes nobody: its owner does, outside the lock that guards it.

use std::{collections::VecDeque, mem, task::Waker};

use super::source::{Batch, MERGED};

/// What a frame grows to when a second event comes, at least.
const FIRST_GROWTH: usize = 1024;

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
    /// Those before the last, which nothing more is merged into.
    frames: VecDeque<Frame>,
    last: Frame,
    events: usize,
    bytes: usize,
    /// How many events have been taken, ever.
    sent: u64,
    capacity: Capacity,
    waiters: Waiters,
    next_ticket: u64,
}

/// One or more whole events, that go out together.
#[derive(Debug, Default)]
struct Frame {
    bytes: Vec<u8>,
    events: usize,
}

impl Outbox {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            frames: VecDeque::new(),
            last: Frame::default(),
            events: 0,
            bytes: 0,
            sent: 0,
            capacity,
            waiters: VecDeque::new(),
            next_ticket: 0,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// How many events and bytes wait.
    pub(super) fn queued(&self) -> (usize, usize) {
        (self.events, self.bytes)
    }

    /// How many events have been taken, ever.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many events have been pushed, ever.
    pub(super) fn pushed(&self) -> u64 {
        self.sent + self.events as u64
    }

    /// Moves frames to the batch until it is full. Returns whether nothing is left.
    #[inline]
    pub(super) fn fill(&mut self, batch: &mut Batch) -> bool {
        while self.events > 0 {
            let next = self.frames.front().unwrap_or(&self.last);
            if !batch.admits(next.bytes.len()) {
                return false;
            }
            // Not shrunk to fit. For a vector with room to spare `Bytes` makes a second allocation,
            // a small one; to give the room back, and to take it again for the next event, costs
            // more.
            batch.push_owned(self.pop().unwrap_or_default());
        }
        true
    }

    /// Whether an event of this size may be pushed now, by a sender that holds this ticket.
    #[inline]
    pub(super) fn admits(&self, size: usize, ticket: Option<Ticket>) -> bool {
        let is_next = match self.waiters.front() {
            None => true,
            Some((first, _)) => ticket == Some(*first),
        };
        is_next && self.has_room(size)
    }

    #[inline]
    pub(super) fn push(&mut self, event: Vec<u8>) {
        self.events += 1;
        self.bytes += event.len();
        if !self.last.merge(&event) {
            let frame = Frame {
                bytes: event,
                events: 1,
            };
            let before = mem::replace(&mut self.last, frame);
            if before.events > 0 {
                self.frames.push_back(before);
            }
        }
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
    #[inline]
    pub(super) fn next_waiter(&self) -> Option<Waker> {
        if self.has_room(0) {
            self.waiters.front().map(|(_, waker)| waker.clone())
        } else {
            None
        }
    }

    /// Drops what is queued, and gives every waiter to be woken.
    pub(super) fn clear(&mut self) -> Waiters {
        self.frames = VecDeque::new();
        self.last = Frame::default();
        self.events = 0;
        self.bytes = 0;
        self.dismiss()
    }

    /// Gives every waiter to be woken: there is nothing to wait for any more.
    pub(super) fn dismiss(&mut self) -> Waiters {
        mem::take(&mut self.waiters)
    }

    /// Removes the oldest frame.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        if self.events == 0 {
            return None;
        }
        let frame = match self.frames.pop_front() {
            Some(frame) => frame,
            None => mem::take(&mut self.last),
        };
        if self.frames.is_empty() && self.frames.capacity() > 0 {
            self.frames = VecDeque::new();
        }
        self.events -= frame.events;
        self.sent += frame.events as u64;
        self.bytes -= frame.bytes.len();
        Some(frame.bytes)
    }

    #[inline]
    fn has_room(&self, size: usize) -> bool {
        self.events == 0
            || (self.events < self.capacity.events
                && self.bytes.saturating_add(size) <= self.capacity.bytes)
    }

    fn position(&self, ticket: Ticket) -> Result<usize, usize> {
        self.waiters
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
    }
}

impl Frame {
    /// Takes an event in, if there is one here already and both make one merged frame at most.
    #[inline]
    fn merge(&mut self, event: &[u8]) -> bool {
        let size = self.bytes.len() + event.len();
        if self.events == 0 || size > MERGED {
            return false;
        }
        if size > self.bytes.capacity() {
            let grown = (2 * size).clamp(FIRST_GROWTH, MERGED);
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(event);
        self.events += 1;
        true
    }
}
