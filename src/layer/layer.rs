//! The layer, and how it is set up.

use std::{fmt, sync::Arc};

use http::{Method, StatusCode, request};
use tower_layer::Layer;

use super::{
    handler::AcceptFuture,
    matcher::{PatternError, Rule},
    service::SseService,
    settings::Settings,
};
use crate::{
    SseConnection,
    connection::{CloseReason, Config, Connections},
};

/// The layer: see the [module's documentation](super).
///
/// It is cheap to clone. Its setters take effect for the services that it makes afterwards.
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct SseLayer {
    settings: Arc<Settings>,
}

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
            settings: Arc::new(Settings::new(rule)),
        }
    }

    pub(super) fn settings_mut(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    pub(super) fn config_mut(&mut self) -> &mut Config {
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
fn or_panic(result: Result<SseLayer, PatternError>) -> SseLayer {
    match result {
        Ok(layer) => layer,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            panic!("{error}: {}", source.unwrap_or_default())
        }
    }
}
