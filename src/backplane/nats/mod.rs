//! A log in NATS JetStream, for brokers on many nodes.
//!
//! [`JetStream`] keeps the records of all topics in one stream, under one subject: the topics' names
//! travel inside the messages, so that no character of theirs has a meaning to the server. The
//! stream is made if there is none; one that is there is used as it is. Its sequence numbers are the
//! offsets of the log; what it retains is what a node that starts reads first.
//!
//! ```no_run
//! use tower_sse::{Broker, Event, backplane::nats::JetStream};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Broker::new(JetStream::connect("nats://127.0.0.1").await?);
//! broker.publish("orders", Event::message("placed")).await?; // reaches all nodes
//! # Ok(())
//! # }
//! ```
//!
//! # One connection
//!
//! A handle, with all its clones, has one connection to the server, for appends and for reading. A
//! broker reads through one consumer, however many subscribe to it; the consumer is made anew after
//! every reconnect, and goes with the reader. Once a second the reader asks what has become of the
//! stream, so that a stream that was purged, deleted or made anew is noticed while nothing is
//! published.
//!
//! The user needs the questions `$JS.API.STREAM.INFO`, `CREATE` and `MSG.GET`, and
//! `$JS.API.CONSUMER.CREATE` and `MSG.NEXT`, for the stream; the subject; and `_INBOX.>`.
//!
//! A connection with TLS is made with rustls, and its default provider for the process: where none is
//! installed when TLS is first set up, that is *ring*.
//!
//! # When the server cannot be reached
//!
//! A service starts without it: [`connect`](JetStreamOptions::connect) waits for it for at most a
//! second. Event streams open, and wait; an append fails at once as
//! [`NotSent`](super::AppendErrorKind::NotSent). The connection is tried again for as long as there
//! is a handle, at most half a second apart, with jitter. Then reading goes on where it was.
//!
//! An append that was on its way when the connection broke is repeated, once the server is there
//! again within its [time](JetStreamOptions::append_timeout): each carries an id by which the server
//! drops what it has already. After the timeout it fails as
//! [`MaybeSent`](super::AppendErrorKind::MaybeSent).
//!
//! # What may be lost
//!
//! With file storage a server that is killed and restarted loses nothing that it has acknowledged.
//! A machine that fails may lose what its disk did not have yet; a stream in memory is lost with
//! its server. Either is found, and announced as a gap: a stream that was made anew has another
//! epoch, and each record a random tag by which a rewritten one is known.
//!
//! # Clusters
//!
//! With several URLs any of the servers will do, and those that they name are gone to as well. With
//! [`replicas`](JetStreamOptions::replicas) the stream outlives the server that leads it: the others
//! elect another one, which takes them 4 to 9 seconds; meanwhile appends wait, within their time.
//!
//! # What others write
//!
//! Messages that no broker has written are skipped. Those of a later version of this crate, damaged
//! ones, and ones above the [limit](JetStreamOptions::max_record) are reported as
//! [`Read::Unreadable`](super::Read::Unreadable). [`skipped`](JetStream::skipped) counts both.

mod api;
mod append;
mod connection;
mod error;
mod found;
mod log;
mod options;
mod reader;
mod session;
mod settings;

pub use error::ConnectError;
pub use options::JetStreamOptions;

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use self::log::StreamLog;
use super::{AppendError, Backplane, BoxFuture, ReadError, Record, RecordStream, Start};
use crate::log::Position;

/// A log in NATS JetStream. See the [module](self).
///
/// It is a handle: clones name the same log, and share its connection, which ends with the last of
/// them and of their readers.
#[derive(Clone)]
pub struct JetStream {
    log: Arc<StreamLog>,
}

impl JetStream {
    /// The log in the stream `tower-sse` of the server at this URL; [`JetStreamOptions`] sets more.
    ///
    /// The server need not be there: it is waited for for a second, then connected to in the
    /// background, and again whenever it was lost. Until then streams open, and publishing fails.
    ///
    /// # Errors
    ///
    /// If the URL is none that a NATS server is known by.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, there is no connection.
    ///
    /// # Panics
    ///
    /// If there is no Tokio runtime.
    pub async fn connect(urls: impl Into<String>) -> Result<Self, ConnectError> {
        JetStreamOptions::new(urls).connect().await
    }

    /// Returns whether there is a connection to the server now.
    pub fn is_connected(&self) -> bool {
        self.log.connection.is_up()
    }

    /// Returns a receiver for whether there is a connection. A notification without a change of
    /// value means that the connection was lost and re-established.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.log.connection.watch()
    }

    /// Returns how many messages the readers of this handle and its clones have skipped, because no
    /// broker has written them or they cannot be decoded. With the feature `tracing` the number is
    /// reported at most once a second.
    pub fn skipped(&self) -> u64 {
        self.log.skipped.count()
    }
}

impl Backplane for JetStream {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(async move { append::append(&self.log, &record).await })
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(async move {
            let reader = reader::open(&self.log, start).await?;
            Ok(Box::pin(reader) as RecordStream)
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(self.log.head())
    }
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStream")
            .field("stream", &self.log.settings.stream)
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
