//! How a log in Redis is set up.

#[cfg(feature = "redis-tls")]
use std::path::PathBuf;
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
    pub(super) topology: Topology,
    #[cfg(feature = "redis-tls")]
    pub(super) root_certificates: Vec<PathBuf>,
    #[cfg(feature = "redis-tls")]
    pub(super) client_certificate: Option<(PathBuf, PathBuf)>,
    pub(super) name: String,
    pub(super) window: usize,
    pub(super) max_record: usize,
    pub(super) append_timeout: Duration,
    pub(super) connect_timeout: Duration,
}

/// How the server that has the log is found.
#[derive(Clone)]
pub(super) enum Topology {
    /// At the URL of the options.
    Single,
    /// By the sentinels at these URLs.
    Sentinels(Vec<String>),
    /// By the nodes of a cluster at these URLs.
    Cluster(Vec<String>),
}

impl RedisOptions {
    /// The options for the server at this URL: `redis://[user[:password]@]host[:port][/database]`, or
    /// `unix:path`; with the feature `redis-tls` also `rediss://…`, for TLS.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            topology: Topology::Single,
            #[cfg(feature = "redis-tls")]
            root_certificates: Vec::new(),
            #[cfg(feature = "redis-tls")]
            client_certificate: None,
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
    /// connection breaks, without being carried out twice. With 0 none succeeds; behind sentinels or
    /// in a cluster it should be longer than a failover takes, for publishers not to notice it.
    pub fn append_timeout(mut self, time: Duration) -> Self {
        self.append_timeout = time;
        self
    }

    /// Sets how long it may take to connect: 2 seconds by default; with 0 none succeeds. Sentinels and
    /// nodes of a cluster have as long to answer.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Asks these sentinels for the primary: nobody, by default. The host of the options' URL is then
    /// the name by which they know it, and its port counts for nothing; user, password, database and
    /// TLS are those of the primary. The sentinels' own stand in their URLs, with their ports (mostly
    /// 26379).
    ///
    /// All are asked at once, so that it takes one that answers, and again every two seconds or so.
    /// After a failover the node goes on with the new primary as soon as they name it, and repeats
    /// there what was under way. This and [`cluster`](Self::cluster) exclude each other: the last one
    /// counts.
    ///
    /// ```no_run
    /// # use tower_sse::backplane::redis::RedisOptions;
    /// RedisOptions::new("redis://:password@my-primary/").sentinels([
    ///     "redis://one.example:26379",
    ///     "redis://two.example:26379",
    ///     "redis://three.example:26379",
    /// ]);
    /// ```
    pub fn sentinels(mut self, urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.topology = Topology::Sentinels(urls.into_iter().map(Into::into).collect());
        self
    }

    /// The server is a node of a cluster, and so are these; by default it is none. The log is on the
    /// node that holds the slot of the log's name. It is found by asking some of those that are named
    /// here, or were by the cluster itself; one that answers is enough. User, password and TLS are
    /// those of the options' URL for all nodes.
    ///
    /// After a failover, or when the slot has been moved, the node goes on with the new holder.
    /// Meanwhile appends wait, within their [time](Self::append_timeout).
    ///
    /// ```no_run
    /// # use tower_sse::backplane::redis::RedisOptions;
    /// RedisOptions::new("redis://one.example").cluster(["redis://two.example"]);
    /// ```
    pub fn cluster(mut self, urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.topology = Topology::Cluster(urls.into_iter().map(Into::into).collect());
        self
    }

    /// Trusts the authorities in this PEM file, and in others that are given so, rather than those of
    /// the system, as is the default. It is read once, when the log is connected to, and counts for
    /// URLs with `rediss://`, those of sentinels too.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn root_certificates(mut self, file: impl Into<PathBuf>) -> Self {
        self.root_certificates.push(file.into());
        self
    }

    /// Shows servers with `rediss://` this certificate, both files in PEM: none, by default.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Connects, as [`RedisStreams::connect`] does.
    ///
    /// # Errors
    ///
    /// If a URL is none that Redis is known by, or has TLS without the feature `redis-tls`; if a
    /// certificate or key cannot be read; if the list of sentinels is empty; if the name is empty or
    /// has a brace in it.
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
