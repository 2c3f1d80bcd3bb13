//! Handlers that run inside the response body, over real sockets: they go at the client's pace,
//! and when they fail the client can tell.

use super::SERVER;
use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use support::Held;

use axum::{Router, extract::State, routing::get};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use support::{
    NOTICED,
    client::Client,
    raw::{End, Raw},
    server::{Hyper, Server},
    stands_still, until, within,
};
use tokio::time::timeout;
use tower::ServiceBuilder;
use tower_sse::{
    BoxError, CloseReason, Connections, Event, SseConnection, SseLayer, test_util::ReadError,
};

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// What is seen of a handler that sends without end.
#[derive(Clone, Default)]
struct Flood {
    sent: Arc<AtomicUsize>,
    is_dropped: Arc<AtomicBool>,
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const EVENT_SIZE: usize = 16 * 1024;

/// The straight loop: nothing in it thinks of the client.
async fn flood(
    State(flood): State<Flood>,
    sse: SseConnection,
) -> Result<Infallible, tower_sse::Error> {
    let _dropped = SetOnDrop(flood.is_dropped);
    let text = "x".repeat(EVENT_SIZE);
    loop {
        sse.send(Event::message(&text)).await?;
        flood.sent.fetch_add(1, Ordering::SeqCst);
    }
}

impl Flood {
    fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    fn app(&self, connections: &Connections) -> Router {
        let flood = get(async |state, sse| match flood(state, sse).await {
            Ok(never) => match never {},
            Err(error) => error,
        });
        Router::new()
            .route("/events", flood)
            .with_state(self.clone())
            .layer(SseLayer::new("/events").registry(connections))
    }

    /// Waits until no more is sent. That it comes to this is half of what is tested; the other
    /// half is how far ahead the handler is then of a client that has read this many.
    async fn stopped(&self, read: usize) -> usize {
        let sent = stands_still("the handler to stop", || self.sent()).await;
        let ahead = ((sent - read) * EVENT_SIZE) >> 20;
        assert!(ahead < 8, "the handler is {ahead} MiB ahead of its client");
        sent
    }
}

/// The stream's own bookkeeping ends with the handler.
async fn is_gone(flood: &Flood, connections: &Connections) {
    let gone = until("the handler to be dropped", || {
        flood.is_dropped.load(Ordering::SeqCst) && connections.held() == 0
    });
    timeout(NOTICED, gone).await.expect("noticed in time");
}

#[tokio::test]
async fn sending_loop_is_paced_by_its_client_and_then_dropped() {
    for version in BOTH {
        let (state, connections) = (Flood::default(), Connections::new());
        let server = Server::hyper_or(SERVER, Hyper::Auto, state.app(&connections)).await;
        let mut client = Client::connect(server.address, version).await;
        let mut events = client.open("/events").await;

        let mut read = 0;
        for _ in 0..2 {
            let stopped = state.stopped(read).await;
            // It goes on when the client reads again, which first finds what was sent before.
            while state.sent() < stopped + 100 {
                assert_eq!(events.event().await.unwrap().data.len(), EVENT_SIZE);
                read += 1;
            }
        }
        // It leaves in the middle of what it does not read.
        state.stopped(read).await;
        drop((client, events));
        is_gone(&state, &connections).await;
    }
}

#[tokio::test]
async fn a_stalled_http_2_stream_does_not_stop_its_neighbour() {
    let (state, connections) = (Flood::default(), Connections::new());
    let app = state
        .app(&connections)
        .route("/plain", get(async || "plain"));
    let server = Server::hyper_or(SERVER, Hyper::Http2, app).await;
    let mut client = Client::connect(server.address, Version::HTTP_2).await;
    let stalled = client.open("/events").await;
    state.stopped(0).await;

    assert_eq!(&*client.get("/plain").await.2, b"plain");
    drop(stalled);
    is_gone(&state, &connections).await;
}

// ===== failures =====

type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, BoxError>> + Send>>;

/// A way for a handler to fail after its stream has started.
type Failure = fn(SseConnection) -> HandlerFuture;

const FAILURES: [(&str, Failure); 5] = [
    ("an error", |_| Box::pin(async { Err("broken".into()) })),
    ("an answer", |_| {
        Box::pin(async {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            Ok(response)
        })
    }),
    ("a panic", |_| {
        Box::pin(async { panic!("broken, on purpose") })
    }),
    ("fail, then an answer", |sse| {
        Box::pin(async move {
            sse.fail("broken");
            Ok(Response::default())
        })
    }),
    ("fail, and going on", |sse| {
        Box::pin(async move {
            sse.fail("broken");
            std::future::pending().await
        })
    }),
];

/// Sends this many events of this many bytes, and fails at once.
fn failing_service(
    failure: Failure,
    events: usize,
    size: usize,
    layer: SseLayer,
) -> impl tower::Service<
    Request<Incoming>,
    Response = Response<tower_sse::layer::SseBody<Full<Bytes>, HandlerFuture>>,
    Error = BoxError,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let handle = move |request: Request<Incoming>| -> HandlerFuture {
        let sse = request.extensions().get::<SseConnection>().cloned();
        Box::pin(async move {
            let Some(sse) = sse else {
                return Ok(Response::new(Full::from("still here")));
            };
            for number in 0..events {
                let text = format!("{number} {}", "x".repeat(size));
                sse.send(Event::message(text)).await?;
            }
            failure(sse).await
        })
    };
    ServiceBuilder::new().layer(layer).service_fn(handle)
}

