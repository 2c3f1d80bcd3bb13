//! Direct streams of bodies that do unusual things: empty frames, trailers, errors and panics.
//!
//! The same bodies are sent by hyper, and the bytes on the wire are equal.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Frame;
use support::{
    raw::{End, Raw},
    server::Server,
    until, within,
};
use tokio::sync::mpsc;
use tower_sse::{BoxError, Connections, Event, SseLayer, test_util::DirectProbe};

const GET: &str = "GET /odd HTTP/1.1\r\nhost: a\r\n";
const PLAIN: &str = "GET /plain HTTP/1.1\r\nhost: a\r\n";

/// What a body does at one poll.
#[derive(Clone, Copy, Debug)]
enum Step {
    Frame(&'static str),
    /// Returns `Pending`, and wakes its task.
    Yield,
    Trailers,
    Fail,
    Panic,
}
use Step::{Fail, Panic, Trailers, Yield};

/// A body that follows a list of steps, then ends.
struct Scripted {
    steps: std::vec::IntoIter<Step>,
    drops: Arc<AtomicUsize>,
    panics_when_dropped: bool,
}

impl http_body::Body for Scripted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(step) = self.steps.as_slice().first().copied() else {
            return Poll::Ready(None);
        };
        self.steps.next();
        Poll::Ready(Some(match step {
            Step::Frame(text) => Ok(Frame::data(text.into())),
            Trailers => {
                let name = header::HeaderName::from_static("x-end");
                let trailers = HeaderMap::from_iter([(name, "1".parse().unwrap())]);
                Ok(Frame::trailers(trailers))
            }
            Fail => Err("failed".into()),
            Panic => panic!("a body panics"),
            Yield => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }))
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.drops.fetch_add(1, SeqCst);
        if self.panics_when_dropped {
            panic!("a destructor panics");
        }
    }
}

/// A server of one such body.
struct Odd {
    server: Server,
    drops: Arc<AtomicUsize>,
    connections: Connections,
    probes: mpsc::Receiver<DirectProbe>,
}

impl Odd {
    async fn new(steps: &[Step], panics_when_dropped: bool, is_direct: bool) -> Self {
        let drops = Arc::new(AtomicUsize::new(0));
        let (sender, probes) = mpsc::channel(8);
        let body = {
            let (steps, drops) = (steps.to_vec(), Arc::clone(&drops));
            async move || {
                let body = Body::new(Scripted {
                    steps: steps.clone().into_iter(),
                    drops: Arc::clone(&drops),
                    panics_when_dropped,
                });
                ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
            }
        };
        let probe = from_fn(move |request: Request, next: Next| {
            sender
                .try_send(DirectProbe::of(request.extensions()).unwrap())
                .unwrap();
            next.run(request)
        });
        let connections = Connections::new();
        let quiet = SseLayer::new("/events")
            .registry(&connections)
            .hold_open(true);
        let router = Router::new()
            .route("/odd", get(body))
            .layer(probe)
            .route("/plain", get(async || "plain"))
            .route("/events", get(async || ()).layer(quiet));
        Self {
            server: Server::ours(router, is_direct).await,
            drops,
            connections,
            probes,
        }
    }

    /// Returns whether the next response was a direct stream.
    async fn was_direct(&mut self) -> bool {
        let probe = within("a request", self.probes.recv()).await.unwrap();
        probe.is_direct()
    }

    async fn dropped(&self, times: usize) {
        until("the body to be dropped", || {
            self.drops.load(SeqCst) == times
        })
        .await;
    }
}

/// Returns what comes after the head of a response of this body, on both paths; the bytes are equal.
async fn sent(steps: &[Step]) -> String {
    let mut both = Vec::new();
    for is_direct in [true, false] {
        let mut odd = Odd::new(steps, false, is_direct).await;
        let request = format!("{GET}connection: close\r\n");
        let mut client = Raw::request(odd.server.address, &request).await;
        client.stream_head().await;
        both.push(String::from_utf8(client.rest().await).unwrap());
        assert_eq!(odd.was_direct().await, is_direct);
        odd.dropped(1).await;
    }
    assert_eq!(both[0], both[1], "direct, and in hyper");
    both.swap_remove(0)
}

const A: Step = Step::Frame("data: a\n\n");
const B: Step = Step::Frame("data: b\n\n");
const EMPTY: Step = Step::Frame("");

#[tokio::test]
async fn empty_frames_are_not_sent() {
    for steps in [
        &[EMPTY, A, EMPTY, EMPTY, B, EMPTY][..],
        &[A, Yield, EMPTY, Yield, EMPTY, B],
        &[Yield, EMPTY, Yield, A, B],
    ] {
        let sent = sent(steps).await;
        let chunks = "9\r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n";
        assert_eq!(sent, chunks, "{steps:?}");
    }
}

