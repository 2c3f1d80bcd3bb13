//! How long a server keeps what does nothing: heads that do not come, idle and silent connections,
//! and whatever still runs when it ends. Over sockets in memory, under a paused clock, so that what
//! takes minutes takes none.

use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing::any};
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    SLACK,
    client::Client,
    given::{given, given_with},
    raw::Raw,
    server::Server,
    streams::Streams,
    until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_sse::{Event, SseLayer};

/// The server's own time for heads, and for idle connections.
const IDLE: Duration = Duration::from_secs(75);

fn streams() -> Streams {
    Streams::new(SseLayer::new("/events"))
}

type Http2 = SendRequest<Empty<Bytes>>;
type Sockets = mpsc::Sender<io::Result<DuplexStream>>;

/// An HTTP/2 client, and what is ready when its connection has ended.
async fn http2(router: Router) -> (Http2, JoinHandle<()>) {
    http2_of(given(router)).await
}

async fn http2_of(sockets: Sockets) -> (Http2, JoinHandle<()>) {
    let (client, socket) = duplex(100_000);
    sockets.send(Ok(socket)).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(client));
    let (sender, connection) = handshake.await.unwrap();
    // It holds the server, too.
    let ended = tokio::spawn(async move {
        let _ = connection.await;
        drop(sockets);
    });
    (sender, ended)
}

