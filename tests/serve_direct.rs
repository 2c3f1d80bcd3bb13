//! Which streams are driven straight on their sockets, and that nobody can tell from the wire.

mod support;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::any,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use support::{
    raw::{End, Raw},
    server::Server,
    until, within,
};
use tokio::sync::mpsc;
use tower_http::{
    catch_panic::CatchPanicLayer, cors::CorsLayer, limit::RequestBodyLimitLayer,
    timeout::TimeoutLayer, trace::TraceLayer,
};
use tower_sse::{CloseReason, Connections, Event, SseConnection, SseLayer};

/// What a layer outside sees of a response body.
#[derive(Clone, Default)]
struct Seen {
    polls: Arc<AtomicUsize>,
    is_dropped: Arc<AtomicBool>,
}

/// A body that is looked at from outside.
struct Watched {
    inner: Body,
    seen: Seen,
    changes: Change,
}

/// What a layer outside does to a body.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    Nothing,
    /// Copies the first frame to another place.
    Frame,
    /// Says that it is compressed.
    Encoding,
    Status,
    Length,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.seen.polls.fetch_add(1, Ordering::SeqCst);
        let changes = self.changes;
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        frame.map_ok(|frame| match (changes, frame.into_data()) {
            (Change::Frame, Ok(data)) => Frame::data(Bytes::copy_from_slice(&data)),
            (_, Ok(data)) => Frame::data(data),
            (_, Err(frame)) => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.seen.is_dropped.store(true, Ordering::SeqCst);
    }
}

/// An application whose connections come out of a channel, with a layer outside that watches.
struct App {
    router: Router,
    seen: Seen,
    connections: Connections,
    opened: mpsc::Receiver<SseConnection>,
}

fn app_of(layer: SseLayer, change: Change, runs_on: bool) -> App {
    let connections = layer.connections().clone();
    let (sender, opened) = mpsc::channel(16);
    let handler = move |sse: SseConnection| {
        let sender = sender.clone();
        async move {
            sender.send(sse.clone()).await.unwrap();
            if runs_on {
                sse.start();
                sse.closed().await;
            }
        }
    };
    let seen = Seen::default();
    let watch = {
        let seen = seen.clone();
        move |request: Request, next: Next| {
            let seen = seen.clone();
            async move {
                let mut response: Response = next.run(request).await;
                let headers = response.headers_mut();
                match change {
                    Change::Encoding => {
                        headers.insert("content-encoding", "identity".parse().unwrap());
                    }
                    Change::Length => {
                        headers.insert("content-length", "1000000".parse().unwrap());
                    }
                    Change::Status => {
                        *response.status_mut() = http::StatusCode::NON_AUTHORITATIVE_INFORMATION
                    }
                    _ => {}
                }
                response.map(|inner| {
                    Body::new(Watched {
                        inner,
                        seen,
                        changes: change,
                    })
                })
            }
        }
    };
    let router = Router::new()
        .route("/events", any(handler))
        .layer(layer)
        .route("/plain", any(|| async { "plain" }))
        .layer(from_fn(watch));
    App {
        router,
        seen,
        connections,
        opened,
    }
}

/// One whose first event is the same each time.
fn layer() -> SseLayer {
    SseLayer::new("/events")
        .methods([http::Method::GET, http::Method::POST])
        .welcome(|_| Event::message("hello"))
        .without_retry()
}

fn app() -> App {
    app_of(layer(), Change::Nothing, false)
}

const GET: &str = "GET /events HTTP/1.1\r\nhost: a\r\n";

