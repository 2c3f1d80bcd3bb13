//! The layer, and its setters.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use http::{Method, StatusCode, request};
use tower_layer::Layer;

use super::{
    handler::AcceptFuture,
    matcher::{PatternError, Rule},
    origin::GuardError,
    service::SseService,
    settings::{
        KeepAlive, LayerSettings, Limits, OutboxLimits, Welcome, at_least_a_tick, not_zero,
    },
};
use crate::{
    SseConnection,
    connection::{CloseReason, Config, Connections, NEVER},
    event::EventType,
};

/// The layer: see the [module's documentation](super).
///
/// It is cheap to clone. Its setters take effect for the services that it makes afterwards. Options
/// that can be off are turned [off with `None`](super#options).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct SseLayer {
    settings: Arc<LayerSettings>,
}

impl SseLayer {
    /// Returns a layer for the requests to one path. [`path`](Self::path) adds more.
    ///
    /// # Panics
    ///
    /// Panics if the pattern is invalid, as axum's `Router::route` does. Use
    /// [`try_new`](Self::try_new) for patterns that are known only at run time.
    #[track_caller]
    pub fn new(pattern: &str) -> Self {
        or_panic(Self::try_new(pattern))
    }

    /// Returns a layer for the requests to one path.
    ///
    /// # Errors
    ///
    /// Returns an error if the pattern is invalid.
    pub fn try_new(pattern: &str) -> Result<Self, PatternError> {
        Ok(Self::with_rule(Rule::path(pattern)?))
    }

    /// Returns a layer for the requests to any path, for use where a router has already chosen the
    /// path, as under axum's `MethodRouter::layer`.
    pub fn any_path() -> Self {
        Self::with_rule(Rule::any_path())
    }

    /// Returns a layer for clients of chat-completion APIs: POST, with any `Accept` (they ask for
    /// `application/json`), and no events of the layer's own (they parse every event).
    ///
    /// The handler should read the request's body before it sends. hyper does not notice that a
    /// client has disconnected while a part of its request is unread.
    ///
    /// # Panics
    ///
    /// Panics if the pattern is invalid.
    #[track_caller]
    pub fn completions(pattern: &str) -> Self {
        Self::new(pattern)
            .methods([Method::POST])
            .any_accept()
            .welcome(None)
            .reconnect_event(None)
    }

    /// Adds a path.
    ///
    /// # Panics
    ///
    /// Panics if the pattern is invalid or conflicts with an earlier one. Use
    /// [`try_path`](Self::try_path) for patterns that are known only at run time.
    #[track_caller]
    pub fn path(self, pattern: &str) -> Self {
        or_panic(self.try_path(pattern))
    }

    /// Adds a path.
    ///
    /// # Errors
    ///
    /// Returns an error if the pattern is invalid or conflicts with an earlier one.
    pub fn try_path(mut self, pattern: &str) -> Result<Self, PatternError> {
        self.settings_mut().rule.add_path(pattern)?;
        Ok(self)
    }

