//! An allocator that counts.

#![allow(unsafe_code, dead_code)] // An allocator is unsafe to write; this one hands everything on. Each bench uses its part.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, Ordering::Relaxed},
};

/// The system's allocator, which counts while it is told to. Otherwise it costs next to nothing,
/// so that what is timed in the same program is not slowed down.
pub(crate) struct Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

/// Counts from now on.
pub(crate) fn start() {
    IS_COUNTING.store(true, Relaxed);
}

/// How many bytes more are in use than when counting started.
pub(crate) fn live_bytes() -> isize {
    LIVE_BYTES.load(Relaxed)
}

/// How many allocations (of new memory, or of more) it takes to run this, on all threads.
pub(crate) fn allocations(f: impl FnOnce()) -> u64 {
    let was_counting = IS_COUNTING.swap(true, Relaxed);
    let before = ALLOCATIONS.load(Relaxed);
    f();
    let after = ALLOCATIONS.load(Relaxed);
    IS_COUNTING.store(was_counting, Relaxed);
    after - before
}

fn count(allocations: u64, bytes: isize) {
    if IS_COUNTING.load(Relaxed) {
        ALLOCATIONS.fetch_add(allocations, Relaxed);
        LIVE_BYTES.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(1, new_size as isize - layout.size() as isize);
        unsafe { System.realloc(memory, layout, new_size) }
    }
}
