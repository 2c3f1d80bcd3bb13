//! A log in Redis Streams, for many nodes.
//!
//! [`RedisStreams`] keeps the log of a broker in one stream of a Redis server (6.2 or later, or
//! Valkey). All nodes that name the same server and the same log publish and subscribe as one; a
//! client that comes back to another node goes on where it was.
//!
//! # What is promised
//!
//! What [`publish`](crate::Broker::publish) has acknowledged reaches every node, once and in order,
//! for as long as Redis keeps it. A server that keeps what it has acknowledged is killed and started
//! again, and no event is lost and none comes twice: an append that met a broken connection is
//! repeated, and carried out once. With `appendonly yes` and `appendfsync always` it does keep it;
//! with `everysec`, which is the default, it may forget the last two seconds, also when only its
//! process is killed. A server that has lost or forgotten what it had (so, or by `FLUSHALL`, or in a
//! failover to a replica that was behind) is found out within some two seconds after it can be
//! reached by each node that has seen more, and a gap is announced to its clients.
//!
//! Nothing that others write into the stream reaches a client: it is skipped and counted
//! ([`RedisStreams::skipped`]).
//!
//! # What it takes
//!
//! Two connections for each node, one to append and one to read, however many subscribers there are.
//! Events that are published at the same time are appended together, by a script. The user of the
//! URL needs `EVALSHA`, `SCRIPT LOAD`, `XADD`, `XREAD`, `XRANGE`, `XLEN`, `XINFO`, `HMGET`, `HSET`,
//! `HLEN`, `HGETALL`, `HDEL`, `DEL`, `EXISTS`, `TIME` and `CLIENT SETNAME`.
//!
//! The keys are `{name}:log` and `{name}:state`. Let Redis evict neither: with a `maxmemory-policy`
//! of `allkeys-…` the log may be lost at any time, which is announced to clients.
//!
//! With the feature `redis-tls`, URLs with `rediss://` are spoken to over TLS. It is made with rustls,
//! and its default provider for the process: where none is installed when TLS is first set up, that is
//! *ring*.
//!
//! # More than one server
//!
//! With [`sentinels`](RedisOptions::sentinels) the log is on the primary that they name, with
//! [`cluster`](RedisOptions::cluster) on the node that holds its slot. Each connection is made to what
//! is the primary by its own word and by those who know; when it is so no more, the node leaves it, for
//! reading and for writing, and does elsewhere what was under way, once. Behind an address that follows
//! the primary (a proxy, a managed service) a failover is met like a restart.
//!
//! The clients of `redis` for sentinels and clusters are not used: theirs share one connection for
//! everything, which a read that waits would block; and asking takes three commands.
//!
//! Redis copies to its replicas after it has acknowledged. So a failover may forget what was
//! acknowledged last. A gap is announced to clients whose node has seen it; a node that has not
//! cannot know. `min-replicas-to-write 1`, with a small `min-replicas-max-lag`, keeps it to a second or
//! so: a primary that nobody follows refuses then, and appends fail as not sent.
//!
//! Users need `ROLE` besides what stands above; for a cluster also `CLUSTER KEYSLOT` and
//! `CLUSTER NODES`, and for sentinels, there, `SENTINEL`.
//!
//! # Example
//!
//! ```no_run
//! use tower_sse::{Broker, Event, backplane::redis::RedisStreams};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Broker::new(RedisStreams::connect("redis://127.0.0.1/").await?);
//! broker.publish("orders", Event::message("placed")).await?; // reaches all nodes
//! # Ok(())
//! # }
//! ```

mod cluster;
mod connection;
mod discovery;
mod entry;
mod error;
mod options;
mod queue;
mod reader;
mod sequence;
mod tls;
mod writer;

pub use error::ConnectError;
pub use options::RedisOptions;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use self::{
    connection::{Health, LogLocation, ReadFailure, SharedConnection, Side},
    error::TooLarge,
    queue::Queue,
    reader::Records,
    writer::Writer,
};
use super::{
    AppendError, AppendErrorKind, Backplane, BoxFuture, ReadError, Record, RecordStream, Skipped,
    Start, envelope,
};
use crate::log::Position;

/// How long the server may take to say where the log ends.
const ANSWER: Duration = Duration::from_secs(3);

/// A log in a Redis server. See the [module](self).
///
/// It is a handle: clones share its connections.
#[derive(Clone)]
pub struct RedisStreams {
    handle: Arc<Handle>,
}

/// What all clones of a handle are, and what ends with the last.
struct Handle {
    shared: Arc<RedisShared>,
    /// Guards the task that appends.
    task: Mutex<JoinHandle<()>>,
}

