//! The log of one process.

use std::{
    collections::VecDeque,
    fmt,
    future::ready,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use slab::Slab;

use super::{AppendError, Backplane, BoxFuture, Read, ReadError, Record, RecordStream, Start};
use crate::log::{Epoch, Position};

/// How many records a reader may be behind before it loses some.
const BACKLOG: usize = 1 << 16;

/// A log in memory, for the brokers of one process.
///
/// It is a handle: clones name the same log, so that several brokers (the nodes of a test, say) can
/// share one. It retains the latest records for those that begin to read later; what its readers
/// have read already is theirs to keep.
///
/// It is gone with the process: after a restart clients are told of a gap, since the epoch is
/// another one.
#[derive(Clone)]
pub struct Memory {
    log: Arc<Log>,
}

struct Log {
    epoch: Epoch,
    /// Guards the records and the places of the readers. Wakers are woken outside it.
    state: Mutex<State>,
}

struct State {
    records: VecDeque<(Position, Record)>,
    head: Position,
    /// The last record that was dropped, or the place before the first.
    dropped: Position,
    /// How many records are kept for later readers.
    retained: usize,
    readers: Slab<Place>,
}

/// Where a reader is.
#[derive(Default)]
struct Place {
    /// The offset of the record that it read last.
    offset: u64,
    waker: Option<Waker>,
}

impl Memory {
    /// A log that retains 65,536 records.
    pub fn new() -> Self {
        Self::with_window(BACKLOG)
    }

    /// A log that retains this many records for those that begin to read later. With 0 it keeps
    /// only what a reader has still to read: enough for one broker.
    ///
    /// A reader that is more than 65,536 records (or the window, where it is larger) behind loses
    /// the oldest, and is told.
    pub fn with_window(records: usize) -> Self {
        let epoch = Epoch::new(fastrand::u64(..));
        let start = Position::new(epoch, 0, 0);
        Self {
            log: Arc::new(Log {
                epoch,
                state: Mutex::new(State {
                    records: VecDeque::new(),
                    head: start,
                    dropped: start,
                    retained: records,
                    readers: Slab::new(),
                }),
            }),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Backplane for Memory {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        // Carried out at the first poll, so that a future that is dropped unpolled appends nothing.
        Box::pin(async move { Ok(self.log.append(record)) })
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(ready(self.log.read(start)))
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(ready(Ok(self.log.lock().head)))
    }

    fn may_be_rewritten(&self) -> bool {
        false
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.log.lock();
        f.debug_struct("Memory")
            .field("head", &state.head)
            .field("records", &state.records.len())
            .field("readers", &state.readers.len())
            .finish_non_exhaustive()
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, record: Record) -> Position {
        let mut state = self.lock();
        let position = Position::new(self.epoch, state.head.offset() + 1, fastrand::u32(..));
        state.head = position;
        state.records.push_back((position, record));
        state.trim();
        let mut wakers = state
            .readers
            .iter_mut()
            .filter_map(|(_, place)| place.waker.take());
        // One reader is the rule: it takes no room to wake it.
        let first = wakers.next();
        let others: Vec<_> = wakers.collect();
        drop(state);
        for waker in first.into_iter().chain(others) {
            waker.wake();
        }
        position
    }

    fn read(self: &Arc<Self>, start: Start) -> Result<RecordStream, ReadError> {
        let mut state = self.lock();
        let offset = match start {
            Start::Window => 0,
            Start::After(position) => {
                if position.epoch() != self.epoch || position.offset() > state.head.offset() {
                    return Err(ReadError::rewritten());
                }
                position.offset()
            }
        };
        let key = state.readers.insert(Place {
            offset,
            waker: None,
        });
        drop(state);
        Ok(Box::pin(Reader {
            log: Arc::clone(self),
            key,
        }))
    }
}

impl State {
    /// Drops what is neither retained nor still to be read, and what is past every bound.
    fn trim(&mut self) {
        while self.records.len() > self.retained {
            let slowest = self.readers.iter().map(|(_, place)| place.offset).min();
            let is_read = match (self.records.front(), slowest) {
                (Some((oldest, _)), Some(slowest)) => oldest.offset() <= slowest,
                _ => true,
            };
            if !is_read && self.records.len() <= self.retained.max(BACKLOG) {
                return;
            }
            if let Some((position, _)) = self.records.pop_front() {
                self.dropped = position;
            }
        }
    }

    /// The oldest offset that is there, or the next one to come.
    fn first(&self) -> u64 {
        let oldest = self.records.front();
        oldest.map_or(self.head.offset() + 1, |(oldest, _)| oldest.offset())
    }
}

struct Reader {
    log: Arc<Log>,
    key: usize,
}

impl Stream for Reader {
    type Item = Result<Read, ReadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.log.lock();
        let first = state.first();
        let next = state.readers[self.key].offset + 1;
        if next < first {
            state.readers[self.key].offset = first - 1;
            return Poll::Ready(Some(Ok(Read::Lost(state.dropped))));
        }
        let at = usize::try_from(next - first).unwrap_or(usize::MAX);
        if let Some((position, record)) = state.records.get(at).cloned() {
            state.readers[self.key].offset = position.offset();
            state.trim();
            return Poll::Ready(Some(Ok(Read::Record(position, record))));
        }
        let old = state.readers[self.key].waker.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        let place = state.readers.try_remove(self.key);
        state.trim();
        drop(state);
        drop(place);
    }
}
