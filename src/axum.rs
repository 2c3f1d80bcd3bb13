//! [`SseConnection`] as an axum extractor, and the crate's errors as axum responses.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_sse::{Event, SseConnection, SseLayer};
//!
//! async fn events(sse: SseConnection) -> Result<(), tower_sse::Error> {
//!     sse.send(Event::message("hello")).await?;
//!     sse.closed().await;
//!     Ok(())
//! }
//!
//! let app: Router = Router::new()
//!     .route("/events", get(events))
//!     .layer(SseLayer::new("/events"));
//! ```
//!
//! A handler that serves others too takes an `Option<SseConnection>`.

use std::{convert::Infallible, error, fmt};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header, request::Parts};

use crate::{
    Error, SseConnection,
    broker::{BrokerError, BrokerErrorKind},
    connection::{ClosedError, LimitError, SendError},
    event::EventError,
    layer::admits_event_stream,
};

/// There is no connection in the request: it was not the layer's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SseRejection {
    /// The client's `Accept` excludes event streams: `406 Not Acceptable`.
    NotAcceptable,
    /// No layer has taken the request: `500 Internal Server Error`, with a text that says what to
    /// look at.
    NoLayer,
}

impl fmt::Display for SseRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAcceptable => "this resource is an event stream: accept text/event-stream",
            Self::NoLayer => {
                "no SseLayer in front of this route: check its path, its method, and that \
                 `.layer` comes after `.route`"
            }
        })
    }
}

impl error::Error for SseRejection {}

impl IntoResponse for SseRejection {
    fn into_response(self) -> Response {
        let text = self.to_string();
        match self {
            Self::NotAcceptable => {
                let vary = [(header::VARY, "accept")];
                (StatusCode::NOT_ACCEPTABLE, vary, text).into_response()
            }
            Self::NoLayer => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for SseConnection {
    type Rejection = SseRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SseRejection> {
        match parts.extensions.get::<Self>() {
            Some(connection) => Ok(connection.clone()),
            None if admits_event_stream(&parts.headers) => Err(SseRejection::NoLayer),
            None => Err(SseRejection::NotAcceptable),
        }
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for SseConnection {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// `500 Internal Server Error`; the cause stays on the server.
impl IntoResponse for EventError {
    fn into_response(self) -> Response {
        let text = "the server could not write an event";
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

/// `503 Service Unavailable`.
impl IntoResponse for ClosedError {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response()
    }
}

/// `503 Service Unavailable`. The layer answers with its refusal in its place.
impl IntoResponse for LimitError {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response()
    }
}

/// `503 Service Unavailable`.
impl IntoResponse for SendError {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response()
    }
}

/// `400 Bad Request` for topics and events that cannot be, `500 Internal Server Error` for a
/// connection that cannot be subscribed, else `503 Service Unavailable`.
impl IntoResponse for BrokerError {
    fn into_response(self) -> Response {
        let status = match self.kind() {
            BrokerErrorKind::Topic | BrokerErrorKind::Event => StatusCode::BAD_REQUEST,
            BrokerErrorKind::Connection => StatusCode::INTERNAL_SERVER_ERROR,
            BrokerErrorKind::Append(_) | BrokerErrorKind::Closed(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        (status, self.to_string()).into_response()
    }
}

/// The response of the error that it is; `503 Service Unavailable` for a full outbox.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::Event(error) => error.into_response(),
            Self::Closed(error) => error.into_response(),
            Self::HasId => {
                let text = "the server could not write an event";
                (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
            }
            Self::Broker(error) => error.into_response(),
            Self::Limit(error) => error.into_response(),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response(),
        }
    }
}
