//! A server that treats event streams best.
//!
//! [`serve()`] serves any tower service, over HTTP/1.1 and HTTP/2, on hyper. Beyond what other
//! servers do it
//!
//! - sets its sockets up for event streams: see [`TcpListener`];
//! - closes a connection whose peer takes nothing for [`write_deadline`](Serve::write_deadline),
//!   though something is to be written, and be it a heartbeat: no layer can do that;
//! - drains and shuts down in one call, in bounded time:
//!   [`with_graceful_shutdown`](Serve::with_graceful_shutdown) and [`drain`](Serve::drain);
//! - writes streams over HTTP/1.1 straight to their sockets, which takes less processor time and
//!   far less memory.
//!
//! # Direct streams
//!
//! hyper keeps two buffers of 8 KiB for each HTTP/1.1 connection, and takes nearly half of the
//! processor time of a delivery. So the socket of an event stream leaves hyper once the response's
//! head is written. From then on the server polls the response's body itself, through every layer
//! around it, and writes each frame to the socket as one chunk. The bytes on the wire are those that
//! hyper would write. After a clean end the socket goes back to hyper, for the next request.
//!
//! A stream is direct if
//!
//! - its request was HTTP/1.1, and had no body, no `Expect` and no `Upgrade`;
//! - its response is a 200 of media type `text/event-stream` whose length is not known: no
//!   `content-length`, no exact [`size_hint`](http_body::Body::size_hint);
//! - the response has no `trailer` header.
//!
//! It makes no difference which crate made the stream, whether a handler still runs in its body, or
//! what layers outside do to it: they may change, count, compress, delay or end its frames, as under
//! any other server. [`direct(false)`](Serve::direct) leaves all streams to hyper.
//!
//! A task drives up to 256 streams in which no application code runs. A stream whose handler still
//! runs has a task of its own until that handler has finished; so has a stream that was
//! [adopted](crate::SseLayer::adopt) or made without this crate, until its end. Application code
//! in one stream thus never delays another, except that code which blocks its thread delays what
//! else that thread has to run.
//!
//! - An empty frame is skipped. Trailers end the body, and are not sent, as in hyper.
//! - A body that fails or panics breaks its stream off: the socket is closed without the last chunk.
//! - A stream whose layer has ended it (a lifetime, a drain's deadline, the stall timeout) is dropped
//!   with its socket, also while a write is pending.
//! - A client that shuts its side of the connection has left, as it has with hyper. What it sends
//!   during its stream is kept for the next request, up to 16 KiB. Beyond that nothing is read until
//!   the stream has ended, and that the client has left is noticed with the next write.
//!
//! # Slow and idle peers
//!
//! What a peer can hold without doing anything is bounded: [`header_read_timeout`] for a connection
//! that asks for nothing, a head of 64 KiB, [`write_deadline`](Serve::write_deadline) for one that takes
//! nothing. How long a request's body may take is its handler's business: tower-http has a
//! `RequestBodyTimeoutLayer`. How many connections there may be is the system's (its limit of open
//! files): at that bound, new ones wait, and open streams go on.
//!
//! [`header_read_timeout`]: Serve::header_read_timeout
//!
//! # Behind a proxy
//!
//! nginx passes events on at once, as it is. haproxy does so with `option http-no-delay`, and holds
//! each back by up to 200 ms without it. nginx says at once that a client has left, haproxy when
//! something is written to it: so the [heartbeat](crate::SseLayer::keep_alive) bounds for how long
//! one that has left behind haproxy is kept. Streams are direct where the proxy asks with HTTP/1.1
//! (nginx: `proxy_http_version 1.1`).
//!
//! # Example
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use std::time::Duration;
//! use tower_sse::{Connections, SseConnection, SseLayer, serve::{self, TcpListener}};
//!
//! # async fn events(sse: SseConnection) { sse.closed().await; }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let connections = Connections::new();
//! let app: Router = Router::new()
//!     .route("/events", get(events))
//!     .layer(SseLayer::new("/events").registry(&connections));
//! let listener = TcpListener::bind("0.0.0.0:3000").await?;
//! serve::serve(listener, app)
//!     .with_graceful_shutdown(async {
//!         let _ = tokio::signal::ctrl_c().await;
//!     })
//!     .drain(connections.drain().over(Duration::from_secs(5)))
//!     .await
//! # }
//! ```

#[cfg(feature = "axum-serve")]
mod axum;
mod backoff;
mod chunk;
mod connection;
mod direct;
mod drivers;
mod handoff;
mod in_flight;
#[cfg(feature = "test-util")]
pub(crate) mod in_memory;
mod io;
mod listener;
mod settings;
mod shutdown;
#[cfg(feature = "test-util")]
mod wire;

pub use connection::PeerAddr;
pub use io::Io;
pub use listener::{Handshaking, Listener, TcpListener, with_handshake};