/// Whether a request's stream is driven directly: then nobody polls its body.
async fn is_direct(mut app: App, request: &str) -> bool {
    let server = Server::ours(app.router.clone(), true).await;
    let mut client = Raw::connect(server.address).await;
    client.send(request).await;
    let sse = within("the request", app.opened.recv()).await.unwrap();
    sse.send(Event::message("x".repeat(40_000))).await.unwrap();
    sse.send(Event::message("end")).await.unwrap();
    sse.close();
    drop(sse);
    within("the end", async {
        let mut read = Vec::new();
        while !find(&read, b"data: end\n\n") {
            let more = client.more().await;
            assert!(!more.is_empty(), "{}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&more);
        }
    })
    .await;
    until("the body is dropped", || {
        app.seen.is_dropped.load(Ordering::SeqCst)
    })
    .await;
    until("the connection is gone", || app.connections.is_empty()).await;
    app.seen.polls.load(Ordering::SeqCst) == 1
}

fn find(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn a_stream_that_nobody_has_touched_is_direct() {
    assert!(is_direct(app(), GET).await);
}

#[tokio::test]
async fn a_stream_stays_with_hyper_where_something_is_still_to_be_done() {
    let post = "POST /events HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n";
    assert!(is_direct(app(), post).await, "a request without a body");
    let post = "POST /events HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx";
    assert!(!is_direct(app(), post).await, "a request with a body");
    let old = "GET /events HTTP/1.0\r\nhost: a\r\n";
    assert!(!is_direct(app(), old).await, "HTTP/1.0");
    let expects = "GET /events HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n";
    assert!(!is_direct(app(), expects).await, "an expectation");
    for change in [Change::Frame, Change::Encoding, Change::Status] {
        let app = app_of(layer(), change, false);
        assert!(!is_direct(app, GET).await, "what a layer has changed");
    }
    let running = app_of(layer(), Change::Nothing, true);
    assert!(!is_direct(running, GET).await, "a handler that runs");
    let quiet = app_of(layer().without_welcome(), Change::Nothing, false);
    assert!(!is_direct(quiet, GET).await, "nothing to give at first");
}

#[tokio::test]
async fn a_length_that_a_layer_outside_has_set_is_kept_to() {
    // Whatever a layer means by it, what hyper makes of it is what the client gets.
    let mut app = app_of(layer(), Change::Length, false);
    let server = Server::ours(app.router.clone(), true).await;
    let mut client = Raw::request(server.address, GET).await;
    let head = client.head().await;
    assert_eq!(head.headers["content-length"], "1000000");
    assert!(!head.headers.contains_key("transfer-encoding"));
    drop(within("the request", app.opened.recv()).await);
    assert!(client.rest().await.starts_with(b"data: hello"));
}

#[tokio::test]
async fn the_usual_layers_outside_leave_a_stream_direct() {
    let mut app = app();
    app.router = app
        .router
        .layer(CorsLayer::permissive())
        .layer(RequestBodyLimitLayer::new(1000))
        .layer(TimeoutLayer::with_status_code(
            http::StatusCode::REQUEST_TIMEOUT,
            Duration::from_secs(5),
        ))
        .layer(CatchPanicLayer::new())
        .layer(TraceLayer::new_for_http());
    assert!(is_direct(app, GET).await);
}

/// All that comes over the wire for one stream, with the server's date blotted out.
async fn wire(is_direct: bool, request: &str, fails: bool) -> (String, End) {
    let mut app = app();
    let server = Server::ours(app.router.clone(), is_direct).await;
    let mut client = Raw::connect(server.address).await;
    client.send(request).await;
    let sse = within("the request", app.opened.recv()).await.unwrap();
    let mut text = String::new();
    let head = client.stream_head().await;
    for (name, value) in &head.headers {
        let value = if name == "date" {
            ""
        } else {
            value.to_str().unwrap()
        };
        text += &format!("{name}: {value}\n");
    }
    let mut add =
        |chunk: Vec<u8>| text += &format!("{}: {}", chunk.len(), String::from_utf8_lossy(&chunk));
    add(client.chunk().await.unwrap());
    for size in [1, 15, 16, 255, 4095, 4096, 100_000, 2_000_000] {
        sse.send(Event::message("x".repeat(size))).await.unwrap();
        add(client.chunk().await.unwrap());
    }
    for number in 0..50 {
        sse.try_send(Event::message(number.to_string())).unwrap();
    }
    add(client.chunk().await.unwrap());
    if fails {
        sse.fail("broken");
    } else {
        sse.close_with(Event::message("last")).unwrap();
    }
    let end = loop {
        match client.chunk().await {
            Ok(chunk) => add(chunk),
            Err(end) => break end,
        }
    };
    if end == End::LastChunk {
        client
            .send("GET /plain HTTP/1.1\r\nhost: a\r\nconnection: close\r\n")
            .await;
        let rest = client.rest().await;
        assert!(
            rest.ends_with(b"\r\n\r\nplain"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
    }
    (text, end)
}

#[tokio::test]
async fn the_wire_is_the_same_byte_for_byte_and_so_is_the_end() {
    for fails in [false, true] {
        let (direct, end) = wire(true, GET, fails).await;
        assert_eq!(end, if fails { End::Cut } else { End::LastChunk });
        let (hyper, hypers_end) = wire(false, GET, fails).await;
        assert!(direct == hyper, "they differ");
        assert_eq!(end, hypers_end);
    }
}

#[tokio::test]
async fn the_socket_is_used_again_and_nothing_that_was_pipelined_is_lost() {
    let mut app = app();
    let server = Server::ours(app.router.clone(), true).await;
    let mut client = Raw::connect(server.address).await;
    for number in 0..3 {
        // Two requests at once, and a third in the middle of the first one's stream.
        let plain = "GET /plain HTTP/1.1\r\nhost: a\r\n";
        client.send(&format!("{GET}\r\n{plain}")).await;
        let sse = within("the request", app.opened.recv()).await.unwrap();
        client.stream_head().await;
        assert_eq!(client.chunk().await.unwrap(), b"data: hello\n\n");
        client.send_bytes(b"GET /plain HTTP/1.1\r\nho").await;
        sse.send(Event::message("1")).await.unwrap();
        assert_eq!(client.chunk().await.unwrap(), b"data: 1\n\n");
        sse.close();
        drop(sse);
        assert_eq!(client.chunk().await, Err(End::LastChunk));
        client.send_bytes(b"st: a\r\n\r\n").await;
        for _ in 0..2 {
            let head = client.head().await;
            assert_eq!(head.headers["content-length"], "5", "{number}");
            assert_eq!(client.take(5).await, b"plain");
        }
    }
    assert_eq!(app.connections.stats().closed(CloseReason::Closed), 3);
}

#[tokio::test]
async fn the_socket_is_closed_behind_a_stream_where_either_side_says_so() {
    let mut app = app();
    let server = Server::ours(app.router.clone(), true).await;
    let request = "GET /events HTTP/1.1\r\nhost: a\r\nconnection: Close\r\n";
    let mut client = Raw::request(server.address, request).await;
    let head = client.stream_head().await;
    assert_eq!(head.headers["connection"], "close");
    let sse = within("the request", app.opened.recv()).await.unwrap();
    sse.close();
    drop(sse);
    assert!(client.rest().await.ends_with(b"\r\n0\r\n\r\n"));
    assert_eq!(app.seen.polls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_however_it_leaves() {
    for resets in [true, false] {
        let mut app = app();
        let server = Server::ours(app.router.clone(), true).await;
        let mut client = Raw::request(server.address, GET).await;
        let sse = within("the request", app.opened.recv()).await.unwrap();
        client.stream_head().await;
        client.chunk().await.unwrap();
        if resets {
            client.reset();
        } else {
            drop(client);
        }
        assert_eq!(
            within("the end", sse.closed()).await,
            CloseReason::ClientGone
        );
        until("the body is dropped", || {
            app.seen.is_dropped.load(Ordering::SeqCst)
        })
        .await;
        assert!(app.connections.is_empty());
    }
}
