//! Opens streams under a paused clock, and reads them in tasks of their own.

use crate::Held;
use std::{convert::Infallible, future::Future, ops::RangeInclusive, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use tokio::{task::JoinHandle, time::Instant};
use tower::{Layer, service_fn};
use tower_sse::{
    BoxError, Connections, Event, SseConnection, SseLayer,
    event::{Decoded, MessageEvent},
    test_util::{EventReader, ReadError},
};

use super::paths;

/// How finely the registry's clock cuts time.
pub const TICK: Duration = Duration::from_millis(64);

/// Longer than any wait that is meant.
pub const LONG: Duration = Duration::from_secs(10_000_000);

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How often a test looks whether something has happened.
const LOOK: Duration = Duration::from_millis(8);

/// Never early, and at most one tick late.
pub fn about(time: Duration) -> RangeInclusive<Duration> {
    time..=time + TICK + LOOK
}

/// A layer without a welcome or heartbeats.
pub fn bare(connections: &Connections) -> SseLayer {
    let layer = SseLayer::new("/events").registry(connections);
    paths::without_welcome(layer).keep_alive(None)
}

pub fn request() -> Request<()> {
    Request::get("/events").body(()).unwrap()
}

/// A stream that has started, with a handle on it: its handler has answered.
pub async fn connect(layer: &SseLayer) -> (SseConnection, EventReader) {
    let (sse, events) = paths::connection_of(layer, request()).await;
    (sse, events.time_limit(LONG))
}

/// Answers a request of the layer, however long that takes.
pub async fn answer(layer: &SseLayer, request: Request<()>) -> Response<EventReader> {
    let inner = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let response = paths::read(layer.layer(inner), request).await.unwrap();
    response.map(|events| events.time_limit(LONG))
}

/// The layer, with a handler that answers in place of the inner service, and that runs inside the
/// body once it has started the stream.
pub fn handled<F, Fut>(layer: &SseLayer, handler: F) -> SseLayer
where
    F: Fn(SseConnection) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), StatusCode>> + Send + 'static,
{
    layer.clone().accept(move |sse, _| handler(sse))
}

/// All that a client read, and how and when it ended.
#[derive(Debug)]
pub struct Reading {
    pub events: Vec<MessageEvent>,
    pub retries: Vec<Duration>,
    pub comments: usize,
    pub error: Option<BoxError>,
    pub ended: Instant,
}

/// Reads to the end.
pub async fn read(mut stream: EventReader) -> Reading {
    let mut reading = Reading {
        events: Vec::new(),
        retries: Vec::new(),
        comments: 0,
        error: None,
        ended: Instant::now(),
    };
    loop {
        match stream.decoded().await {
            Ok(Decoded::Event(event)) => reading.events.push(event),
            Ok(Decoded::Retry(time)) => reading.retries.push(time),
            Ok(_) => reading.comments += 1,
            Err(ReadError::Ended) => break,
            Err(ReadError::Broken(error)) => {
                reading.error = Some(error);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    reading.ended = Instant::now();
    reading
}

/// Opens a stream of the layer, and reads it in a task.
pub fn reader(layer: &SseLayer) -> JoinHandle<Reading> {
    let layer = layer.clone();
    tokio::spawn(async move { read(answer(&layer, request()).await.into_body()).await })
}

impl Reading {
    /// Types and data, as `type: data`.
    pub fn texts(&self) -> Vec<String> {
        let text = |event: &MessageEvent| format!("{}: {}", event.event_type, event.data);
        self.events.iter().map(text).collect()
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.error.is_none(), "{:?}", self.error);
    }

    /// Asserts that the stream was cut, so that a client can tell it from a finished one.
    #[track_caller]
    pub fn assert_cut(&self) {
        let error = self.error.as_ref().map(ToString::to_string);
        let expected = "event stream was aborted before it was complete";
        assert_eq!(error.as_deref(), Some(expected));
    }
}

pub fn text(text: &str) -> Event {
    Event::message(text)
}

/// Lets every task run that can, without time passing.
pub async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Waits for an end that has to come without anybody polling the body.
pub async fn emptied(connections: &Connections) -> Instant {
    let began = Instant::now();
    while connections.held() > 0 {
        assert!(began.elapsed() < seconds(1_000), "{connections:?}");
        tokio::time::sleep(LOOK).await;
    }
    Instant::now()
}
