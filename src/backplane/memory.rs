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
/// It is a handle: clones refer to the same log, so that several brokers (such as the nodes of a
/// test) can share it. It retains the latest records for readers that start later.
///
/// The log ends with the process. After a restart the epoch is another one, and a gap is announced
/// to clients that reconnect.
#[derive(Clone)]
pub struct Memory {
    log: Arc<MemoryLog>,
}

struct MemoryLog {
    epoch: Epoch,
    /// Guards the records and the offsets of the readers. Wakers are woken outside it.
    state: Mutex<MemoryState>,
}

struct MemoryState {
    records: VecDeque<(Position, Record)>,
    head: Position,
    /// The last record that was dropped, or the position before the first.
    dropped: Position,
    /// How many records are kept for later readers.
    retained: usize,
    readers: Slab<ReaderOffset>,
}

/// The state of one reader.
#[derive(Default)]
struct ReaderOffset {
    /// The offset of the record that it read last.
    offset: u64,
    waker: Option<Waker>,
}

impl Memory {
    /// Returns a log that retains 65,536 records.
    pub fn new() -> Self {
        Self::with_window(BACKLOG)
    }

    /// Returns a log that retains this many records for readers that start later. With 0 it keeps
    /// only what a reader has still to read, which is enough for one broker.
    ///
    /// A reader that is more than 65,536 records behind (or more than the window, if that is
    /// larger) loses the oldest. The loss is reported as [`Read::Lost`].
    pub fn with_window(records: usize) -> Self {
        let epoch = Epoch::new(fastrand::u64(..));
        let start = Position::new(epoch, 0, 0);
        Self {
            log: Arc::new(MemoryLog {
                epoch,
                state: Mutex::new(MemoryState {
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

impl MemoryLog {
    fn lock(&self) -> MutexGuard<'_, MemoryState> {
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
            .filter_map(|(_, reader)| reader.waker.take());
        // Mostly there is one reader, which is woken without an allocation.
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
        let key = state.readers.insert(ReaderOffset {
            offset,
            waker: None,
        });
        drop(state);
        Ok(Box::pin(MemoryReader {
            log: Arc::clone(self),
            key,
        }))
    }
}

impl MemoryState {
    /// Drops what is neither retained nor still to be read, and what is over all limits.
    fn trim(&mut self) {
        while self.records.len() > self.retained {
            let slowest = self.readers.iter().map(|(_, reader)| reader.offset).min();
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

struct MemoryReader {
    log: Arc<MemoryLog>,
    key: usize,
}

impl Stream for MemoryReader {
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

impl Drop for MemoryReader {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        let reader = state.readers.try_remove(self.key);
        state.trim();
        drop(state);
        drop(reader);
    }
}
