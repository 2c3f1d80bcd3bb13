//! How appenders, readers and bodies pass each other without a lock.
//!
//! Nothing else is in here, because loom runs this file through all interleavings: see `loom/`.
//!
//! Where one side leaves a word and then looks at the other's, both words are changed by a
//! read-modify-write: of two on the same flag the later one sees what was done before the earlier
//! one. A plain store on either side would promise nothing, whatever its ordering.

use std::sync::TryLockError;

use super::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// The offset up to which entries are visible.
///
/// An entry is in its ring before this says so. A reader looks here first, and goes no further than
/// what it has seen: so of two rings it never takes a later entry before an earlier one.
pub(super) struct Visible(AtomicU64);

impl Visible {
    pub(super) fn new(offset: u64) -> Self {
        Self(AtomicU64::new(offset))
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Called by the appender alone.
    pub(super) fn set(&self, offset: u64) {
        self.0.store(offset, Ordering::Release);
    }
}

/// Whether a body sleeps, and is to be woken.
pub(super) struct Armed(AtomicBool);

impl Armed {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// The body has left its waker, and looks once more before it sleeps. It sees what was made
    /// visible before this, or whoever made it visible sees the flag.
    pub(super) fn arm(&self) {
        self.0.swap(true, Ordering::AcqRel);
    }

    /// Called after something was made visible: tells whether the body is to be woken, and by
    /// nobody else.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// There is something to read.
pub(super) struct Dirty(AtomicBool);

impl Dirty {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub(super) fn mark(&self) {
        self.0.swap(true, Ordering::SeqCst);
    }

    /// Keeps the mark: the caller may find the reading held, and then must not clear it.
    pub(super) fn is_marked(&self) -> bool {
        self.0.fetch_or(false, Ordering::SeqCst)
    }

    fn clear(&self) {
        self.0.swap(false, Ordering::SeqCst);
    }

    /// Reads, unless somebody else does, until nothing is marked, or so often at most. Who finds the
    /// reading held goes on: whoever holds it looks at the mark after letting it go.
    pub(super) fn pump<T>(
        &self,
        reading: &Mutex<T>,
        max_rounds: usize,
        mut read: impl FnMut(&mut T),
    ) {
        for _ in 0..max_rounds {
            let mut held = match reading.try_lock() {
                Ok(held) => held,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            self.clear();
            read(&mut held);
            drop(held);
            if !self.is_marked() {
                return;
            }
        }
    }
}
