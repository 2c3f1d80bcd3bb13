//! How a log in Redis is set up.

use std::{fmt, time::Duration};

use super::{ConnectError, RedisStreams};

/// Sets up a log in Redis.
///
/// # Example
///
/// ```no_run
/// use std::time::Duration;
/// use tower_sse::{Broker, backplane::redis::RedisOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let log = RedisOptions::new("redis://127.0.0.1/")
///     .name("orders")
///     .append_timeout(Duration::from_secs(2))
///     .connect()
///     .await?;
/// let broker = Broker::new(log);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "options do nothing until they connect"]
pub struct RedisOptions {
    pub(super) url: String,
    pub(super) name: String,
    pub(super) window: usize,
    pub(super) max_record: usize,
    pub(super) append_timeout: Duration,
    pub(super) connect_timeout: Duration,
}

impl RedisOptions {
    /// The options for the server at this URL: `redis://[user[:password]@]host[:port][/database]`, or
    /// `unix:path`. TLS (`rediss://…`) is not spoken: it takes a tunnel.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            name: "tower-sse".to_owned(),
            window: 1 << 16,
            max_record: 1 << 20,
            append_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
        }
    }

    /// Names the log: `tower-sse` by default. Its keys are `{name}:log` and `{name}:state`. Brokers
    /// with the same name on the same server share one log.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets how many records the log keeps, for nodes that start and for those that were cut off:
    /// 65,536 by default, at least one. Redis drops them in blocks, so that it may keep some hundred
    /// more. They are in the server's memory.
    ///
    /// All nodes should agree on it: each append trims the log to what its own node says.
    pub fn window(mut self, records: usize) -> Self {
        self.window = records.max(1);
        self
    }

    /// Sets how many bytes a record may have, with its topic's name and 10 bytes more: 1 MiB by
    /// default, at most 64 MiB. A larger one is rejected when it is published, and skipped when it
    /// is read.
    pub fn max_record(mut self, bytes: usize) -> Self {
        self.max_record = bytes.min(super::queue::MAX_WAITING);
        self
    }

    /// Sets how long an append may take: 5 seconds by default. Meanwhile it is repeated where a
    /// connection breaks, without being carried out twice.
    pub fn append_timeout(mut self, time: Duration) -> Self {
        self.append_timeout = time;
        self
    }

    /// Sets how long it may take to connect: 2 seconds by default.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Connects, as [`RedisStreams::connect`] does.
    ///
    /// # Errors
    ///
    /// If the URL is none that Redis is known by, or the name is empty or has a brace in it.
    ///
    /// # Panics
    ///
    /// If there is no Tokio runtime.
    pub async fn connect(self) -> Result<RedisStreams, ConnectError> {
        RedisStreams::with_options(self)
    }
}

/// Without the URL, which may have a password in it.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("name", &self.name)
            .field("window", &self.window)
            .field("max_record", &self.max_record)
            .field("append_timeout", &self.append_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}
