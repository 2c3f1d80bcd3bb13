//! Server-Sent Events for any tower service.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub mod axum;
pub mod connection;
pub mod event;
pub mod layer;

#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;

mod body;
mod error;
mod future;
mod path;
mod response;
mod service;

pub use connection::{CloseReason, Connections, SseConnection};
pub use error::Error;
pub use event::Event;
pub use layer::SseLayer;

/// An error of any kind, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
