//! Drive a service, or a handler, and read its events without a socket.
//!
//! [`open`] calls a whole service, with all its layers, and gives the response with its events to
//! read; [`connection`] makes a connection with its reader, for a function that takes one. Every
//! wait has a time limit (5 seconds, see [`EventReader::time_limit`]), so that a test fails instead
//! of hanging. Both need a Tokio runtime with its time enabled; with its clock paused nothing takes
//! real time.
//!
//! With feature "serve", [`served`] makes of a service what clients of the crate's own server see.
//!
//! # Example
//!
//! ```
//! use tower_sse::{Event, SseConnection, test_util};
//!
//! async fn greet(sse: SseConnection) -> Result<(), tower_sse::Error> {
//!     sse.send(Event::new("greeting", "hello")?).await?;
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (sse, mut events) = test_util::connection().await;
//! greet(sse).await?;
//!
//! assert_eq!(events.event().await?.event_type, "welcome");
//! assert_eq!(events.event().await?.data, "hello");
//! assert!(events.end().await.is_ok());
//! # Ok(())
//! # }
//! ```

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{Future, Ready, poll_fn, ready},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use tokio::time::timeout;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    BoxError, SseConnection, SseLayer,
    event::{Decoded, Decoder, EventTooLong, MessageEvent},
};

#[cfg(feature = "serve")]
#[cfg_attr(docsrs, doc(cfg(feature = "serve")))]
pub use crate::{
    connection::DirectProbe,
    serve::in_memory::{Served, ServedFuture, WireBody, served},
};

const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Reads the events of a response body, as a client would understand them.
pub struct EventReader {
    body: UnsyncBoxBody<Bytes, BoxError>,
    decoder: Decoder,
    time_limit: Duration,
}

/// Why an [`EventReader`] has nothing to give.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// The stream has ended, cleanly.
    Ended,
    /// The stream has broken off, or the service has failed.
    Broken(BoxError),
    /// Nothing came within the time limit.
    TimedOut(Duration),
    /// An event was longer than a [`Decoder`] takes.
    TooLong(EventTooLong),
    /// The stream goes on, where its end was expected.
    GoesOn(Decoded),
}

/// Calls a service with a request, and gives its response with the events to read.
///
/// # Errors
///
/// If the service fails, or does not answer within 5 seconds.
pub async fn open<S, ReqBody, ResBody>(
    mut service: S,
    request: Request<ReqBody>,
) -> Result<Response<EventReader>, ReadError>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: Into<BoxError>,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    let answer = async {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    };
    let response = limited(TIME_LIMIT, answer).await?;
    let response = response.map_err(|error| ReadError::Broken(error.into()))?;
    Ok(response.map(EventReader::new))
}

/// A connection with a reader of its events, as from `SseLayer::any_path()`.
///
/// Its stream has started: the welcome is the first event. It ends when the last handle is dropped.
///
/// # Panics
///
/// If there is no Tokio runtime.
pub async fn connection() -> (SseConnection, EventReader) {
    connection_of(&SseLayer::any_path(), Request::default()).await
}

/// A connection of this layer, made by this request, with a reader of its events.
///
/// # Panics
///
/// If the request is not the layer's own, or if there is no Tokio runtime.
pub async fn connection_of(layer: &SseLayer, request: Request<()>) -> (SseConnection, EventReader) {
    let capture = Capture::default();
    let service = layer.layer(capture.clone());
    let opened = open(service, request).await;
    let connection = capture.connection.lock();
    let connection = connection.unwrap_or_else(PoisonError::into_inner).take();
    match (connection, opened) {
        (Some(connection), Ok(response)) => (connection, response.into_body()),
        (_, opened) => panic!("the request is not the layer's own: {opened:?}"),
    }
}

impl EventReader {
    /// Reads this body.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self {
            body: body.map_err(Into::into).boxed_unsync(),
            decoder: Decoder::new(),
            time_limit: TIME_LIMIT,
        }
    }

    /// Sets how long each wait may take; 5 seconds by default.
    #[must_use = "the time limit is that of the reader that is given back"]
    pub fn time_limit(mut self, time_limit: Duration) -> Self {
        self.time_limit = time_limit;
        self
    }

    /// The next event. Comments and reconnection times are passed over.
    ///
    /// # Errors
    ///
    /// If the stream ends or breaks off before, or if no event comes within the time limit.
    pub async fn event(&mut self) -> Result<MessageEvent, ReadError> {
        // Of the whole wait: heartbeats come for as long as the stream is open.
        limited(self.time_limit, async {
            loop {
                if let Decoded::Event(event) = self.decoded().await? {
                    return Ok(event);
                }
            }
        })
        .await?
    }

    /// What comes next: an event, a comment (a heartbeat is an empty one), or a reconnection time.
    ///
    /// # Errors
    ///
    /// If the stream ends or breaks off before, or if nothing comes within the time limit.
    pub async fn decoded(&mut self) -> Result<Decoded, ReadError> {
        loop {
            if let Some(decoded) = self.decoder.next() {
                return Ok(decoded);
            }
            let frame = self.frame().await?;
            self.decoder.feed(&frame).map_err(ReadError::TooLong)?;
        }
    }

    /// The next frame of the body, as it came: one event or several. It is not decoded any more.
    ///
    /// # Errors
    ///
    /// As for [`decoded`](Self::decoded).
    pub async fn frame(&mut self) -> Result<Bytes, ReadError> {
        loop {
            match limited(self.time_limit, self.body.frame()).await? {
                None => return Err(ReadError::Ended),
                Some(Err(error)) => return Err(ReadError::Broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(data);
                    }
                }
            }
        }
    }

    /// Waits for a clean end, with no event before it. Comments and reconnection times are passed
    /// over.
    ///
    /// # Errors
    ///
    /// If an event comes, if the stream breaks off, or if it does not end within the time limit.
    pub async fn end(&mut self) -> Result<(), ReadError> {
        match self.event().await {
            Ok(event) => Err(ReadError::GoesOn(Decoded::Event(event))),
            Err(ReadError::Ended) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What the client would send as `Last-Event-ID` if it came back now.
    ///
    /// Now is after the last frame that was read, which may hold more events than
    /// [`event`](Self::event) has given: to cut a client behind a certain event, take that event's
    /// own [`last_event_id`](MessageEvent::last_event_id).
    pub fn last_event_id(&self) -> &str {
        self.decoder.last_event_id()
    }
}

impl fmt::Debug for EventReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventReader")
            .field("last_event_id", &self.last_event_id())
            .field("time_limit", &self.time_limit)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("event stream has ended"),
            Self::Broken(_) => f.write_str("event stream has broken off"),
            Self::TimedOut(time) => write!(f, "nothing came within {time:?}"),
            Self::TooLong(error) => error.fmt(f),
            Self::GoesOn(decoded) => write!(f, "event stream goes on with {decoded:?}"),
        }
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Broken(error) => Some(&**error),
            _ => None,
        }
    }
}

async fn limited<F: Future>(time: Duration, future: F) -> Result<F::Output, ReadError> {
    let result = timeout(time, future).await;
    result.map_err(|_| ReadError::TimedOut(time))
}

/// An inner service that answers 200 and keeps the connection.
#[derive(Clone, Default)]
struct Capture {
    /// Guards what the one call has left for its caller.
    connection: Arc<Mutex<Option<SseConnection>>>,
}

impl Service<Request<()>> for Capture {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<()>) -> Self::Future {
        let connection = request.extensions_mut().remove();
        let place = self.connection.lock();
        *place.unwrap_or_else(PoisonError::into_inner) = connection;
        ready(Ok(Response::default()))
    }
}
