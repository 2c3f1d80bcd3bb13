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
//! # Protection
//!
//! | what is bounded | by | without it |
//! | --- | --- | --- |
//! | connections in all | [`max_connections`](SseLayer::max_connections) | unbounded |
//! | connections of one user, or one address | [`max_connections_per`](SseLayer::max_connections_per), [`SseConnection::limit`](crate::SseConnection::limit) | unbounded |
//! | how long a stream lives | [`max_lifetime`](SseLayer::max_lifetime), [`SseConnection::close_at`](crate::SseConnection::close_at) | unbounded |
//! | how long a client may take nothing | [`stall_timeout`](SseLayer::stall_timeout) | 60 seconds |
//! | how long a stream may take to end | [`grace`](SseLayer::grace); in a drain [`deadline`](crate::connection::Drain::deadline) | 10 seconds |
//! | what waits for a client | [`outbox`](SseLayer::outbox) | 64 events, 1 MiB |
//! | whose pages may ask | [`allowed_origins`](SseLayer::allowed_origins) | all |
//! | which hosts may be asked for | [`allowed_hosts`](SseLayer::allowed_hosts) | all |
//!
//! Requests beyond the first two bounds, and those that come during a [drain](crate::Connections::drain),
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
mod protection;
mod refusal;
mod service;
mod settings;
mod streams;

pub use body::SseBody;
pub use future::ResponseFuture;
pub use layer::SseLayer;
pub use matcher::PatternError;
pub use origin::GuardError;
pub use service::SseService;

#[cfg(feature = "axum")]
pub(crate) use matcher::admits_event_stream;