struct RedisShared {
    location: LogLocation,
    commands: SharedConnection,
    health: Health,
    queue: Queue,
    /// By this name the script knows whose batches it has seen.
    publisher: String,
    batches: AtomicU64,
    /// How many entries are read at once.
    at_once: AtomicUsize,
    skipped: Skipped,
}

impl RedisShared {
    fn next_batch(&self) -> u64 {
        self.batches.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sees whether the server has become another one.
    async fn watch(&self) {
        let is_well = || self.health.is_connected();
        self.location.discovery.watch(is_well).await;
    }
}

impl RedisStreams {
    /// The log named `tower-sse` of the server at this URL; [`RedisOptions`] sets more.
    ///
    /// The server need not be there: it is connected to in the background, and again whenever it
    /// was lost. Until then streams open, and publishing fails.
    ///
    /// # Errors
    ///
    /// If the URL is none that Redis is known by.
    ///
    /// # Panics
    ///
    /// If there is no Tokio runtime.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        RedisOptions::new(url).connect().await
    }

    fn with_options(options: RedisOptions) -> Result<Self, ConnectError> {
        if options.name.is_empty() || options.name.contains(['{', '}']) {
            return Err(ConnectError::name());
        }
        let shared = Arc::new(RedisShared {
            location: LogLocation::new(options)?,
            commands: SharedConnection::new(),
            health: Health::new(),
            queue: Queue::new(),
            publisher: format!("p:{:016x}", fastrand::u64(..)),
            batches: AtomicU64::new(0),
            at_once: AtomicUsize::new(reader::AT_FIRST),
            skipped: Skipped::new("entries of the log skipped"),
        });
        let writer = Writer::new(Arc::clone(&shared));
        let task = Mutex::new(tokio::spawn(writer.run()));
        Ok(Self {
            handle: Arc::new(Handle { shared, task }),
        })
    }

    /// Returns whether the server has answered the last command.
    ///
    /// A broker that reads the log sends at least one command per second. A server that does not
    /// answer is detected within about three seconds.
    pub fn is_connected(&self) -> bool {
        self.handle.shared.health.is_connected()
    }

    /// Returns a receiver for the value of [`is_connected`](Self::is_connected) and its changes.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.handle.shared.health.subscribe()
    }

    /// Returns how many entries of the stream this handle's readers have skipped: written by other
    /// programs or a later version, too large, or damaged. An entry that is read again counts
    /// again. With the feature `tracing` the number is reported at most once a second.
    pub fn skipped(&self) -> u64 {
        self.handle.shared.skipped.count()
    }
}

impl Handle {
    /// Sees to it that there is a task: it has ended if its runtime was shut down.
    fn ensure_task(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_finished() {
            let writer = Writer::new(Arc::clone(&self.shared));
            *task = tokio::spawn(writer.run());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        task.abort();
    }
}

impl Backplane for RedisStreams {
    /// Appends a record.
    ///
    /// # Errors
    ///
    /// `NotSent`, if the server could not be reached or has refused; `MaybeSent`, if it has not
    /// answered in time; `Rejected`, if the record is too large.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the record may have been appended.
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(async move {
            let shared = &self.handle.shared;
            let options = &shared.location.options;
            let (size, max) = (envelope::size(&record), options.max_record);
            if size > max {
                let cause = TooLarge { size, max };
                return Err(AppendError::new(AppendErrorKind::Rejected, cause));
            }
            self.handle.ensure_task();
            // 0 is what a tag is where there is none.
            let tag = fastrand::u32(1..);
            let envelope = envelope::encode(tag, &record);
            let time = options.append_timeout;
            shared.queue.append(tag, envelope, time).await
        })
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(async move {
            let records = Records::open(Arc::clone(&self.handle.shared), start).await?;
            Ok(Box::pin(records) as RecordStream)
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            let shared = &self.handle.shared;
            let connection = shared.commands.get(&shared.location, &shared.health).await;
            let mut connection = connection.map_err(ReadError::unavailable)?;
            let state = timeout(ANSWER, connection.state(&shared.location)).await;
            let cause = match state {
                Ok(Ok(state)) => return Ok(state.head()),
                Ok(Err(failure)) => {
                    let answers = failure.is_answer();
                    shared.health.set(Side::Append, Some(answers));
                    if !matches!(&failure, ReadFailure::Unexpected(_)) {
                        shared.commands.drop_connection().await;
                    }
                    failure.into_cause()
                }
                Err(late) => {
                    shared.health.set(Side::Append, Some(false));
                    shared.commands.drop_connection().await;
                    late.into()
                }
            };
            Err(ReadError::unavailable(cause))
        })
    }
}

impl fmt::Debug for RedisStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreams")
            .field("options", &self.handle.shared.location.options)
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
