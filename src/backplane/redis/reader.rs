//! What reads the log, on a connection of its own.
//!
//! A read that waits for records takes the connection for itself: nothing else is sent on it
//! meanwhile, and it is given up when nothing is heard for longer than Redis was reported to wait.
//! Redis says nothing of a log that is gone or shorter than it was, it just waits: so whenever a
//! wait has ended without a record, the log is checked.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use redis::Value;

use super::{
    RedisShared,
    connection::{Connection, ReadFailure, Side},
    entry::{self, Id, StreamEntry},
    error::Unexpected,
    sequence::{Sequence, tag_of},
};
use crate::{
    backplane::{Read, ReadError, Start},
    log::Position,
};

/// How long Redis waits for a record before it says that there is none.
const BLOCK: Duration = Duration::from_secs(1);

/// How much longer a response may take.
const EXTRA_TIMEOUT: Duration = Duration::from_secs(2);

/// The maximum number of entries that are read at once, and the number to begin with.
const MAX_AT_ONCE: usize = 256;
pub(super) const AT_FIRST: usize = 32;

/// About how many bytes are read at once: an answer has to come in its time, over slow lines too.
const BYTES: usize = 1 << 20;

struct RedisReader {
    shared: Arc<RedisShared>,
    connection: Connection,
    sequence: Sequence,
    /// The log goes further, or did: there is something to read, or lost.
    head: Option<Position>,
}

/// What a step gives: what was read, and why there is no more.
type StepResult = (Box<RedisReader>, VecDeque<Read>, Option<ReadError>);

pub(super) struct Records {
    step: Pin<Box<dyn Future<Output = StepResult> + Send>>,
    reads: VecDeque<Read>,
    /// Given once, after what was read.
    end: Option<ReadError>,
    has_ended: bool,
}

impl Records {
    pub(super) async fn open(shared: Arc<RedisShared>, start: Start) -> Result<Self, ReadError> {
        let reader = RedisReader::open(Arc::clone(&shared), start).await?;
        Ok(Self {
            step: Box::pin(Box::new(reader).step()),
            reads: VecDeque::new(),
            end: None,
            has_ended: false,
        })
    }
}

impl Stream for Records {
    type Item = Result<Read, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(read) = self.reads.pop_front() {
                return Poll::Ready(Some(Ok(read)));
            }
            if let Some(error) = self.end.take() {
                return Poll::Ready(Some(Err(error)));
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            let (reader, reads, end) = ready!(self.step.as_mut().poll(cx));
            self.reads = reads;
            self.has_ended = end.is_some();
            self.end = end;
            if !self.has_ended {
                self.step = Box::pin(reader.step());
            }
        }
    }
}

impl RedisReader {
    async fn open(shared: Arc<RedisShared>, start: Start) -> Result<Self, ReadError> {
        let unavailable = |failure: ReadFailure| {
            let answers = failure.is_answer();
            shared.health.set(Side::Read, Some(answers));
            ReadError::unavailable(failure.into_cause())
        };
        let location = &shared.location;
        let connected = location
            .connect("tower-sse-read", BLOCK + EXTRA_TIMEOUT)
            .await;
        let mut connection = connected.map_err(|error| unavailable(error.into()))?;
        let state = connection.state(location).await.map_err(unavailable)?;
        let max_record = location.options.max_record;
        let sequence = match start {
            Start::Window => Sequence::from_start(&state, max_record),
            Start::After(position) => {
                let found = entry_at(&shared, &mut connection, position.offset()).await;
                let found = found.map_err(unavailable)?;
                Sequence::after(position, found.as_ref(), &state, max_record)?
            }
        };
        shared.health.set(Side::Read, Some(true));
        let head = sequence.compare(&state)?.then(|| state.head());
        Ok(Self {
            shared,
            connection,
            sequence,
            head,
        })
    }

