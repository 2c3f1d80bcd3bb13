//! Backplanes: the ordered log behind a broker.
//!
//! A [`Backplane`] is an ordered log with a limited window. Every node replicates that window: one
//! reader per node feeds its broker, in order, including the node's own events. Topics, replay and
//! gaps are then handled once, in the broker.
//!
//! The [`Position`] and the [`TopicName`] of a record are types of the [`broker`](crate::broker)
//! module.
//!
//! [`Memory`] is the log of one process. With the features `redis` and `nats`, several nodes share
//! a `redis::RedisStreams` or a `nats::JetStream`.

#[cfg(any(feature = "nats", feature = "redis"))]
mod envelope;
mod error;
mod memory;
#[cfg(feature = "nats")]
#[cfg_attr(docsrs, doc(cfg(feature = "nats")))]
pub mod nats;
pub(crate) mod record;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod redis;
mod skipped;

pub use error::{AppendError, AppendErrorKind, ReadError};
pub use memory::Memory;
pub use record::Record;
pub(crate) use record::{TopicError, TopicName};
pub(crate) use skipped::Skipped;

use std::{future::Future, pin::Pin};

use futures_core::Stream;

use crate::log::Position;

/// A boxed future, as returned by the methods of [`Backplane`].
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The stream of what was read from a log: see [`Backplane::read`].
pub type RecordStream = Pin<Box<dyn Stream<Item = Result<Read, ReadError>> + Send>>;

/// The position at which a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// Starts with the oldest record that the log retains.
    Window,
    /// Starts after this position, which the reader has read last.
    After(Position),
}

/// An item of a [`RecordStream`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Read {
    /// The next record.
    Record(Position, Record),
    /// Records up to and including this position are missing. Its tag may be 0, for unknown.
    Lost(Position),
    /// A record of this crate that cannot be decoded: a later version has written it, or it is
    /// damaged. It comes with its topic, if that can be read.
    Unreadable(Position, Option<TopicName>),
    /// An entry that is not a record, written by another program. Nothing is missing.
    Skipped(Position),
}

impl Read {
    /// Returns its position in the log.
    pub fn position(&self) -> Position {
        match self {
            Self::Record(position, _)
            | Self::Lost(position)
            | Self::Unreadable(position, _)
            | Self::Skipped(position) => *position,
        }
    }
}

/// An ordered log with a limited window, which nodes share.
///
/// # What the caller guarantees
///
/// A broker has one reader at a time. It appends from any number of tasks.
///
/// # What an implementation guarantees
///
/// 1. Offsets strictly rise within an epoch, and are the same for all readers. The epoch is random
///    and created with the log. The tag of each record is random.
/// 2. A reader receives each record that the log retains once, in the order of the offsets. Dropped
///    records are reported as [`Read::Lost`], before the next record. Records that cannot be
///    decoded are reported as [`Read::Unreadable`], at their positions. The first item of a log
///    that no longer has its first record is a `Lost`.
/// 3. A reader that starts after a position receives what follows it. If that position is no longer
///    in the log as it was (another epoch, another tag), [`read`](Self::read) fails with
///    [`ReadError::rewritten`], or the stream ends with that error. A reader never waits for a
///    position that cannot come.
/// 4. [`head`](Self::head) returns the position of the last record known now, or offset 0. A reader
///    reaches it without another append.
/// 5. An append that succeeds returns the record's position, and each reader receives the record.
///    The error of an append that fails states what is known: see [`AppendErrorKind`].
/// 6. A future or a stream may be dropped at any time. Only its own result is lost; an append may
///    have been carried out.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a backplane",
    label = "cannot be the log of a broker",
    note = "use `Memory`, or implement `tower_sse::backplane::Backplane`"
)]
pub trait Backplane: Send + Sync + 'static {
    /// Appends a record to the log.
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>>;

    /// Reads the log: what it retains from this start on, then what is appended.
    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>>;

    /// Returns the position of the last record.
    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>>;

    /// Returns whether an offset that readers have seen may get another record within one epoch.
    /// Defaults to true.
    ///
    /// That is the case for logs that can lose acknowledged records. A broker on such a log trusts
    /// a position only if it knows the tag.
    fn may_be_rewritten(&self) -> bool {
        true
    }
}
