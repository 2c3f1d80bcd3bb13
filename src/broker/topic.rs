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

use super::subscriber::Subscriber;
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
    subscribers: Mutex<Slab<Arc<Subscriber>>>,
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
            subscribers: Mutex::new(Slab::new()),
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

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<Subscriber>>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Called under the log's lock, so that the appender sees it or it sees the entry.
    pub(super) fn add(&self, subscriber: &Arc<Subscriber>) -> usize {
        let mut subscribers = self.lock();
        let key = subscribers.insert(Arc::clone(subscriber));
        self.readers.store(subscribers.len(), Ordering::Release);
        key
    }

    /// Tells whether none is left.
    pub(super) fn remove(&self, key: usize) -> bool {
        let mut subscribers = self.lock();
        let removed = subscribers.try_remove(key);
        let len = subscribers.len();
        self.readers.store(len, Ordering::Release);
        // Now and then, since it takes a pass over the list.
        if len < subscribers.capacity() / 4 && (len == 0 || len.is_power_of_two()) {
            subscribers.shrink_to_fit();
        }
        drop(subscribers);
        drop(removed);
        len == 0
    }

    pub(super) fn subscribers(&self) -> usize {
        self.readers.load(Ordering::Acquire)
    }

    /// Whether somebody reads from it.
    pub(super) fn is_read(&self) -> bool {
        self.subscribers() > 0
    }

    /// Collects the wakers of those who sleep, all or those alone who are far behind, some at a time,
    /// from this key on. Gives the key to go on with.
    pub(super) fn take_wakers(
        &self,
        from: usize,
        all: bool,
        wakers: &mut Vec<Waker>,
    ) -> Option<usize> {
        let now = Instant::now();
        let subscribers = self.lock();
        let end = (from + CHUNK).min(subscribers.capacity());
        for key in from..end {
            let subscriber = subscribers.get(key);
            if let Some(subscriber) = subscriber.filter(|it| all || it.is_far_behind()) {
                wakers.extend(subscriber.take_waker(now));
            }
        }
        // Keys are reused from the lowest on, so that they stay close to the number of entries;
        // the highest is not known, hence the capacity.
        (end < subscribers.capacity()).then_some(end)
    }
}
