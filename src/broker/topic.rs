//! A topic: its ring, and who reads from it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
};

use slab::Slab;
use tokio::time::Instant;

use super::waiter::Waiter;
use crate::{
    backplane::TopicName,
    log::{Entry, Ring},
};

/// How many are woken at a time.
const CHUNK: usize = 256;

pub(super) struct Topic {
    pub(super) name: TopicName,
    /// Guards the frames. Written by the appender alone.
    ring: RwLock<Ring>,
    /// The ring's end: the number of its next entry. A reader that is there needs no lock.
    end: AtomicU64,
    /// Guards the list of those who read. A connection's lock may be taken under it, never the
    /// other way round.
    waiters: Mutex<Slab<Arc<Waiter>>>,
    /// How many there are.
    readers: AtomicUsize,
    /// It has been entered in the list of topics whose subscribers are to be woken.
    pub(super) is_dirty: AtomicBool,
}

impl Topic {
    pub(super) fn new(name: TopicName) -> Self {
        Self {
            name,
            ring: RwLock::default(),
            end: AtomicU64::new(0),
            waiters: Mutex::new(Slab::new()),
            readers: AtomicUsize::new(0),
            is_dirty: AtomicBool::new(false),
        }
    }

    /// What it counts against the broker's bound in bytes, besides its entries, while it has any.
    pub(super) fn cost(&self) -> usize {
        512 + self.name.as_str().len()
    }

    // ===== frames =====

    pub(super) fn ring(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ring_mut(&self) -> RwLockWriteGuard<'_, Ring> {
        self.ring.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an entry, and drops what is over these bounds. Tells whether it was empty before, and
    /// how many entries and bytes it has dropped.
    pub(super) fn push(&self, entry: Entry, events: usize, bytes: usize) -> (bool, usize, usize) {
        let mut ring = self.ring_mut();
        let mut dropped = (ring.len() == 0, 0, 0);
        ring.push(entry);
        while ring.len() > events || (ring.bytes() > bytes && ring.len() > 1) {
            if let Some(entry) = ring.pop() {
                dropped.1 += 1;
                dropped.2 += entry.cost();
            }
        }
        self.end.store(ring.end(), Ordering::Release);
        dropped
    }

    /// Whether there may be an entry of this number or a later one.
    pub(super) fn reaches(&self, number: u64) -> bool {
        self.end.load(Ordering::Acquire) > number
    }

    // ===== subscribers =====

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<Waiter>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called under the log's lock, so that the appender sees it or it sees the entry.
    pub(super) fn add(&self, waiter: &Arc<Waiter>) -> usize {
        let mut waiters = self.lock();
        let key = waiters.insert(Arc::clone(waiter));
        self.readers.store(waiters.len(), Ordering::Release);
        key
    }

    /// Tells whether none is left.
    pub(super) fn remove(&self, key: usize) -> bool {
        let mut waiters = self.lock();
        let removed = waiters.try_remove(key);
        let len = waiters.len();
        self.readers.store(len, Ordering::Release);
        // Now and then, since it takes a pass over the list.
        if len < waiters.capacity() / 4 && (len == 0 || len.is_power_of_two()) {
            waiters.shrink_to_fit();
        }
        drop(waiters);
        drop(removed);
        len == 0
    }

    pub(super) fn subscriber_count(&self) -> usize {
        self.readers.load(Ordering::Acquire)
    }

    /// Whether somebody reads from it.
    pub(super) fn is_read(&self) -> bool {
        self.subscriber_count() > 0
    }

    /// Collects the wakers of connections that sleep, some at a time, from this key on: all of them,
    /// or only those whose last id is older than an offset. Returns the key to continue with.
    pub(super) fn take_wakers(
        &self,
        from: usize,
        behind: Option<u64>,
        wakers: &mut Vec<Waker>,
    ) -> Option<usize> {
        let now = Instant::now();
        let waiters = self.lock();
        let end = (from + CHUNK).min(waiters.capacity());
        let is_meant = |waiter: &&Arc<Waiter>| behind.is_none_or(|offset| waiter.is_behind(offset));
        for key in from..end {
            if let Some(waiter) = waiters.get(key).filter(is_meant) {
                wakers.extend(waiter.take_waker(now));
            }
        }
        // Keys are reused from the lowest on, so that they stay close to the number of entries;
        // the highest is not known, hence the capacity.
        (end < waiters.capacity()).then_some(end)
    }
}