fn layer() -> (SseLayer, tokio::sync::mpsc::Receiver<CloseReason>) {
    let (sender, reasons) = tokio::sync::mpsc::channel(100);
    let layer = SseLayer::new("/events").on_close(move |_, reason| {
        sender.try_send(reason).unwrap();
    });
    (layer, reasons)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_aborts_http_1_after_the_sent_events() {
    for (name, failure) in FAILURES {
        for _ in 0..5 {
            let (layer, mut reasons) = layer();
            let service = failing_service(failure, 100, 1000, layer);
            let server = Server::hyper_or(SERVER, Hyper::Auto, service).await;
            let request = "GET /events HTTP/1.1\r\nhost: x\r\n";
            let mut client = Raw::request(server.address, request).await;
            client.stream_head().await;
            assert_eq!(client.event().await.unwrap().event_type, "welcome");
            for number in 0..100 {
                let event = client.event().await;
                let event = event.unwrap_or_else(|end| panic!("{name}: {end:?} at {number}"));
                assert!(event.data.starts_with(&format!("{number} ")));
            }
            assert_eq!(client.event().await, Err(End::Cut), "{name}");
            assert_eq!(reasons.recv().await, Some(CloseReason::Failed));
        }
    }
}

/// The stream waits for 50 ms before its reset, in which the connection's task writes the events. With
/// one thread that task has its turn in this time, however busy the machine is.
#[tokio::test]
async fn failure_resets_its_http_2_stream_after_the_sent_events() {
    for (name, failure) in FAILURES {
        let (layer, mut reasons) = layer();
        let service = failing_service(failure, 100, 1000, layer);
        let server = Server::hyper_or(SERVER, Hyper::Auto, service).await;
        let mut client = Client::connect(server.address, Version::HTTP_2).await;
        for _ in 0..4 {
            let mut streams = Vec::new();
            for _ in 0..20 {
                streams.push(client.open("/events").await);
            }
            for events in &mut streams {
                for number in 0..100 {
                    let event = events.event().await;
                    let event =
                        event.unwrap_or_else(|error| panic!("{name}: {error:?} at {number}"));
                    assert!(event.data.starts_with(&format!("{number} ")));
                }
                let end = events.event().await;
                assert!(matches!(end, Err(ReadError::Broken(_))), "{name}: {end:?}");
                assert_eq!(reasons.recv().await, Some(CloseReason::Failed));
            }
        }
        // Only the stream was reset, not the connection.
        assert_eq!(&*client.get("/other").await.2, b"still here");
    }
}

#[tokio::test]
async fn handler_error_before_a_send_is_a_plain_response() {
    let (layer, mut reasons) = layer();
    let app = Router::new()
        .route(
            "/events",
            get(async |_: SseConnection| StatusCode::FORBIDDEN),
        )
        .layer(layer);
    let server = Server::chosen(SERVER, app).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    assert_eq!(client.get("/events").await.0, StatusCode::FORBIDDEN);
    drop(server);
    assert_eq!(reasons.try_recv().ok(), None);
}

/// The queue goes out with a handler that still runs; then it is dropped.
#[tokio::test]
async fn close_ends_a_running_handler_cleanly() {
    for version in BOTH {
        let state = Flood::default();
        let handler = async |State(flood): State<Flood>, sse: SseConnection| {
            let _dropped = SetOnDrop(flood.is_dropped);
            for number in 0..10 {
                let _ = sse.send(Event::message(number.to_string())).await;
            }
            sse.close();
            tokio::time::sleep(Duration::from_secs(3600)).await;
        };
        let app = Router::new()
            .route("/events", get(handler))
            .with_state(state.clone())
            .layer(SseLayer::new("/events"));
        let server = Server::hyper_or(SERVER, Hyper::Auto, app).await;
        let mut client = Client::connect(server.address, version).await;

        for _ in 0..2 {
            state.is_dropped.store(false, Ordering::SeqCst);
            let mut events = client.open("/events").await;
            for number in 0..10 {
                assert_eq!(events.event().await.unwrap().data, number.to_string());
            }
            within("the end", events.end()).await.unwrap();
            assert!(state.is_dropped.load(Ordering::SeqCst));
        }
    }
}
