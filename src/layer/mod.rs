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
//! `/files/{*rest}`. They are matched against the path as seen by the layer: under axum's
//! `Router::nest("/api", …)` a layer of the inner router sees the path without `/api`, a layer of
//! the outer router sees the whole path.
//!
//! # When the stream starts, and when there is none
//!
//! The inner service finds an [`SseConnection`] in the request's extensions. The stream starts when
//! the inner service answers `200 OK`, or at the first event sent (or
//! [`start`](crate::SseConnection::start)), whichever comes first. So a handler may be straight-line code
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
//! - anything, after [`decline`](crate::SseConnection::decline).
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
//! [`fail`](crate::SseConnection::fail), end the body with a [`StreamError`](crate::connection::StreamError):
//! servers cut the connection (HTTP/1.1) or reset the stream (HTTP/2), and a client sees an
//! unexpected end instead of a clean one. What was sent before goes out first, as far as can be seen
//! from a body: over HTTP/2 the reset waits for 50 ms after the last event, since it makes a server
//! drop what it has not written; a client that has stopped reading by then loses the last of it.
//!
//! # Options
//!
//! Options that can be off are turned off with `None`. What belongs together is one value, such as
//! [`Limits`] or [`OutboxLimits`].
//!
//! ```
//! use std::time::Duration;
//! use tower_sse::SseLayer;
//!
//! let layer = SseLayer::new("/events")
//!     .keep_alive(Duration::from_secs(30))
//!     .stall_timeout(None)
//!     .max_connections(10_000);
//! # let _ = layer;
//! ```
//!
//! # Protection
//!
//! | what is limited | by | default |
//! | --- | --- | --- |
//! | connections in all | [`max_connections`](SseLayer::max_connections) | no limit |
//! | connections of one user, or one address | [`Limits::connections_per`], [`SseConnection::limit`](crate::SseConnection::limit) | no limit |
//! | the lifetime of a stream | [`max_lifetime`](SseLayer::max_lifetime), [`SseConnection::close_at`](crate::SseConnection::close_at) | no limit |
//! | how long a client may stop reading | [`stall_timeout`](SseLayer::stall_timeout) | 60 seconds |
//! | how long a stream may take to close | [`close_timeout`](SseLayer::close_timeout); in a drain [`deadline`](crate::connection::Drain::deadline) | 10 seconds |
//! | what is queued for a client | [`outbox`](SseLayer::outbox) | 64 events, 1 MiB |
//! | the origins of pages | [`allowed_origins`](SseLayer::allowed_origins) | all |
//! | the requested hosts | [`allowed_hosts`](SseLayer::allowed_hosts) | all |
//!
//! Requests over the first two limits, and requests during a [drain](crate::Connections::drain),
//! are refused without a call of the inner service (except for `limit`, which the inner service
//! calls itself). GET requests receive a short event stream with a reconnection delay: one event,
//! `reconnect`, with the reason and a jittered `retry`. Other methods are answered `503` with
//! `Retry-After`. [`Limits::refusal`] sets one of the two for all methods. No open stream is ever
//! ended to make room.
//!
//! # Guards
//!
//! [`allowed_origins`](SseLayer::allowed_origins) and [`allowed_hosts`](SseLayer::allowed_hosts)
//! are checked before a connection is opened and before the inner service is called. A refused
//! request is answered `403 Forbidden`, with a line of text that names the setting; an
//! `EventSource` then gives up. There are no wildcards.
//!
//! *Origins* are against other sites that use a visitor's cookies, or network, to read streams. A
//! request without `Origin` is admitted, because no page of another site can read its answer:
//! browsers omit the header in a GET to the page's own origin, and where the answer stays hidden
//! from the page (images, navigation). In a POST they send it for the own origin too, which then
//! has to be listed. Other programs send any header: this is no authentication. Several `Origin`
//! headers, and an invalid one, are refused. Scheme, host and port have to be equal, where case, a
//! dot at the end of the host and the spelling of an IPv6 address do not matter, and 80 is the port
//! of `http` and 443 that of `https`. `null`, which any site can send from a sandboxed frame, is
//! refused unless it is listed.
//!
//! *Hosts* are against DNS rebinding: a site that has its own name point to this server passes for
//! the page's own origin, but cannot change the host that it asks for. They are for servers that
//! listen on the local machine or in a private network. The host is that of the request's target
//! (`:authority` in HTTP/2), or else the `Host` header. A request is refused if both are present
//! and differ, if neither is present, if there are several `Host` headers, or if one is invalid.
//! Case, a dot at the end and the spelling of an IPv6 address do not matter; IPv4 addresses are
//! compared as text. A request without a port has that of its scheme, or, where the scheme is not
//! known (mostly HTTP/1), both 80 and 443. Behind a proxy the port may be another than the client
//! used: list hosts without a port there.
//!
//! # Adopted streams
//!
//! With [`adopt`](SseLayer::adopt) the layer adopts a 200 with `content-type: text/event-stream`
//! that the inner service produces itself. The stream then counts as a connection. It has
//! heartbeats, limits, a lifetime and statistics, is drained, and is listed in
//! [`Connections`](crate::Connections), without a change to its handler.
//!
//! Its events go out as they came, in frames that end with an event. There is no welcome. Events
//! that are sent to the connection go out between them. A drain ends the answer to a GET between
//! two events. The answer to another method (a completion, which cannot be resumed) may finish
//! until the drain's deadline, and is aborted then. An event of more than 1 MiB goes out in pieces.
//! An answer with a `content-encoding` passes through unchanged.
//!
//! An existing application whose shutdown completes while streams are open:
//!
//! ```
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, response::sse::{Event, Sse}, routing::get};
//! use futures_util::stream::{self, Stream};
//! use std::convert::Infallible;
//! use tower_sse::{Connections, SseLayer};
//!
//! async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
//!     Sse::new(stream::pending()) // as it was
//! }
//!
//! let connections = Connections::new();
//! let app: Router = Router::new()
//!     .route("/events", get(events))
//!     .layer(SseLayer::new("/events").adopt(true).registry(&connections));
//! // At the end: connections.drain().await, with the server's graceful shutdown.
//! # }
//! ```
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
//!
//! [`SseConnection`]: crate::SseConnection

mod acceptance;
mod adopted;
mod body;
mod future;
mod handler;
mod headers;
#[allow(
    clippy::module_inception,
    reason = "the module's middleware is a layer"
)]
mod layer;
mod matcher;
mod origin;
mod refusal;
mod service;
mod settings;

pub use body::SseBody;
pub use future::ResponseFuture;
pub use layer::SseLayer;
pub use matcher::PatternError;
pub use origin::GuardError;
pub use service::SseService;
pub use settings::{KeepAlive, Limits, OutboxLimits, Welcome};

#[cfg(feature = "axum")]
pub(crate) use matcher::admits_event_stream;
