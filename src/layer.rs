//! Middleware that turns the answers of a service into event streams.
//!
//! # Which requests are its own
//!
//! A request is the layer's own when its path matches one of the patterns, its method is GET or
//! HEAD ([`methods`](SseLayer::methods) for others), and its `Accept` is absent or admits
//! `text/event-stream` ([`any_accept`](SseLayer::any_accept) to ignore it). Every other request
//! goes through untouched, and so does its response: the same bytes, headers, trailers and size
//! hint. It costs no allocation, but for paths that nearly match a pattern of five or more
//! parameters, or one that stands beside a literal (`/rooms/{room}` beside `/rooms/all`): the router
//! may make one for those.
//!
//! Patterns are [matchit's](https://docs.rs/matchit): `/events`, `/rooms/{room}/events`,
//! `/files/{*rest}`. They are held against the path that the layer sees: under axum's
//! `Router::nest("/api", …)` a layer of the inner router sees the path without `/api`, one of the
//! outer router sees it whole.
//!
//! # When the stream starts, and when there is none
//!
//! The inner service finds an [`SseConnection`] in the request's extensions. The stream starts when
//! the inner service answers `200 OK`, or at the first event sent (or
//! [`start`](SseConnection::start)), whichever comes first. So a handler may be straight-line code
//! that sends and only then returns: it then runs inside the response body, is not polled while
//! the client takes nothing, and is dropped when the client leaves. A handler that answers first
//! and keeps a clone of its connection elsewhere works as well.
//!
//! There is no stream, and the inner response goes through untouched, if before the start the
//! inner service answers
//!
//! - anything but 200 (an `EventSource` that is answered `204` stops reconnecting),
//! - 200, when nothing was sent and no handle on the connection is left: it did not want one,
//! - 200 with `content-type: text/event-stream` (but see [`adopt`](SseLayer::adopt), which takes
//!   such streams over), or with gRPC's marks (`grpc-status`, `application/grpc`: gRPC answers
//!   refused calls with 200),
//! - anything, after [`decline`](SseConnection::decline).
//!
//! HEAD is answered with the head that GET would have, and no stream.
//!
//! # The head
//!
//! The inner response's own headers, if it has answered, less those that speak of its body; then
//! `content-type: text/event-stream`, `cache-control: no-store, no-transform` and
//! `x-accel-buffering: no`. CORS headers are for a CORS layer.
//!
//! # What goes outside, what inside
//!
//! | layer | where | why |
//! | --- | --- | --- |
//! | tracing, panics, request limits, request timeouts, CORS, compression | outside or inside | a timeout of the request ends at the head; compression leaves event streams alone |
//! | authentication that answers by itself | outside, or inside: its answer goes through | anything but 200 is no stream |
//! | what sets response headers by what the handler did (a session's `Set-Cookie`) | outside, if the handler sends before it answers | a send starts the stream: layers between this one and the handler have no say on the head any more |
//! | a timeout of the response body (`ResponseBodyTimeout`) | inside | outside, it would cut the stream |
//!
//! # A broken stream is told from a finished one
//!
//! After the start a handler that returns an error, answers anything but 200, or panics, and
//! [`fail`](SseConnection::fail), end the body with a [`StreamError`](crate::connection::StreamError):
//! servers cut the connection (HTTP/1.1) or reset the stream (HTTP/2), and a client sees an
//! unexpected end instead of a clean one. What was sent before goes out first, as far as can be seen
//! from a body: over HTTP/2 the reset waits for 50 ms after the last event, since it makes a server
//! drop what it has not written; a client that has stopped reading by then loses the last of it.
//!
//! # Protection
//!
//! | what is bounded | by | without it |
//! | --- | --- | --- |
//! | connections in all | [`max_connections`](SseLayer::max_connections) | unbounded |
//! | connections of one user, or one address | [`max_connections_per`](SseLayer::max_connections_per), [`SseConnection::limit`] | unbounded |
//! | how long a stream lives | [`max_lifetime`](SseLayer::max_lifetime), [`SseConnection::close_at`] | unbounded |
//! | how long a client may take nothing | [`stall_timeout`](SseLayer::stall_timeout) | 60 seconds |
//! | how long a stream may take to end | [`grace`](SseLayer::grace); in a drain [`deadline`](crate::connection::Drain::deadline) | 10 seconds |
//! | what waits for a client | [`outbox`](SseLayer::outbox) | 64 events, 1 MiB |
//! | whose pages may ask | [`allowed_origins`](SseLayer::allowed_origins) | all |
//! | which hosts may be asked for | [`allowed_hosts`](SseLayer::allowed_hosts) | all |
//!
//! Requests beyond the first two bounds, and those that come during a [drain](Connections::drain),
//! are refused without a call of the inner service (but for `limit`, which it calls itself). GET is
//! answered with an event stream that ends at once: one event, `reconnect`, with the reason and a
//! jittered `retry`. Other methods are answered `503`, with `Retry-After`.
//! [`refusal`](SseLayer::refusal) sets one of the two for both. What the guards in the last two rows
//! refuse is answered `403`. No stream that is open is ever ended to make room.
//!
//! # Example
//!
//! With any tower service:
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use std::convert::Infallible;
//! use tower::{Service, ServiceBuilder, ServiceExt};
//! use tower_sse::{Event, SseConnection, SseLayer};
//!
//! async fn handle(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
//!     if let Some(sse) = request.extensions().get::<SseConnection>() {
//!         let _ = sse.send(Event::message("hello")).await;
//!     }
//!     Ok(Response::default())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut service = ServiceBuilder::new()
//!     .layer(SseLayer::new("/events"))
//!     .service_fn(handle);
//!
//! let request = Request::get("/events").body(Full::default())?;
//! let response = service.ready().await?.call(request).await?;
//! assert_eq!(response.headers()["content-type"], "text/event-stream");
//! # Ok(())
//! # }
//! ```

