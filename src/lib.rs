//! Server-Sent Events for any tower service.
//!
//! [`SseLayer`] wraps a service; on the paths that it is given it turns the service's answers into
//! event streams, and hands the service an [`SseConnection`], to send with and to close. It is for
//! servers on axum, hyper, tonic or anything else that speaks [`http`] and [`tower_service`], and
//! that push to browsers (`EventSource`) or to other clients of event streams.
//!
//! ```
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, routing::get};
//! use std::time::Duration;
//! use tower_sse::{Event, SseConnection, SseLayer};
//!
//! async fn count(sse: SseConnection) -> Result<(), tower_sse::Error> {
//!     for number in 0_u64.. {
//!         sse.send(Event::json("count", &number)?).await?; // an error: the stream is closed
//!         tokio::time::sleep(Duration::from_secs(1)).await;
//!     }
//!     Ok(())
//! }
//!
//! let app: Router = Router::new()
//!     .route("/events", get(count))
//!     .layer(SseLayer::new("/events"));
//! # }
//! ```
//!
//! The handler runs inside the response body: it is not polled while the client takes nothing, and
//! is dropped when the client leaves. A handler may as well answer at once: then the stream stays
//! open for as long as a clone of its connection is kept somewhere. Any part of the program finds
//! the streams that are open in a registry, [`Connections`].
//!
//! Or events are published to topics, and streams subscribe to them: a [`Broker`] keeps the latest
//! events of each topic, and a client that comes back misses nothing, or is told.
//!
//! ```
//! use tower_sse::{Broker, Event, SseConnection};
//!
//! async fn orders(broker: Broker, sse: SseConnection) -> Result<(), tower_sse::Error> {
//!     broker.subscribe(&sse, ["orders", "alerts"]).await?.start();
//!     Ok(()) // the stream goes on: it has subscriptions
//! }
//!
//! async fn place_order(broker: &Broker, number: u64) -> Result<(), tower_sse::Error> {
//!     broker.publish("orders", Event::json("placed", &number)?).await?;
//!     Ok(())
//! }
//! ```
//!
//! Streams are bounded in number, in time and in slowness, and a server that is to stop ends them with
//! [`Connections::drain`], so that its graceful shutdown finishes; those too that the application has
//! made by itself, with axum's `Sse` say ([`SseLayer::adopt`]).
//!
//! - [`layer`]: which requests become streams, when a stream starts, and how it is declined; what
//!   goes outside the layer and what inside; what bounds streams.
//! - [`connection`]: the life of a connection and its end, its outbox, the registry, figures.
//! - [`event`]: what goes over the wire, and a parser for it.
//! - [`broker`]: topics, replay, the places that clients come back with, slow consumers.
//! - `serve` (a feature): a server for them, with direct streams.
//! - [`backplane`]: the log behind a broker, and what an implementation of one guarantees.
//!
//! # Cancel safety
//!
//! A handler that sends before it answers is dropped at whichever `.await` it stands when the
//! stream ends: code after its loop may never run. What has to happen then belongs in
//! [`SseConnection::on_close`], or in a destructor. Whether the other futures of this crate can be
//! dropped, and what is lost then, is said with each under this heading.
//!
//! # Features
//!
//! None is on by default, and none changes what is there without it.
//!
//! | feature | what it adds |
//! | --- | --- |
//! | `axum` | [`SseConnection`] as an axum extractor, and the crate's errors as axum responses |
//! | `nats` | `backplane::nats`: a log in NATS JetStream, for many nodes; it needs Rust 1.89 |
//! | `nats-nkeys` | `nats`, and signing in to it by a key or a credentials file |
//! | `redis` | `backplane::redis`: a log in Redis Streams, for many nodes; it needs Rust 1.88 |
//! | `redis-tls` | `redis`, and TLS to it, by rustls with ring |
//! | `metrics` | `metrics`: the figures of connections and brokers, for the `metrics` facade |
//! | `serve` | `serve`: a server whose event streams take the least of a machine |
//! | `axum-serve` | the listener of `serve`, with its write deadline, for `axum::serve` |
//! | `tracing` | a span for each connection, entered while its handler is polled, with events at level DEBUG: opened, closed (with its reason), a gap announced; and one for each refusal; at level WARN, once a second at most, what was read from a log and cannot be given to clients |
//! | `test-util` | `test_util`: drive a service, or a handler, and read its events without a socket |
//!
//! # Stability
//!
//! The crate follows semantic versioning: before 1.0 a new minor version may break what is public
//! here. Types of other crates are public where they have to be: those of `bytes`, `http`,
//! `http-body`, `serde`, `tokio` (its `Instant`), `tower-layer`, `tower-service`, `futures-core` and
//! `uuid`; in `axum`, those of `axum-core`; in `serve`, `hyper`'s `Incoming` and `tokio`'s streams. Features `metrics` and `tracing` show no types, but speak
//! to the recorder of `metrics` 0.24 and to the subscriber of `tracing` 0.1; the names of figures,
//! spans, events and fields are public too. The default build needs Rust 1.85; raising that is a minor version.
//!
//! # What it does not do
//!
//! - Close the socket of a client that has stopped reading, under another server than its own: its
//!   connection ends, but the socket stays until the client leaves or that server's timeouts act.
//! - Reach beyond its process: [`Connections`] knows the streams that were opened here, and a log in
//!   memory ends with its process. One that many share goes behind
//!   [`Backplane`](backplane::Backplane), as those in Redis and JetStream do.
//! - Keep what is sent to a connection directly, without a topic, for a client that comes back.
//! - CORS, authentication, compression: other layers do, and work with this one.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub mod axum;
pub mod backplane;
pub mod broker;
pub mod connection;
pub mod event;
pub mod layer;

#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub mod metrics;

#[cfg(feature = "serve")]
#[cfg_attr(docsrs, doc(cfg(feature = "serve")))]
pub mod serve;

#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;

mod error;
mod log;
mod trace;

pub use broker::{Broker, BrokerError};
pub use connection::{CloseReason, Connections, SseConnection};
pub use error::Error;
pub use event::Event;
pub use layer::SseLayer;

/// An error of any kind, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The examples of the README, compiled as those of this page.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