    /// Reads until there is something to report.
    async fn step(mut self: Box<Self>) -> StepResult {
        let mut reads = VecDeque::new();
        loop {
            let read = self.read(&mut reads).await;
            let skipped = std::mem::take(&mut self.sequence.skipped);
            self.shared.skipped.add(skipped);
            if matches!(&read, Err(ReadStop::Failure(failure)) if !failure.is_answer()) {
                // Perhaps it was too much for the line. One at least has to come through.
                self.shared.at_once.store(1, Ordering::Relaxed);
            }
            let end = match read {
                Ok(()) if reads.is_empty() => continue,
                Ok(()) => None,
                Err(ReadStop::End(error)) => Some(error),
                Err(ReadStop::Failure(failure)) => {
                    let answers = failure.is_answer();
                    self.shared.health.set(Side::Read, Some(answers));
                    if failure.is_wrong_type() {
                        // Whatever it is that stands there now, what was there is gone.
                        reads.push_back(Read::Lost(self.sequence.reported()));
                    }
                    Some(ReadError::unavailable(failure.into_cause()))
                }
            };
            return (self, reads, end);
        }
    }

    /// Reads once.
    async fn read(&mut self, reads: &mut VecDeque<Read>) -> Result<(), ReadStop> {
        let head = self.head.take();
        let entries = self.entries(head.is_none()).await?;
        if !entries.is_empty() {
            for entry in entries {
                self.take(&entry, reads).await?;
            }
            // There may be more, and then it need not be waited for.
            return Ok(());
        }
        if let Some(head) = head {
            reads.push_back(self.sequence.lose_up_to(head));
            return Ok(());
        }
        let state = self.connection.state(&self.shared.location).await?;
        self.head = self.sequence.compare(&state)?.then(|| state.head());
        Ok(())
    }

    async fn take(
        &mut self,
        entry: &StreamEntry,
        reads: &mut VecDeque<Read>,
    ) -> Result<(), ReadStop> {
        let mut report = |read| reads.push_back(read);
        if self.sequence.push(entry, &mut report).is_ok() {
            return Ok(());
        }
        // Is the log another one, or is it this one that is so?
        let state = self.connection.state(&self.shared.location).await?;
        let reported = self.sequence.reported();
        let found = entry_at(&self.shared, &mut self.connection, reported.offset()).await?;
        let is_there =
            reported.offset() == 0 || found.is_some_and(|it| tag_of(&it) == reported.tag());
        if state.head().epoch() != reported.epoch() || !is_there {
            return Err(ReadError::rewritten().into());
        }
        self.sequence.push_anyway(entry, &mut report);
        Ok(())
    }

    /// The next entries; none, if none has come while they were waited for.
    async fn entries(&mut self, waits: bool) -> Result<Vec<StreamEntry>, ReadFailure> {
        let mut command = redis::cmd("XREAD");
        let count = self.shared.at_once.load(Ordering::Relaxed);
        command.arg("COUNT").arg(count);
        if waits {
            command.arg("BLOCK").arg(BLOCK.as_millis() as u64);
        }
        command
            .arg("STREAMS")
            .arg(&self.shared.location.stream)
            .arg(self.sequence.id.to_string());
        let reply: Value = self.connection.query(&command).await?;
        let entries = entry::of_xread(reply);
        let entries = entries.ok_or_else(|| Unexpected("no answer to XREAD".to_owned()))?;
        let bytes: usize = entries.iter().map(|entry| entry.envelope.len()).sum();
        let fits = entries.len() * BYTES / bytes.max(1);
        if entries.len() == count || fits < count {
            let next = fits.min(2 * count).clamp(1, MAX_AT_ONCE);
            self.shared.at_once.store(next, Ordering::Relaxed);
        }
        Ok(entries)
    }
}

/// What stands at this offset.
async fn entry_at(
    shared: &RedisShared,
    connection: &mut Connection,
    offset: u64,
) -> Result<Option<StreamEntry>, ReadFailure> {
    let id = Id(offset, 0).to_string();
    let mut command = redis::cmd("XRANGE");
    command.arg(&shared.location.stream).arg(&id).arg(&id);
    let reply: Value = connection.query(&command).await?;
    let entries = entry::of_xrange(reply);
    let entries = entries.ok_or_else(|| Unexpected("no answer to XRANGE".to_owned()))?;
    Ok(entries.into_iter().next())
}

impl Drop for RedisReader {
    fn drop(&mut self) {
        self.shared.health.left(Side::Read);
    }
}

enum ReadStop {
    Failure(ReadFailure),
    End(ReadError),
}

impl From<ReadFailure> for ReadStop {
    fn from(failure: ReadFailure) -> Self {
        Self::Failure(failure)
    }
}

impl From<ReadError> for ReadStop {
    fn from(error: ReadError) -> Self {
        Self::End(error)
    }
}
