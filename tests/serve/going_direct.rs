//! Which streams are driven straight on their sockets, and that nobody can tell from the wire.

use std::time::Duration;

use http::Method;
use support::{
    raw::{End, Raw},
    server::Server,
    streams::{Change, GET, Streams},
    within,
};
use tower_http::{
    catch_panic::CatchPanicLayer, cors::CorsLayer, limit::RequestBodyLimitLayer,
    timeout::TimeoutLayer, trace::TraceLayer,
};
use tower_sse::{Broker, CloseReason, Event, SseConnection, SseLayer};

fn layer() -> SseLayer {
    SseLayer::new("/events").methods([Method::GET, Method::POST])
}

fn streams() -> Streams {
    Streams::new(layer())
}

/// Returns whether a request's stream is direct.
async fn is_direct(mut streams: Streams, request: &str) -> bool {
    let server = Server::ours(streams.router.clone(), true).await;
    let mut client = Raw::connect(server.address).await;
    client.send(request).await;
    let sse = streams.next().await;
    sse.send(Event::message("x".repeat(40_000))).await.unwrap();
    sse.send(Event::message("end")).await.unwrap();
    sse.close();
    drop(sse);
    read_up_to(&mut client, &mut Vec::new(), b"data: end\n\n").await;
    streams.gone().await;
    streams.direct() == 1
}

/// Reads until this has come.
async fn read_up_to(client: &mut Raw, read: &mut Vec<u8>, end: &[u8]) {
    let reads = async {
        let mut looked_at = 0;
        while !find(&read[looked_at..], end) {
            looked_at = read.len().saturating_sub(end.len());
            let more = client.more().await;
            assert!(!more.is_empty(), "{}", String::from_utf8_lossy(read));
            read.extend_from_slice(&more);
        }
    };
    within("the end", reads).await;
}