    /// Sets the methods of the requests that the layer handles. Defaults to GET. HEAD is handled
    /// like GET.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        let methods = methods.into_iter().collect();
        self.settings_mut().rule.set_methods(methods);
        self
    }

    /// Handles requests whatever their `Accept` header. By default the header must be absent or
    /// admit `text/event-stream`.
    pub fn any_accept(mut self) -> Self {
        self.settings_mut().rule.ignore_accept();
        self
    }

    /// Reads a client's position from this query parameter if there is no `Last-Event-ID` header,
    /// for clients that cannot set it, such as a page that opens a new `EventSource`.
    ///
    /// Off by default, because URLs end up in logs and histories.
    pub fn last_event_id_query(mut self, name: &str) -> Self {
        self.settings_mut().rule.set_id_parameter(name);
        self
    }

    /// Sets the registry of the layer's connections, which several layers may share. Defaults to a
    /// registry of the layer's own.
    pub fn registry(mut self, registry: &Connections) -> Self {
        self.settings_mut().registry = registry.clone();
        self
    }

    /// Returns the registry of the layer's connections, for tests.
    #[cfg(feature = "test-util")]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn registered(&self) -> &Connections {
        &self.settings.registry
    }

    /// Answers matching requests with a function instead of the inner service, for servers that
    /// have no handler there (tonic, plain hyper).
    ///
    /// `Ok` is a stream, even if nothing was sent and no handle is left; it then ends at once.
    /// After `decline` the response is a `204 No Content`. `Err` is a response of that status with
    /// an empty body. Like a handler, the function may send before it returns, and then runs inside
    /// the response body.
    ///
    /// # Example
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_sse::{Event, SseLayer};
    ///
    /// let layer = SseLayer::new("/events").accept(async |sse, parts| {
    ///     if !parts.headers.contains_key("authorization") {
    ///         return Err(StatusCode::UNAUTHORIZED);
    ///     }
    ///     let _ = sse.send(Event::message("hello")).await;
    ///     Ok(())
    /// });
    /// # let _ = layer;
    /// ```
    pub fn accept<F, Fut>(mut self, accept: F) -> Self
    where
        F: Fn(SseConnection, request::Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), StatusCode>> + Send + 'static,
    {
        let accept =
            move |connection, parts| -> AcceptFuture { Box::pin(accept(connection, parts)) };
        self.settings_mut().accept = Some(Arc::new(accept));
        self
    }

    /// Registers a callback that runs when a stream has started, before its first event goes out.
    ///
    /// It runs on the server's task, so it should be short and must not block. A panic in it is
    /// caught.
    pub fn on_open<F>(mut self, f: F) -> Self
    where
        F: Fn(&SseConnection) + Send + Sync + 'static,
    {
        self.config_mut().on_open = Some(Arc::new(f));
        self
    }

    /// Registers a callback that runs exactly once for every opened stream, however it ends. It is
    /// not called for declined requests.
    ///
    /// It runs where the end is noticed, often in a destructor on the server's task, so it should
    /// be short and must not block. A panic in it is caught.
    pub fn on_close<F>(mut self, f: F) -> Self
    where
        F: Fn(&SseConnection, CloseReason) + Send + Sync + 'static,
    {
        self.config_mut().on_close = Some(Arc::new(f));
        self
    }

    // ===== streams =====

    /// Sets the heartbeat, which is sent when nothing else was sent for a while. Defaults to 15
    /// seconds, as the HTML standard advises (section 9.2.7).
    ///
    /// Heartbeats keep proxies from closing idle connections, and detect clients that have
    /// vanished. `None` sends no heartbeats. They need a Tokio runtime.
    ///
    /// # Panics
    ///
    /// Panics if the interval is zero.
    #[track_caller]
    pub fn keep_alive(mut self, keep_alive: impl Into<KeepAlive>) -> Self {
        self.config_mut().keep_alive = keep_alive.into().interval();
        self
    }

    /// Sets the reconnection delay that the welcome carries. Defaults to 3 seconds. A longer delay
    /// than 24 days counts as 24 days.
    ///
    /// An `EventSource` keeps the last `retry` forever, so each welcome restores this value. With
    /// `None` the client keeps its own (a few seconds, in browsers).
    pub fn retry(mut self, delay: impl Into<Option<Duration>>) -> Self {
        self.config_mut().retry = delay.into();
        self
    }

    /// Sets the first event of each stream. Defaults to an event of type `welcome` with
    /// `{"uuid": "…"}`.
    ///
    /// With `None` no first event is sent, and no reconnection delay.
    pub fn welcome(mut self, welcome: impl Into<Option<Welcome>>) -> Self {
        self.config_mut().welcome = Welcome::event(welcome.into());
        self
    }

    /// Sets the type of the event that asks a client to reconnect later. Defaults to `reconnect`.
    ///
    /// It is the last event of drained streams and the only one of refusals. Its data is
    /// `{"reason": "…"}`: `drained`, `draining`, `full` or `key_full`. With `None` drained streams
    /// end without it, and a refusal carries the reconnection delay alone.
    pub fn reconnect_event<'a>(mut self, event_type: impl Into<Option<EventType<'a>>>) -> Self {
        self.config_mut().reconnect_event = event_type.into().map(EventType::into_owned);
        self
    }

    /// Sets the limits of each connection's outbox. Defaults to 64 events and 1 MiB.
    pub fn outbox(mut self, limits: OutboxLimits) -> Self {
        self.config_mut().outbox = limits.capacity();
        self
    }

    /// Keeps streams open without a handle, for applications that reach them only through
    /// [`Connections`]. A plain 200 then starts a stream, whatever its body. Defaults to false.
    ///
    /// Such a stream ends only when it is closed or when the client disconnects.
    pub fn hold_open(mut self, holds: bool) -> Self {
        self.config_mut().hold_open = holds;
        self
    }

    /// Adopts event streams that the inner service produces itself, such as axum's `Sse`: see
    /// [Adopted streams](super#adopted-streams). Defaults to false.
    pub fn adopt(mut self, adopts: bool) -> Self {
        self.config_mut().adopts = adopts;
        self
    }

    /// Sets whether connections use the legacy wire format: the events of each connection are
    /// numbered, `id: N` from 0, and the welcome has no `retry`. Defaults to false.
    ///
    /// This is the wire format of the Node class from which this crate began, for clients that
    /// expect it; [`Event::envelope`](crate::Event::envelope) is its other half. New programs leave
    /// it off: a number that restarts at 0 on every connection cannot be resumed from, and a
    /// numbered connection cannot be subscribed to a broker. Comments, and events with an id of
    /// their own, are not numbered.
    pub fn numbered(mut self, is_numbered: bool) -> Self {
        self.config_mut().numbered = is_numbered;
        self
    }

    // ===== limits in number and time =====

    /// Sets the maximum number of connections in the layer's registry, including those of other
    /// layers. Defaults to no limit. This is short for [`limits`](Self::limits) with
    /// [`Limits::connections`].
    pub fn max_connections(self, max: usize) -> Self {
        self.limits(Limits::new().connections(max))
    }

    /// Sets limits on the number of connections, and the answer at a limit. What `limits` does not
    /// set keeps its value.
    pub fn limits(mut self, limits: Limits) -> Self {
        limits.apply(self.settings_mut());
        self
    }

    /// Sets the maximum lifetime of a stream, which is shortened at random by up to a tenth.
    /// Defaults to `None`: no limit.
    ///
    /// The stream ends cleanly, and the client reconnects with its position. So connections move to
    /// new servers, and credentials are checked again. A running handler learns of the end by
    /// [`SseConnection::ending`](crate::SseConnection::ending), and has the
    /// [`close_timeout`](Self::close_timeout) to finish.
    ///
    /// # Panics
    ///
    /// Panics if the time is zero.
    #[track_caller]
    pub fn max_lifetime(mut self, time: impl Into<Option<Duration>>) -> Self {
        let time = not_zero(time.into(), "maximum lifetime");
        self.config_mut().max_lifetime = time.map(|time| time.min(NEVER));
        self
    }

    /// Sets the time after which a stream ends if an event or a heartbeat waits and the server
    /// reads nothing of it. Defaults to 60 seconds.
    ///
    /// The client has then stopped reading, and the buffers on the way are full. What is queued is
    /// freed, the hooks run with [`CloseReason::SlowConsumer`], and the connection no longer
    /// counts. The socket stays open until the client disconnects or the server's own timeouts act.
    ///
    /// A kernel buffers some megabytes: on a quiet stream such a client is detected late or never.
    /// Only a [lifetime](Self::max_lifetime) limits that. Times have a resolution of 64 ms.
    ///
    /// # Panics
    ///
    /// Panics if the time is zero.
    #[track_caller]
    pub fn stall_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        let time = not_zero(time.into(), "stall timeout");
        self.config_mut().stall_timeout = time.map(at_least_a_tick);
        self
    }

    /// Sets how long a closing stream has to send what is queued, and a handler at the end of its
    /// stream's lifetime has to finish. Defaults to 10 seconds.
    ///
    /// What is left then is aborted, and the stream breaks. With zero that happens at the first
    /// check. A drain has a [deadline](crate::connection::Drain::deadline) of its own.
    ///
    /// Closing streams are checked at least every 15 seconds. The abort of a stream that the
    /// application has closed may come that much later.
    pub fn close_timeout(mut self, time: Duration) -> Self {
        self.config_mut().close_timeout = time.min(NEVER);
        self
    }

    // ===== guards =====

    /// Admits requests from pages of these origins only: `https://example.com`,
    /// `http://localhost:3000`, `http://[::1]:8080`. Defaults to all origins.
    ///
    /// A second call replaces the list; with an empty list no page is admitted. See
    /// [Guards](super#guards).
    ///
    /// # Panics
    ///
    /// Panics if an origin is invalid. Use [`try_allowed_origins`](Self::try_allowed_origins) for
    /// origins that are known only at run time.
    #[track_caller]
    pub fn allowed_origins(self, origins: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        or_panic(self.try_allowed_origins(origins))
    }

    /// Admits requests from pages of these origins only.
    ///
    /// # Errors
    ///
    /// Returns an error if an origin is invalid: it has no scheme, more than a scheme, a host and a
    /// port (a slash at its end is a path), or an invalid host.
    pub fn try_allowed_origins(
        mut self,
        origins: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, GuardError> {
        self.settings_mut().guard.allow_origins(origins)?;
        Ok(self)
    }

    /// Admits requests for these hosts only: `example.com` on any port, `localhost:8080`,
    /// `127.0.0.1`, `[::1]:8080`. Defaults to all hosts.
    ///
    /// A second call replaces the list; with an empty list nothing is admitted. See
    /// [Guards](super#guards).
    ///
    /// # Panics
    ///
    /// Panics if a host is invalid. Use [`try_allowed_hosts`](Self::try_allowed_hosts) for hosts
    /// that are known only at run time.
    #[track_caller]
    pub fn allowed_hosts(self, hosts: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        or_panic(self.try_allowed_hosts(hosts))
    }

    /// Admits requests for these hosts only.
    ///
    /// # Errors
    ///
    /// Returns an error if a host is invalid: it has a scheme or a path, is an IPv6 address without
    /// brackets, or is not a name.
    pub fn try_allowed_hosts(
        mut self,
        hosts: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, GuardError> {
        self.settings_mut().guard.allow_hosts(hosts)?;
        Ok(self)
    }

    fn with_rule(rule: Rule) -> Self {
        Self {
            settings: Arc::new(LayerSettings::new(rule)),
        }
    }

    fn settings_mut(&mut self) -> &mut LayerSettings {
        Arc::make_mut(&mut self.settings)
    }

    fn config_mut(&mut self) -> &mut Config {
        Arc::make_mut(&mut self.settings_mut().config)
    }
}

impl<S> Layer<S> for SseLayer {
    type Service = SseService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SseService::new(inner, Arc::clone(&self.settings))
    }
}

impl fmt::Debug for SseLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SseLayer").field(&self.settings).finish()
    }
}

#[track_caller]
fn or_panic<E: Error>(result: Result<SseLayer, E>) -> SseLayer {
    match result {
        Ok(layer) => layer,
        Err(error) => match error.source() {
            Some(source) => panic!("{error}: {source}"),
            None => panic!("{error}"),
        },
    }
}
