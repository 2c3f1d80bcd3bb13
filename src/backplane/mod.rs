//! Backplanes: the ordered log behind a broker.
//!
//! A [`Backplane`] is an ordered, bounded log. Every node is a replica of what the log retains:
//! one reader for each node feeds its broker, in order, with the node's own events too. All that
//! concerns topics, replay and gaps then happens once, in the broker.
//!
//! [`Memory`] is the log of one process. With the features `redis` and `nats`,
//! `redis::RedisStreams` and `nats::JetStream` are such that many share.

#[cfg(any(feature = "nats", feature = "redis"))]
mod envelope;
mod error;
mod memory;
#[cfg(feature = "nats")]
#[cfg_attr(docsrs, doc(cfg(feature = "nats")))]
pub mod nats;
mod record;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod redis;
mod skipped;

pub use error::{AppendError, AppendErrorKind, ReadError};
pub use memory::Memory;
pub use record::{Record, TopicError, TopicName};
pub(crate) use skipped::Skipped;

use std::{future::Future, pin::Pin};

use futures_core::Stream;

use crate::log::Position;

/// A future in a box, as a [`Backplane`] gives it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a [`Backplane`] reads: see [`Backplane::read`].
pub type RecordStream = Pin<Box<dyn Stream<Item = Result<Read, ReadError>> + Send>>;

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the oldest record that the log retains.
    Window,
    /// After this one, which the reader has read last.
    After(Position),
}

/// What a reader gets.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Read {
    /// The next record.
    Record(Position, Record),
    /// Records up to this place, this one included, are missing. Its tag may be 0, for unknown.
    Lost(Position),
    /// A record of ours stands here that cannot be understood: a later version has written it, or
    /// it is damaged. With its topic, if at least that can be read.
    Unreadable(Position, Option<TopicName>),
    /// Something that is no record stands here, written by somebody else: nothing is missing.
    Skipped(Position),
}

impl Read {
    /// Its place in the log.
    pub fn position(&self) -> Position {
        match self {
            Self::Record(position, _)
            | Self::Lost(position)
            | Self::Unreadable(position, _)
            | Self::Skipped(position) => *position,
        }
    }
}

/// An ordered, bounded log that nodes share.
///
/// # What the caller guarantees
///
/// A broker has one reader at a time. It appends from any number of tasks.
///
/// # What an implementation guarantees
///
/// 1. Offsets strictly rise within an epoch, for all readers in the same way. The epoch is random,
///    made with the log; so is each record's tag.
/// 2. A reader gets each record that the log retains once, in the order of the offsets. What it
///    cannot get, because the log has dropped it, it is told of by [`Read::Lost`], before the next
///    record; what cannot be understood, by [`Read::Unreadable`], in its place. The first item of a log that no longer has its
///    first record is a `Lost`.
/// 3. A reader that begins after a position gets what follows it; if that place is not in the log
///    any more as it was (another epoch, another tag), [`read`](Self::read) fails with
///    [`ReadError::rewritten`], or the stream ends with it. It never waits for a place that cannot
///    come.
/// 4. [`head`](Self::head) is the place of the last record as it is known now, or offset 0. A reader
///    reaches it without anything being appended.
/// 5. An append that succeeds gives the record's place, and each reader gets the record. One that
///    fails says what is known: see [`AppendErrorKind`].
/// 6. Dropping a future or a stream at any time loses nothing but what it would have given; an
///    append may have been carried out.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a backplane",
    label = "cannot be the log of a broker",
    note = "use `Memory`, or implement `tower_sse::backplane::Backplane`"
)]
pub trait Backplane: Send + Sync + 'static {
    /// Appends a record to the log.
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>>;

    /// Reads the log: what it retains from the start on, then what comes.
    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>>;

    /// The place of the last record.
    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>>;

    /// Whether another record may come to stand at an offset that readers have seen, within one
    /// epoch: so is it with logs that can lose acknowledged records. A broker of such a log trusts
    /// no place whose tag it does not know.
    fn may_be_rewritten(&self) -> bool {
        true
    }
}