#[tokio::test]
async fn response_after_empty_frames_is_read_correctly() {
    let steps = [A, EMPTY, Yield, EMPTY, B, EMPTY];
    let mut odd = Odd::new(&steps, false, true).await;
    let mut client = Raw::connect(odd.server.address).await;
    for _ in 0..2 {
        client.send(GET).await;
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().data, "a");
        assert_eq!(client.event().await.unwrap().data, "b");
        assert_eq!(client.chunk().await, Err(End::LastChunk));
        client.send(PLAIN).await;
        assert_eq!(client.head().await.headers["content-length"], "5");
        assert_eq!(client.take(5).await, b"plain");
        assert!(odd.was_direct().await);
    }
}

#[tokio::test]
async fn trailers_end_a_stream_cleanly_without_being_sent() {
    for steps in [
        &[A, Trailers][..],
        &[A, Yield, Trailers],
        &[Yield, A, Trailers, B],
    ] {
        assert_eq!(
            sent(steps).await,
            "9\r\ndata: a\n\n\r\n0\r\n\r\n",
            "{steps:?}"
        );
    }
}

#[tokio::test]
async fn failed_body_breaks_the_stream_off() {
    for steps in [
        &[A, Yield, Fail][..],
        &[A, Yield, B, Yield, Fail],
        &[Yield, Yield, Fail],
    ] {
        let sent = sent(steps).await;
        assert!(!sent.contains("0\r\n"), "{steps:?}: {sent:?}");
        let frames = steps.iter().filter(|step| matches!(step, Step::Frame(_)));
        assert_eq!(sent.matches("data: ").count(), frames.count());
    }
}

#[tokio::test]
async fn body_that_panics_breaks_its_stream_off_alone() {
    for panics_when_dropped in [false, true] {
        for steps in [&[A, Yield, Panic][..], &[Yield, Panic]] {
            let mut odd = Odd::new(steps, panics_when_dropped, true).await;
            let (address, connections) = (odd.server.address, odd.connections.clone());
            let events = "GET /events HTTP/1.1\r\nhost: a\r\n";
            let mut other = Raw::request(address, events).await;
            other.stream_head().await;
            assert_eq!(other.event().await.unwrap().event_type, "welcome");
            let mut client = Raw::request(address, GET).await;
            client.stream_head().await;
            while client.chunk().await.is_ok() {}
            assert_eq!(client.chunk().await, Err(End::Cut));
            assert!(odd.was_direct().await);
            odd.dropped(1).await;
            // The other stream goes on, and so does the server.
            client = Raw::request(address, PLAIN).await;
            client.head().await;
            assert_eq!(client.take(5).await, b"plain");
            let sse = connections.iter().next().unwrap();
            sse.send(Event::message("on")).await.unwrap();
            assert_eq!(other.event().await.unwrap().data, "on");
        }
    }
}

#[tokio::test]
async fn destructor_that_panics_does_not_disturb_a_clean_end() {
    let mut odd = Odd::new(&[A, Yield, B], true, true).await;
    let mut client = Raw::connect(odd.server.address).await;
    for times in 1..=2 {
        client.send(GET).await;
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().data, "a");
        assert_eq!(client.event().await.unwrap().data, "b");
        assert_eq!(client.chunk().await, Err(End::LastChunk));
        odd.dropped(times).await;
        assert!(odd.was_direct().await);
    }
}

#[tokio::test]
async fn destructor_that_panics_does_not_disturb_the_servers_end() {
    for shuts_down in [true, false] {
        let drops = Arc::new(AtomicUsize::new(0));
        let connections = Connections::new();
        let layer = SseLayer::new("/events").registry(&connections);
        // Streams in which no handler runs, and which a driver has: a panic there would reach others.
        let app = {
            let drops = Arc::clone(&drops);
            Router::new()
                .route("/events", get(async || ()))
                .layer(layer.hold_open(true))
                .layer(axum::middleware::map_response(move |response: Response| {
                    let drops = Arc::clone(&drops);
                    async move { response.map(|body| Body::new(Panicking { body, drops })) }
                }))
        };
        let mut server = Server::ours_with(app, |serve| {
            serve.shutdown_deadline(std::time::Duration::from_millis(100))
        })
        .await;
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client =
                Raw::request(server.address, "GET /events HTTP/1.1\r\nhost: a\r\n").await;
            client.stream_head().await;
            client.chunk().await.unwrap();
            clients.push(client);
        }
        let sse = connections.iter().next().unwrap();
        sse.send(Event::message("1")).await.unwrap();
        if shuts_down {
            server.begin_stop();
            server.finished().await;
        } else {
            drop(server);
        }
        until("all bodies to be dropped", || drops.load(SeqCst) == 5).await;
        for client in &mut clients {
            while client.chunk().await.is_ok() {}
            assert_eq!(client.chunk().await, Err(End::Cut));
        }
        assert!(connections.is_empty());
    }
}

/// A body whose destructor panics.
struct Panicking {
    body: Body,
    drops: Arc<AtomicUsize>,
}

impl http_body::Body for Panicking {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

impl Drop for Panicking {
    fn drop(&mut self) {
        self.drops.fetch_add(1, SeqCst);
        panic!("a destructor panics");
    }
}
