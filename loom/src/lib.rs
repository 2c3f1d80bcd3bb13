//! Models of the broker's hand-shakes, run through all interleavings: one per behaviour.
//!
//! They include the file that the broker itself is built with; only the types below it are loom's.
//! An event that is missed leaves a thread that waits for ever, which loom reports as a deadlock.

#![cfg(test)]

#[path = "../../src/broker/handshake.rs"]
mod handshake;

mod sync {
    pub(super) use loom::sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };
}

use loom::{
    sync::{
        Arc, Mutex, Notify,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use handshake::{Armed, Dirty, Visible};

/// A body, and the appender that wakes it.
struct Stream {
    visible: Visible,
    armed: Armed,
    waker: Notify,
}

impl Stream {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            visible: Visible::new(0),
            armed: Armed::new(),
            waker: Notify::new(),
        })
    }

    fn publish(&self, offset: u64) {
        self.visible.set(offset);
        self.wake();
    }

    fn wake(&self) {
        if self.armed.take() {
            self.waker.notify();
        }
    }

    /// What a body does at a poll: pulls, arms, pulls once more, sleeps.
    fn sleep_until_visible(&self, offset: u64) {
        while self.visible.get() < offset {
            self.armed.arm();
            if self.visible.get() >= offset {
                return;
            }
            self.waker.wait();
        }
    }
}

#[test]
fn body_going_to_sleep_misses_no_event() {
    loom::model(|| {
        let stream = Stream::new();
        let appender = {
            let stream = Arc::clone(&stream);
            thread::spawn(move || {
                stream.publish(1);
                stream.publish(2);
            })
        };
        stream.sleep_until_visible(1);
        stream.sleep_until_visible(2);
        appender.join().unwrap();
    });
}

/// Passes overlap when the broker's task ends while a publisher wakes by itself.
#[test]
fn body_woken_by_two_passes_misses_no_event() {
    loom::model(|| {
        let stream = Stream::new();
        let other_pass = {
            let stream = Arc::clone(&stream);
            thread::spawn(move || stream.wake())
        };
        let appender = {
            let stream = Arc::clone(&stream);
            thread::spawn(move || stream.publish(1))
        };
        stream.sleep_until_visible(1);
        appender.join().unwrap();
        other_pass.join().unwrap();
    });
}

/// A ring, and its end, which readers look at before they take its lock.
struct Ring {
    end: AtomicU64,
    entries: Mutex<Vec<u64>>,
}

impl Ring {
    fn new() -> Self {
        Self {
            end: AtomicU64::new(0),
            entries: Mutex::new(Vec::new()),
        }
    }

    fn push(&self, offset: u64) {
        let mut entries = self.entries.lock().unwrap();
        entries.push(offset);
        self.end.store(entries.len() as u64, Ordering::Release);
    }

    fn entry(&self, at: usize) -> Option<u64> {
        if self.end.load(Ordering::Acquire) <= at as u64 {
            return None;
        }
        self.entries.lock().unwrap().get(at).copied()
    }
}

#[test]
fn reader_merges_two_rings_in_offset_order() {
    loom::model(|| {
        let visible = Arc::new(Visible::new(0));
        let rings = Arc::new([Ring::new(), Ring::new()]);
        let appender = {
            let (visible, rings) = (Arc::clone(&visible), Arc::clone(&rings));
            thread::spawn(move || {
                for (offset, ring) in [(1, 0), (2, 1), (3, 0)] {
                    rings[ring].push(offset);
                    visible.set(offset);
                }
            })
        };

        let mut next = [0, 0];
        let mut taken = Vec::new();
        let mut pull = || {
            let seen = visible.get();
            loop {
                let at = [0, 1].map(|ring| rings[ring].entry(next[ring]).filter(|it| *it <= seen));
                let Some(entry) = at.into_iter().flatten().min() else {
                    break;
                };
                next[usize::from(at[0] != Some(entry))] += 1;
                taken.push(entry);
            }
        };
        // Once while the appender is at work, and once after it.
        pull();
        appender.join().unwrap();
        pull();
        assert_eq!(taken, [1, 2, 3]);
    });
}

/// The broker's reading: publishers add to a log and read it themselves, unless somebody does.
#[test]
fn record_added_while_the_read_lock_is_held_is_read() {
    let mut model = loom::model::Builder::new();
    // Three threads and four locks are too many interleavings to run all.
    model.preemption_bound = Some(2);
    model.check(|| {
        let dirty = Arc::new(Dirty::new());
        let log = Arc::new(Mutex::new(Vec::new()));
        let read = Arc::new(Mutex::new(Vec::new()));
        let publish = |record: u64| {
            let (dirty, log, read) = (Arc::clone(&dirty), Arc::clone(&log), Arc::clone(&read));
            move || {
                log.lock().unwrap().push(record);
                dirty.mark();
                dirty.pump(&read, usize::MAX, |read| {
                    read.append(&mut log.lock().unwrap());
                    // Others come here, where nothing is read any more and the reading is held.
                    dirty.is_marked();
                });
            }
        };
        let others = [1, 2].map(|record| thread::spawn(publish(record)));
        publish(3)();
        for other in others {
            other.join().unwrap();
        }
        let mut read = read.lock().unwrap().clone();
        read.sort_unstable();
        assert_eq!(read, [1, 2, 3]);
        assert!(log.lock().unwrap().is_empty());
    });
}