pub use crate::{
    body::SseBody, future::ResponseFuture, guard::GuardError, path::PatternError,
    service::SseService,
};

use std::{fmt, sync::Arc};

use http::{Method, StatusCode, request};
use tower_layer::Layer;

use crate::{
    SseConnection,
    connection::{CloseReason, Config, Connections},
    future::AcceptFuture,
    guard::Guard,
    path::Rule,
    protection::KeyFn,
};

/// The layer: see the [module's documentation](self).
///
/// It is cheap to clone. Its setters take effect for the services that it makes afterwards.
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct SseLayer {
    settings: Arc<Settings>,
}

/// Behind one `Arc`, which each service shares: axum clones services with every request.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) rule: Rule,
    pub(crate) guard: Guard,
    pub(crate) config: Arc<Config>,
    pub(crate) connections: Connections,
    pub(crate) accept: Option<AcceptFn>,
    /// What connections are counted by.
    pub(crate) keys: Vec<KeyFn>,
}

type AcceptFn = Arc<dyn Fn(SseConnection, request::Parts) -> AcceptFuture + Send + Sync>;

impl SseLayer {
    /// Makes streams of the requests for one path. More paths with [`path`](Self::path).
    ///
    /// # Panics
    ///
    /// If the pattern is invalid, as axum's `Router::route` does. For patterns that are not known
    /// before run time there is [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new(pattern: &str) -> Self {
        or_panic(Self::try_new(pattern))
    }

    /// As [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// If the pattern is invalid.
    pub fn try_new(pattern: &str) -> Result<Self, PatternError> {
        Ok(Self::with_rule(Rule::path(pattern)?))
    }

    /// Makes streams of the requests for any path: for where the path has been decided already, as
    /// under axum's `MethodRouter::layer`.
    pub fn any_path() -> Self {
        Self::with_rule(Rule::any_path())
    }

    /// What clients of chat-completion interfaces expect: POST, with any `Accept` (they ask for
    /// `application/json`), and no event of the layer's own (they parse every one).
    ///
    /// The request's body should be read before the handler sends: hyper does not notice that a
    /// client has left while some of its request is unread.
    ///
    /// # Panics
    ///
    /// If the pattern is invalid. For patterns that are not known before run time there is
    /// [`try_completions`](Self::try_completions).
    #[track_caller]
    pub fn completions(pattern: &str) -> Self {
        or_panic(Self::try_completions(pattern))
    }

    /// As [`completions`](Self::completions).
    ///
    /// # Errors
    ///
    /// If the pattern is invalid.
    pub fn try_completions(pattern: &str) -> Result<Self, PatternError> {
        Ok(Self::try_new(pattern)?
            .methods([Method::POST])
            .any_accept()
            .without_welcome()
            .without_reconnect_event())
    }

    /// Adds a path.
    ///
    /// # Panics
    ///
    /// If the pattern is invalid, or cannot stand beside one that is there. For patterns that are
    /// not known before run time there is [`try_path`](Self::try_path).
    #[track_caller]
    pub fn path(self, pattern: &str) -> Self {
        or_panic(self.try_path(pattern))
    }

    /// As [`path`](Self::path).
    ///
    /// # Errors
    ///
    /// If the pattern is invalid, or cannot stand beside one that is there.
    pub fn try_path(mut self, pattern: &str) -> Result<Self, PatternError> {
        self.settings_mut().rule.add_path(pattern)?;
        Ok(self)
    }

    /// Sets the methods of the requests that are the layer's own, in place of GET. HEAD goes with
    /// GET.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        let methods = methods.into_iter().collect();
        self.settings_mut().rule.set_methods(methods);
        self
    }

    /// Ignores the `Accept` of requests.
    pub fn any_accept(mut self) -> Self {
        self.settings_mut().rule.ignore_accept();
        self
    }

    /// Takes a client's place from this query parameter where there is no `Last-Event-ID`: for
    /// clients that cannot set the header, as a page that opens a new `EventSource`.
    ///
    /// Off by default: addresses end up in logs and histories.
    pub fn last_event_id_query(mut self, name: &str) -> Self {
        self.settings_mut().rule.set_id_parameter(name);
        self
    }

    /// Enters the connections in this registry, which other layers may share. Without it the layer
    /// has a registry of its own.
    pub fn registry(mut self, connections: &Connections) -> Self {
        self.settings_mut().connections = connections.clone();
        self
    }

    /// The registry of the layer's connections.
    pub fn connections(&self) -> &Connections {
        &self.settings.connections
    }

    /// Keeps streams open without a handle, for applications that reach them only through
    /// [`Connections`]. A plain 200 then starts a stream, whatever its body.
    ///
    /// Off by default: such a stream ends only when it is closed, or when the client leaves.
    pub fn hold_open(mut self, holds: bool) -> Self {
        self.config_mut().hold_open = holds;
        self
    }

    /// Answers requests that are the layer's own with a function, in place of the inner service:
    /// for servers that have no handler there (tonic, plain hyper).
    ///
    /// `Ok` is a stream, also when nothing was sent and no handle is left: it ends at once then
    /// (after `decline`, it is a `204 No Content`).
    /// `Err` is an answer of that status, with an empty body. As a handler it may send before it
    /// returns, and then runs inside the response body.
    ///
    /// # Example
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_sse::{Connections, Event, SseLayer};
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

    /// Calls a function when a stream has started, before its first event goes out.
    ///
    /// It runs on the server's task: it should be short and must not block. A panic in it is
    /// caught.
    pub fn on_open<F>(mut self, f: F) -> Self
    where
        F: Fn(&SseConnection) + Send + Sync + 'static,
    {
        self.config_mut().on_open = Some(Arc::new(f));
        self
    }

    /// Calls a function when a stream has ended: once for each for which
    /// [`on_open`](Self::on_open) was due, whatever the way out. Requests that were declined are
    /// none.
    ///
    /// It runs where the end is noticed, often in a destructor on the server's task: it should be
    /// short and must not block. A panic in it is caught.
    pub fn on_close<F>(mut self, f: F) -> Self
    where
        F: Fn(&SseConnection, CloseReason) + Send + Sync + 'static,
    {
        self.config_mut().on_close = Some(Arc::new(f));
        self
    }

    fn with_rule(rule: Rule) -> Self {
        Self {
            settings: Arc::new(Settings {
                rule,
                guard: Guard::default(),
                config: Arc::default(),
                connections: Connections::new(),
                accept: None,
                keys: Vec::new(),
            }),
        }
    }

    pub(crate) fn settings_mut(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    pub(crate) fn config_mut(&mut self) -> &mut Config {
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

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("rule", &self.rule)
            .field("guard", &self.guard)
            .field("config", &self.config)
            .field("connections", &self.connections)
            .field("has_accept", &self.accept.is_some())
            .finish()
    }
}

#[track_caller]
fn or_panic(result: Result<SseLayer, PatternError>) -> SseLayer {
    match result {
        Ok(layer) => layer,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            panic!("{error}: {}", source.unwrap_or_default())
        }
    }
}
