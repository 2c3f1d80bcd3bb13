//! What a layer is set up with: values for its setters, and the settings that its services read.

use std::{fmt, hash::Hash, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{Request, request};

use super::{handler::AcceptFuture, matcher::Rule, origin::Guard};
use crate::{
    Event, SseConnection,
    connection::{
        Capacity, Config, Connections, KeyMaker, LimitKey, NEVER, Refusal, WelcomeEvent,
        retry_range,
    },
};

/// The heartbeat of a stream: see [`SseLayer::keep_alive`](super::SseLayer::keep_alive).
///
/// Setters accept a [`Duration`] or `None` in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    interval: Option<Duration>,
}

impl KeepAlive {
    /// Returns a heartbeat that is sent when nothing else was sent for this long: a comment of one
    /// byte and a line end.
    ///
    /// Intervals have a resolution of 64 ms.
    ///
    /// # Panics
    ///
    /// Panics if the interval is zero. `None` turns heartbeats off.
    #[track_caller]
    pub fn every(interval: Duration) -> Self {
        let interval = not_zero(Some(interval), "keep-alive interval");
        Self {
            interval: interval.map(at_least_a_tick),
        }
    }

    pub(super) fn interval(&self) -> Option<Duration> {
        self.interval
    }
}

impl From<Duration> for KeepAlive {
    /// Panics like [`KeepAlive::every`].
    #[track_caller]
    fn from(interval: Duration) -> Self {
        Self::every(interval)
    }
}

impl From<Option<Duration>> for KeepAlive {
    /// `None` is no heartbeat. Panics like [`KeepAlive::every`].
    #[track_caller]
    fn from(interval: Option<Duration>) -> Self {
        interval.map_or(Self { interval: None }, Self::every)
    }
}

/// The first event of a stream: see [`SseLayer::welcome`](super::SseLayer::welcome).
///
/// The default is an event of type `welcome` with `{"uuid": "…"}`.
#[derive(Clone)]
pub struct Welcome(WelcomeEvent);

impl Welcome {
    /// Returns a welcome that calls this function for each stream, when it starts.
    ///
    /// The layer's [`retry`](super::SseLayer::retry) is added to the event, unless the event sets
    /// its own. Events that the function sends through the connection follow the welcome.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_sse::{Event, SseLayer, layer::Welcome};
    ///
    /// let layer = SseLayer::new("/events").welcome(Welcome::new(|_| Event::message("hello")));
    /// # let _ = layer;
    /// ```
    pub fn new<F>(event: F) -> Self
    where
        F: Fn(&SseConnection) -> Event + Send + Sync + 'static,
    {
        Self(WelcomeEvent::Custom(Arc::new(event)))
    }

    pub(super) fn event(welcome: Option<Self>) -> WelcomeEvent {
        welcome.map_or(WelcomeEvent::None, |it| it.0)
    }
}

impl Default for Welcome {
    fn default() -> Self {
        Self(WelcomeEvent::Uuid)
    }
}

impl fmt::Debug for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Welcome").finish_non_exhaustive()
    }
}

/// The limits of a connection's outbox: see [`SseLayer::outbox`](super::SseLayer::outbox).
///
/// A layer queues up to `connections * bytes` bytes. At a limit `send` waits and `try_send` fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "limits do nothing until a layer has them"]
pub struct OutboxLimits(Capacity);

impl OutboxLimits {
    /// Returns the defaults: 64 events and 1 MiB.
    pub fn new() -> Self {
        Self(Config::default().outbox)
    }

    /// Sets how many events may wait. Defaults to 64.
    ///
    /// # Panics
    ///
    /// Panics if the number is zero.
    #[track_caller]
    pub fn events(mut self, max: usize) -> Self {
        assert!(max > 0, "an outbox holds at least one event");
        self.0.events = max;
        self
    }

    /// Sets how many bytes may wait. Defaults to 1 MiB.
    ///
    /// An event that is larger is accepted when nothing else waits. With 0, events therefore wait
    /// one at a time.
    pub fn bytes(mut self, max: usize) -> Self {
        self.0.bytes = max;
        self
    }

    pub(super) fn capacity(self) -> Capacity {
        self.0
    }
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// Limits on the number of connections, and the answer at a limit: see
/// [`SseLayer::limits`](super::SseLayer::limits).
///
/// A connection counts from the request until its stream has ended. All layers that share a
/// registry count together. No open stream is ever ended to make room.
///
/// # Example
///
/// ```
/// use std::{net::IpAddr, time::Duration};
/// use tower_sse::{SseLayer, layer::Limits};
///
/// let limits = Limits::new()
///     .connections(10_000)
///     .connections_per(6, |request| request.extensions.get::<IpAddr>().copied())
///     .refusal_retry(Duration::from_secs(10)..=Duration::from_secs(60));
/// let layer = SseLayer::new("/events").limits(limits);
/// # let _ = layer;
/// ```
#[derive(Clone, Default)]
#[must_use = "limits do nothing until a layer has them"]
pub struct Limits {
    connections: Option<Option<usize>>,
    keys: Vec<KeyFn>,
    refusal: Option<Refusal>,
    refusal_retry: Option<RangeInclusive<Duration>>,
}

impl Limits {
    /// Returns limits that change nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of connections in the layer's registry. Defaults to `None`: no
    /// limit.
    ///
    /// With 0, every stream is refused.
    pub fn connections(mut self, max: impl Into<Option<usize>>) -> Self {
        self.connections = Some(max.into());
        self
    }

