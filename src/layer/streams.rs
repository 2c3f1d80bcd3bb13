//! What the streams of a layer are like.

use std::{sync::Arc, time::Duration};

use super::layer::SseLayer;
use crate::{
    Event, SseConnection,
    connection::{Capacity, Welcome},
};

/// # Streams
///
/// What each stream has of the layer's own, and how much it holds.
impl SseLayer {
    /// Sends a heartbeat (a comment of one byte and a line end) when nothing else was sent for
    /// this long, so that proxies keep the connection and a client that has vanished is noticed.
    ///
    /// The default is 15 seconds, as the HTML standard advises (section 9.2.7). Times are kept
    /// between 64 ms, the grain of the clock, and one day. Heartbeats need a Tokio runtime.
    pub fn keep_alive(mut self, time: Duration) -> Self {
        let range = Duration::from_millis(64)..=Duration::from_secs(24 * 60 * 60);
        let time = time.clamp(*range.start(), *range.end());
        self.config_mut().keep_alive = Some(time);
        self
    }

    /// Sends no heartbeats. Proxies will cut idle streams, and clients that vanish without a word
    /// stay open.
    pub fn without_keep_alive(mut self) -> Self {
        self.config_mut().keep_alive = None;
        self
    }

    /// Sets the reconnection time that the welcome gives the client; 3 seconds by default, at most
    /// 24 days.
    ///
    /// An `EventSource` keeps the last `retry` that it was given for ever. So each welcome sets it
    /// anew.
    pub fn retry(mut self, time: Duration) -> Self {
        self.config_mut().retry = Some(time);
        self
    }

    /// Leaves the reconnection time to the client (a few seconds, in browsers).
    pub fn without_retry(mut self) -> Self {
        self.config_mut().retry = None;
        self
    }

    /// Sets the first event of each stream, in place of `welcome` with `{"uuid": "…"}`. The
    /// reconnection time is added to it, unless it sets its own.
    ///
    /// The function is called when the stream starts. What it sends comes after the welcome.
    pub fn welcome<F>(mut self, welcome: F) -> Self
    where
        F: Fn(&SseConnection) -> Event + Send + Sync + 'static,
    {
        self.config_mut().welcome = Welcome::Custom(Arc::new(welcome));
        self
    }

    /// Sends no first event, and so no reconnection time.
    pub fn without_welcome(mut self) -> Self {
        self.config_mut().welcome = Welcome::None;
        self
    }

    /// Numbers the events of each connection: `id: N`, from 0, and no `retry`. Comments, and events
    /// with an id of their own, are not numbered.
    ///
    /// Off by default: a count that starts again on every connection cannot be resumed from.
    pub fn numbered(mut self, is_numbered: bool) -> Self {
        self.config_mut().numbered = is_numbered;
        self
    }

    /// Bounds what waits to be taken by the server: 64 events and 1 MiB by default, for each
    /// connection. At the bound `send` waits, and `try_send` fails.
    ///
    /// At least one event is taken, however large: when nothing else waits.
    pub fn outbox(mut self, events: usize, bytes: usize) -> Self {
        self.config_mut().outbox = Capacity { events, bytes };
        self
    }

    /// Takes event streams over that the inner service makes by itself: an answer of 200 with
    /// `content-type: text/event-stream`, as axum's `Sse` gives it. Such a stream then counts as a
    /// connection: it is bounded, has heartbeats and a lifetime, is drained and counted, and is found
    /// in [`Connections`](crate::Connections), without a change to its handler. Off by default:
    /// such answers go through untouched.
    ///
    /// Its events go out as they came, in frames that end with an event; there is no welcome. What
    /// is sent to the connection otherwise goes out between them. A drain ends the answer to a GET
    /// between two events. That to another method (a completion, which cannot be gone on with) may
    /// finish until the drain's deadline, and is broken off then.
    ///
    /// An event of more than 1 MiB goes out in pieces, and an answer with a `content-encoding` goes
    /// through untouched.
    ///
    /// # Example
    ///
    /// An existing application whose shutdown finishes, with open streams:
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// use axum::{Router, response::sse::{Event, Sse}, routing::get};
    /// use futures_util::stream::{self, Stream};
    /// use std::convert::Infallible;
    /// use tower_sse::{Connections, SseLayer};
    ///
    /// async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    ///     Sse::new(stream::pending()) // as it was
    /// }
    ///
    /// let connections = Connections::new();
    /// let app: Router = Router::new()
    ///     .route("/events", get(events))
    ///     .layer(SseLayer::new("/events").adopt(true).registry(&connections));
    /// // At the end: connections.drain().await, with the server's graceful shutdown.
    /// # }
    /// ```
    pub fn adopt(mut self, adopts: bool) -> Self {
        self.config_mut().adopts = adopts;
        self
    }
}