/// Asserts that now is the end of a connection that has been idle since then.
#[track_caller]
fn assert_idle_since(since: Instant) {
    let took = since.elapsed();
    assert!(
        took >= IDLE && took < IDLE + Duration::from_secs(2),
        "{took:?}"
    );
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("http://a{path}"));
    request.body(Empty::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn idle_http2_connection_is_closed_after_its_last_request() {
    let (mut sender, ended) = http2(streams().router).await;
    let start = Instant::now();
    for _ in 0..5 {
        // Each request begins the time anew.
        sleep(IDLE - Duration::from_secs(5)).await;
        let answer = sender.send_request(get("/plain")).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    let last = Instant::now();
    assert!(last - start > 4 * IDLE);
    ended.await.unwrap();
    assert_idle_since(last);
}

#[tokio::test(start_paused = true)]
async fn http2_connection_without_any_request_is_closed() {
    let start = Instant::now();
    let (_sender, ended) = http2(streams().router).await;
    ended.await.unwrap();
    assert_idle_since(start);
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_with_a_stream_is_not_idle() {
    let mut streams = streams();
    let (mut sender, ended) = http2(streams.router.clone()).await;
    let answer = sender.send_request(get("/events")).await.unwrap();
    let sse = streams.next().await;
    sleep(20 * IDLE).await;
    assert!(!ended.is_finished() && !sse.is_closed());
    sse.close();
    drop((sse, answer));
    let start = Instant::now();
    ended.await.unwrap();
    assert_idle_since(start);
}

/// A client that keeps to what the server says asks for no more.
#[tokio::test(start_paused = true)]
async fn http2_connection_is_limited_to_its_maximum_streams() {
    let mut streams = streams();
    let sockets = given_with(streams.router.clone(), |serve| {
        serve.max_concurrent_streams(2)
    });
    let (mut sender, _ended) = http2_of(sockets).await;
    // The client learns of the bound with the first answer.
    let answer = sender.send_request(get("/plain")).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut open = Vec::new();
    for _ in 0..2 {
        let answer = sender.send_request(get("/events")).await.unwrap();
        open.push((answer, streams.next().await));
    }
    let third = sender.send_request(get("/plain"));
    tokio::pin!(third);
    let waited = timeout(Duration::from_secs(60), third.as_mut()).await;
    assert!(waited.is_err(), "it has to wait");
    drop(open.pop());
    assert_eq!(third.await.unwrap().status(), 200);
}

/// It has opened its connection, and then its machine is gone: it does not answer pings.
#[tokio::test(start_paused = true)]
async fn silent_http2_peer_is_closed() {
    let mut streams = streams();
    let sockets = given::<DuplexStream>(streams.router.clone());
    let (mut client, socket) = duplex(100_000);
    sockets.send(Ok(socket)).await.unwrap();
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    // GET http://a/events, with a header table of nobody's: indexed and literal fields.
    let fields = b"\x82\x86\x04\x07/events\x01\x01a";
    let mut frame = vec![0, 0, fields.len() as u8, 1, 0b101, 0, 0, 0, 1];
    frame.extend_from_slice(fields);
    client.write_all(&frame).await.unwrap();
    let sse = streams.next().await;
    let start = Instant::now();
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
    let took = start.elapsed();
    // A ping after 20 seconds, and 20 for its answer.
    let least = Duration::from_secs(40);
    assert!(took >= least && took < 2 * least, "{took:?}");
    sse.closed().await;
    // It was a request, and answered.
    let text = String::from_utf8_lossy(&read);
    assert!(text.contains("data: hello\n\n"), "{text:?}");
}

/// Nobody pings it here, and it does not answer the ping of a goodbye either.
#[tokio::test(start_paused = true)]
async fn idle_http2_peer_ignoring_goaway_is_closed() {
    let sockets =
        given_with::<DuplexStream>(streams().router, |serve| serve.http2_keep_alive(None));
    let (mut client, socket) = duplex(100_000);
    sockets.send(Ok(socket)).await.unwrap();
    let start = Instant::now();
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    client.read_to_end(&mut Vec::new()).await.unwrap();
    let took = start.elapsed();
    assert!(took >= 2 * IDLE && took < 3 * IDLE, "{took:?}");
}

#[tokio::test]
async fn unlimited_timeouts_are_accepted() {
    let mut streams = streams();
    let server = Server::ours_with(streams.router.clone(), |serve| {
        serve
            .header_read_timeout(Duration::MAX)
            .write_deadline(Some(Duration::MAX))
            .http2_keep_alive(Some(Duration::MAX))
            .shutdown_deadline(Duration::MAX)
    })
    .await;
    let mut client = Raw::connect(server.address).await;
    let sse = streams.open(&mut client).await;
    // More than the buffers take at once.
    sse.send(Event::message("x".repeat(8_000_000)))
        .await
        .unwrap();
    assert_eq!(client.event().await.unwrap().data.len(), 8_000_000);
    let mut client = Client::connect(server.address, Version::HTTP_2).await;
    let (_, _, body) = client.get("/plain").await;
    assert_eq!(body, "plain");
}

/// One timeout for the handshake and the first bytes, and one for the rest of the head.
#[tokio::test(start_paused = true)]
async fn slow_head_has_at_most_twice_its_timeout() {
    let sockets = given::<DuplexStream>(streams().router);
    let (mut client, socket) = duplex(100_000);
    sockets.send(Ok(socket)).await.unwrap();
    let start = Instant::now();
    let head = b"GET /plain HTTP/1.1\r\nhost: a\r\nx: ".iter();
    let mut sent = head.chain(std::iter::repeat(&b'y'));
    loop {
        sleep(Duration::from_secs(10)).await;
        let byte = *sent.next().unwrap();
        if client.write_all(&[byte]).await.is_err() {
            break;
        }
        assert!(start.elapsed() < 3 * IDLE, "it is still taken");
    }
    let took = start.elapsed();
    assert!(
        took >= IDLE && took <= 2 * IDLE + Duration::from_secs(20),
        "{took:?}"
    );
}

#[tokio::test]
async fn overlong_head_is_refused() {
    let streams = streams();
    let server = Server::ours(streams.router.clone(), true).await;
    for (length, status) in [(50_000, 200), (100_000, 431)] {
        let mut client = Raw::connect(server.address).await;
        let long = format!(
            "GET /plain HTTP/1.1\r\nhost: a\r\nx: {}\r\n",
            "x".repeat(length)
        );
        // It may be refused before all of it was sent.
        let _ = client
            .try_send_bytes(format!("{long}\r\n").as_bytes())
            .await;
        assert_eq!(client.head().await.status.as_u16(), status);
    }
}

// ===== the end =====

/// Counts what still runs.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test]
async fn requests_are_dropped_when_the_server_ends() {
    let running = Arc::new(AtomicUsize::new(0));
    let handler = {
        let running = Arc::clone(&running);
        async move || {
            let _running = Running::begin(&running);
            pending::<()>().await;
        }
    };
    let router = Router::new().route("/", any(handler));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut server = Server::ours_with(router.clone(), |serve| {
            serve.shutdown_deadline(Duration::from_millis(50))
        })
        .await;
        let mut requests = Vec::new();
        for _ in 0..10 {
            let mut client = Client::connect(server.address, version).await;
            let request = client.request(http::Method::GET, "/");
            requests.push(tokio::spawn(async move {
                let _ = timeout(Duration::from_secs(20), client.send_any(request)).await;
            }));
        }
        until("the handlers to run", || running.load(SeqCst) == 10).await;
        server.begin_stop();
        server.finished().await;
        assert_eq!(running.load(SeqCst), 0, "{version:?}");
        for request in requests {
            request.await.unwrap();
        }
    }
}

/// Its handler answers when no connection is accepted any more: it is a stream like the others, until
/// the server ends.
#[tokio::test]
async fn stream_opened_during_shutdown_is_served() {
    for is_direct in [true, false] {
        let (sender, mut opened) = mpsc::channel(1);
        let (go_on, gate) = tokio::sync::watch::channel(false);
        let handler = async move |sse: tower_sse::SseConnection| {
            sender.try_send(sse).unwrap();
            let _ = gate.clone().wait_for(|may| *may).await;
        };
        let router = Router::new()
            .route("/events", any(handler))
            .layer(SseLayer::new("/events"));
        // Long enough for what the client does before it, also on a busy machine.
        let time = Duration::from_secs(4);
        let mut server = Server::ours_with(router, |serve| {
            serve.direct(is_direct).shutdown_deadline(time)
        })
        .await;
        let mut client = Raw::request(server.address, "GET /events HTTP/1.1\r\nhost: a\r\n").await;
        let sse = opened.recv().await.unwrap();
        let start = Instant::now();
        server.begin_stop();
        until("the listener to be closed", || {
            std::net::TcpStream::connect(server.address).is_err()
        })
        .await;
        go_on.send(true).unwrap();
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().event_type, "welcome");
        sse.send(Event::message("1")).await.unwrap();
        assert_eq!(client.event().await.unwrap().data, "1");
        assert_eq!(client.chunk().await, Err(support::raw::End::Cut));
        server.finished().await;
        let took = start.elapsed();
        assert!(took >= time && took < time + SLACK, "{took:?}");
        sse.closed().await;
    }
}