    /// Adds a maximum number of connections with the same key. Defaults to no such limit.
    ///
    /// The key is taken from the request: a user that an authentication layer outside has put into
    /// its extensions, or an address. Requests without a key are not limited. With 0, every request
    /// that has a key is refused.
    ///
    /// Several limits may be added, each with a key of its own. Values of different types are
    /// different keys. A handler that determines the user itself calls
    /// [`SseConnection::limit`](crate::SseConnection::limit).
    pub fn connections_per<K, F>(mut self, max: usize, key: F) -> Self
    where
        F: Fn(&request::Parts) -> Option<K> + Send + Sync + 'static,
        K: Hash + 'static,
    {
        let key = move |parts: &request::Parts, maker: &KeyMaker| {
            key(parts).map(|key| (maker.key(&key), max))
        };
        self.keys.push(Arc::new(key));
        self
    }

    /// Sets how requests over a limit, and requests during a drain, are answered. Defaults to
    /// `None`: by the method.
    ///
    /// GET is then answered with [`Refusal::RetryLater`], because an `EventSource` gives up for
    /// good on any status but 200. Other methods are answered with [`Refusal::Unavailable`].
    pub fn refusal(mut self, refusal: Refusal) -> Self {
        self.refusal = Some(refusal);
        self
    }

    /// Sets the range from which the reconnection delay of a refused client is drawn. Defaults to 5
    /// to 15 seconds.
    ///
    /// # Panics
    ///
    /// Panics if the range is inverted.
    #[track_caller]
    pub fn refusal_retry(mut self, range: RangeInclusive<Duration>) -> Self {
        self.refusal_retry = Some(retry_range(range));
        self
    }

    /// Copies what is set. The rest of the settings keeps its values.
    pub(super) fn apply(self, settings: &mut LayerSettings) {
        settings.keys.extend(self.keys);
        let config = Arc::make_mut(&mut settings.config);
        if let Some(connections) = self.connections {
            config.max_connections = connections;
        }
        if let Some(refusal) = self.refusal {
            config.refusal = Some(refusal);
        }
        if let Some(range) = self.refusal_retry {
            config.refusal_retry = range;
        }
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("connections", &self.connections.flatten())
            .field("keys", &self.keys.len())
            .field("refusal", &self.refusal)
            .field("refusal_retry", &self.refusal_retry)
            .finish()
    }
}

/// Panics if the time is zero, which may have been meant as "off".
#[track_caller]
pub(super) fn not_zero(time: Option<Duration>, name: &str) -> Option<Duration> {
    let is_zero = time.is_some_and(|time| time.is_zero());
    assert!(!is_zero, "{name} is zero: use `None` to turn it off");
    time
}

/// The shortest time that the registry's clock can keep, and at most one that never comes.
pub(super) fn at_least_a_tick(time: Duration) -> Duration {
    time.clamp(Duration::from_millis(64), NEVER)
}

// ===== what services read =====

/// Behind one `Arc`, which each service shares: axum clones services with every request.
#[derive(Clone)]
pub(super) struct LayerSettings {
    pub(super) rule: Rule,
    pub(super) guard: Guard,
    pub(super) config: Arc<Config>,
    pub(super) registry: Connections,
    pub(super) accept: Option<AcceptFn>,
    /// What connections are counted by.
    pub(super) keys: Vec<KeyFn>,
}

pub(super) type AcceptFn = Arc<dyn Fn(SseConnection, request::Parts) -> AcceptFuture + Send + Sync>;

/// The key of a request, and how many connections may have the same key.
pub(super) type KeyFn =
    Arc<dyn Fn(&request::Parts, &KeyMaker) -> Option<(LimitKey, usize)> + Send + Sync>;

impl LayerSettings {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            guard: Guard::default(),
            config: Arc::default(),
            registry: Connections::new(),
            accept: None,
            keys: Vec::new(),
        }
    }

    /// Returns the keys under which a request is counted, and the request.
    pub(super) fn keys_of<B>(&self, request: Request<B>) -> (Vec<(LimitKey, usize)>, Request<B>) {
        if self.keys.is_empty() {
            return (Vec::new(), request);
        }
        let (parts, body) = request.into_parts();
        let maker = self.registry.key_maker();
        let mut keys: Vec<(LimitKey, usize)> = Vec::with_capacity(self.keys.len());
        for (key, max) in self.keys.iter().filter_map(|key| key(&parts, maker)) {
            // Two limits of one key: the connection counts once, and both hold.
            match keys.iter_mut().find(|(it, _)| *it == key) {
                Some((_, limit)) => *limit = max.min(*limit),
                None => keys.push((key, max)),
            }
        }
        (keys, Request::from_parts(parts, body))
    }
}

impl fmt::Debug for LayerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerSettings")
            .field("rule", &self.rule)
            .field("guard", &self.guard)
            .field("config", &self.config)
            .field("registry", &self.registry)
            .field("has_accept", &self.accept.is_some())
            .finish()
    }
}