fn find(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn unmodified_stream_is_direct() {
    assert!(is_direct(streams(), GET).await);
}

#[tokio::test]
async fn stream_that_needs_hyper_stays_with_it() {
    let post = "POST /events HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n";
    assert!(is_direct(streams(), post).await, "a request without a body");
    let post = "POST /events HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx";
    assert!(!is_direct(streams(), post).await, "a request with a body");
    let old = "GET /events HTTP/1.0\r\nhost: a\r\n";
    assert!(!is_direct(streams(), old).await, "HTTP/1.0");
    let expects = "GET /events HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n";
    assert!(!is_direct(streams(), expects).await, "an expectation");
    let other = Streams::changed(layer(), Change::Status);
    assert!(!is_direct(other, GET).await, "another status");
}

#[tokio::test]
async fn stream_is_direct_whatever_its_layers_and_handler_do() {
    for change in [Change::Frames, Change::Encoding] {
        let changed = Streams::changed(layer(), change);
        assert!(is_direct(changed, GET).await, "a layer changes it");
    }
    let running = Streams::with(layer(), Change::Nothing, true);
    assert!(is_direct(running, GET).await, "a handler runs");
    let quiet = Streams::with(layer().welcome(None), Change::Nothing, false);
    assert!(is_direct(quiet, GET).await, "nothing to send at first");
}

#[tokio::test]
async fn content_length_set_by_an_outer_layer_is_kept() {
    // Whatever a layer means by it, what hyper makes of it is what the client gets.
    let mut streams = Streams::changed(layer(), Change::Length);
    let server = Server::ours(streams.router.clone(), true).await;
    let mut client = Raw::request(server.address, GET).await;
    let head = client.head().await;
    assert_eq!(head.headers["content-length"], "1000000");
    assert!(!head.headers.contains_key("transfer-encoding"));
    drop(streams.next().await);
    assert!(client.rest().await.starts_with(b"data: hello"));
}

#[tokio::test]
async fn stream_below_common_outer_layers_is_direct() {
    let mut streams = streams();
    streams.router = streams
        .router
        .layer(CorsLayer::permissive())
        .layer(RequestBodyLimitLayer::new(1000))
        .layer(TimeoutLayer::with_status_code(
            http::StatusCode::REQUEST_TIMEOUT,
            Duration::from_secs(5),
        ))
        .layer(CatchPanicLayer::new())
        .layer(TraceLayer::new_for_http());
    assert!(is_direct(streams, GET).await);
}

/// A stream on one of the paths, and all that has come of it over the wire.
struct OnWire {
    streams: Streams,
    _server: Server,
    client: Raw,
    sse: SseConnection,
    wire: Vec<u8>,
}

impl OnWire {
    async fn open(is_direct: bool, request: &str) -> Self {
        let mut streams = streams();
        let server = Server::ours(streams.router.clone(), is_direct).await;
        let mut client = Raw::request(server.address, request).await;
        let sse = streams.next().await;
        let mut wire = Vec::new();
        read_up_to(&mut client, &mut wire, b"data: hello\n\n\r\n").await;
        Self {
            streams,
            _server: server,
            client,
            sse,
            wire,
        }
    }

    /// Reads a chunk that ends so.
    async fn read(&mut self, end: &str) {
        let mut read = Vec::new();
        let end = format!("{end}\n\n\r\n");
        read_up_to(&mut self.client, &mut read, end.as_bytes()).await;
        self.wire.append(&mut read);
    }

    /// All bytes, with the server's dates blotted out.
    fn bytes(self) -> Vec<u8> {
        let mut wire = self.wire;
        let name = b"\r\ndate: ";
        let mut at = 0;
        while let Some(found) = wire[at..].windows(name.len()).position(|it| it == name) {
            at += found + name.len();
            // As long each time.
            wire[at..at + "Thu, 01 Jan 1970 00:00:00 GMT".len()].fill(b'-');
        }
        wire
    }
}

/// What comes over the wire on both paths, of streams that end in this way.
async fn wires(request: &str, end: impl AsyncFn(&mut OnWire)) -> [Vec<u8>; 2] {
    let broker = Broker::in_memory();
    let mut both = [
        OnWire::open(true, request).await,
        OnWire::open(false, request).await,
    ];
    for path in &mut both {
        // Lengths of one to six digits in hexadecimal, and both sides of each limit.
        for size in [1, 7, 8, 247, 248, 4087, 4088, 65_527, 65_528, 2_000_000] {
            let text = "x".repeat(size);
            path.sse.send(Event::message(text)).await.unwrap();
            path.read("x").await;
        }
        // Small ones that come at once, and more than one frame takes.
        for number in 0..50 {
            let text = number.to_string();
            path.sse.try_send(Event::message(text)).unwrap();
        }
        path.read("data: 49").await;
        for text in ["a", "b", "c"] {
            let text = text.repeat(20_000);
            path.sse.try_send(Event::message(text)).unwrap();
        }
        path.read("c").await;
        broker.subscribe(&path.sse, "topic").await.unwrap().start();
        // Its place.
        path.read("").await;
    }
    for size in [1, 100, 50_000] {
        let text = "y".repeat(size);
        let place = broker.publish("topic", Event::message(text)).await.unwrap();
        for path in &mut both {
            path.read(&place.to_string()).await;
        }
    }
    let [direct, hyper] = &both;
    assert_eq!(direct.streams.direct(), 1);
    assert_eq!(hyper.streams.direct(), 0);
    for path in &mut both {
        end(path).await;
        let mut rest = path.client.rest().await;
        path.wire.append(&mut rest);
    }
    both.map(OnWire::bytes)
}

#[tokio::test]
async fn direct_and_hyper_streams_have_equal_bytes_and_ends() {
    let closing = "GET /events HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    let post = "POST /events HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n";
    // After a clean end the socket is used again.
    let again = async |path: &mut OnWire| {
        let last = "GET /plain HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
        path.client.send(last).await;
    };
    let last = async |path: &mut OnWire| {
        path.sse.close_with(Event::message("last")).unwrap();
    };
    let clean: &[u8] = b"\r\n0\r\n\r\n";
    for request in [GET, post] {
        let [direct, hyper] = wires(request, async |path| {
            last(path).await;
            again(path).await;
        })
        .await;
        assert!(direct == hyper, "they differ");
        assert!(find(&direct, clean) && direct.ends_with(b"\r\n\r\nplain"));
    }
    let [direct, hyper] = wires(closing, last).await;
    assert!(direct == hyper, "they differ");
    assert!(direct.ends_with(clean));
    // What was sent before comes, and no last chunk.
    let [direct, hyper] = wires(GET, async |path| {
        path.sse.try_send(Event::message("before")).unwrap();
        path.sse.fail("broken");
    })
    .await;
    assert!(direct == hyper, "they differ");
    assert!(direct.ends_with(b"\r\nE\r\ndata: before\n\n\r\n") && !find(&direct, clean));
}

#[tokio::test]
async fn socket_is_reused_and_pipelined_requests_are_kept() {
    let mut streams = streams();
    let server = Server::ours(streams.router.clone(), true).await;
    let mut client = Raw::connect(server.address).await;
    for number in 0..3 {
        // Two requests at once, and a third in the middle of the first one's stream.
        let plain = "GET /plain HTTP/1.1\r\nhost: a\r\n";
        client.send(&format!("{GET}\r\n{plain}")).await;
        let sse = streams.next().await;
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
    assert_eq!(streams.connections.stats().closed(CloseReason::Closed), 3);
}

#[tokio::test]
async fn connection_close_of_the_request_closes_the_socket() {
    let mut streams = streams();
    let server = Server::ours(streams.router.clone(), true).await;
    let request = "GET /events HTTP/1.1\r\nhost: a\r\nconnection: Close\r\n";
    let mut client = Raw::request(server.address, request).await;
    let head = client.stream_head().await;
    assert_eq!(head.headers["connection"], "close");
    let sse = streams.next().await;
    sse.close();
    drop(sse);
    assert!(client.rest().await.ends_with(b"\r\n0\r\n\r\n"));
    assert_eq!(streams.direct(), 1);
}

#[tokio::test]
async fn disconnect_by_close_or_reset_is_detected() {
    for resets in [true, false] {
        let mut streams = streams();
        let server = Server::ours(streams.router.clone(), true).await;
        let mut client = Raw::request(server.address, GET).await;
        let sse = streams.next().await;
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
        streams.gone().await;
    }
}