use std::{
    fmt,
    future::{Future, IntoFuture, pending},
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::timeout;
use tower_service::Service;

use self::{
    backoff::Backoff,
    connection::Site,
    drivers::Drivers,
    settings::ServerSettings,
    shutdown::{Phase, Shutdown},
};
use crate::{
    BoxError,
    connection::{Drain, NEVER},
};

/// Serves a service on the connections of a listener. See the [module](self).
///
/// The service is cloned for each connection and each request. Requests carry a [`PeerAddr`] in
/// their extensions.
pub fn serve<L, S>(listener: L, service: S) -> Serve<L, S> {
    Serve {
        listener,
        service,
        settings: ServerSettings::default(),
        signal: None,
        drain: None,
        shutdown_deadline: Duration::from_secs(30),
    }
}

/// A server that is being set up: `.await` runs it.
///
/// # Cancel safety
///
/// If the future is dropped, all connections end at once, but those that were upgraded (to a
/// WebSocket, say): they are the application's, and no shutdown waits for them.
#[must_use = "nothing is served until this is awaited"]
pub struct Serve<L, S> {
    listener: L,
    service: S,
    settings: ServerSettings,
    signal: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    drain: Option<Drain>,
    shutdown_deadline: Duration,
}

impl<L, S> Serve<L, S> {
    /// Shuts down when this future is ready: no connection is accepted any more, those that are idle
    /// are closed, requests that have begun are finished, and streams are drained if there is a
    /// [`drain`](Self::drain). The server's future is ready when all have ended, or at the
    /// [`shutdown_deadline`](Self::shutdown_deadline).
    pub fn with_graceful_shutdown<F>(mut self, signal: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.signal = Some(Box::pin(signal));
        self
    }

    /// Drains these streams when the server shuts down: without it they would hold it up until its
    /// deadline.
    pub fn drain(mut self, drain: Drain) -> Self {
        self.drain = Some(drain);
        self
    }

    /// Ends what has not ended this long after the signal: 30 seconds by default.
    pub fn shutdown_deadline(mut self, time: Duration) -> Self {
        self.shutdown_deadline = time.min(NEVER);
        self
    }

    /// Sets whether event streams over HTTP/1.1 are written straight to their sockets: see
    /// [Direct streams](self#direct-streams). `true` by default; `false` leaves them to hyper.
    pub fn direct(mut self, is_direct: bool) -> Self {
        self.settings.direct = is_direct;
        self
    }

    /// Closes a connection whose peer has taken nothing for this long, though something is to be
    /// written: 30 seconds by default, none for no bound.
    ///
    /// "Taken" is what the peer's kernel has made room for: it may show none for longer than this
    /// while its program reads on at a kilobyte a second out of what has arrived already. Under TLS it
    /// is what TLS could pass on (see [`with_handshake`]).
    ///
    /// It is about sockets. A peer that takes what an HTTP/2 connection has to say, but gives one of its
    /// streams no room, is the layer's: see [`stall_timeout`](crate::SseLayer::stall_timeout).
    pub fn write_deadline(mut self, time: Option<Duration>) -> Self {
        self.settings.write_deadline = time.map(|time| time.min(NEVER));
        self
    }

    /// Closes a connection whose next request's head has not come within this time, from the opening
    /// or from the last response on. On a new connection, and behind a direct stream, what comes up to
    /// the first bytes (a handshake, too) and the rest of the head have as long each. An HTTP/2
    /// connection is closed when it had no request open for as long.
    ///
    /// 75 seconds by default: more than the minute for which load balancers keep an idle connection,
    /// which they would else use just when it is closed.
    pub fn header_read_timeout(mut self, time: Duration) -> Self {
        self.settings.header_read_timeout = time.min(NEVER);
        self
    }

    /// Bounds the requests and streams that an HTTP/2 connection may have at once: 10,000 by
    /// default, since a proxy may carry all its clients' streams on one. (hyper's own default is
    /// 200.)
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.settings.max_concurrent_streams = streams;
        self
    }

    /// Pings the peers of HTTP/2 connections, so that one which has vanished is noticed: every 20
    /// seconds by default. A ping that is not answered for 20 seconds closes the connection.
    pub fn http2_keep_alive(mut self, time: Option<Duration>) -> Self {
        self.settings.http2_keep_alive = time.map(|time| time.min(NEVER));
        self
    }
}

impl<L, S, B> Serve<L, S>
where
    L: Listener,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    async fn run(self) -> std::io::Result<()> {
        let Self {
            mut listener,
            service,
            settings,
            signal,
            drain,
            shutdown_deadline,
        } = self;
        let settings = Arc::new(settings);
        let shutdown = Shutdown::new();
        let drivers = Arc::new(Drivers::default());
        let (connections, streams) = (&shutdown, Arc::downgrade(&drivers));
        let accepted_from = &mut listener;
        // It has the service, which need not be shared by threads.
        let accepting = async move {
            let mut pauses = Backoff::default();
            loop {
                match accepted_from.accept().await {
                    Ok((handshake, addr)) => {
                        pauses.accepted();
                        let site = Site {
                            service: service.clone(),
                            settings: Arc::clone(&settings),
                            drivers: Weak::clone(&streams),
                            addr,
                            watcher: connections.watcher(),
                        };
                        tokio::spawn(site.serve(handshake));
                    }
                    Err(error) => pauses.failed(&error).await,
                }
            }
        };
        let signal = signal.unwrap_or_else(|| Box::pin(pending()));
        tokio::select! {
            () = accepting => {}
            () = signal => {}
        }
        drop(drivers);
        // Its socket is closed: who comes now is refused by the system.
        drop(listener);
        shutdown.set(Phase::Finishing);
        let finished = async {
            if let Some(drain) = drain {
                drain.await;
            }
            shutdown.finished().await;
        };
        let _ = timeout(shutdown_deadline, finished).await;
        shutdown.set(Phase::Over);
        shutdown.finished().await;
        Ok(())
    }
}

impl<L, S, B> IntoFuture for Serve<L, S>
where
    L: Listener,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Output = std::io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<L: fmt::Debug, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("listener", &self.listener)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
