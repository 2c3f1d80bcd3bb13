//! Streams that share a task, and sockets of other kinds than TCP's.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, routing::any};
use support::{given::given, raw::Raw, streams::Streams, until, within};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    time::Instant,
};
use tower_sse::{Broker, Connections, Event, SseConnection, SseLayer, broker::History};

// ===== fairness =====

/// A replay of many megabytes, to a socket that takes everything at once, and another stream of the
/// same thread: that one gets its event long before the replay is through.
#[tokio::test]
async fn long_replay_does_not_delay_other_streams() {
    // In a task, which has its turns as the streams' tasks have theirs.
    tokio::spawn(replay_beside_another()).await.unwrap();
}

async fn replay_beside_another() {
    const EVENTS: usize = 1_000;
    const SIZE: usize = 30_000;
    let history = History::default().events(EVENTS).bytes(usize::MAX);
    let broker = Broker::builder()
        .history(history)
        .max_bytes(usize::MAX)
        .in_memory();
    let from = broker.publish("long", Event::message("0")).await.unwrap();
    for _ in 1..EVENTS {
        let event = Event::message("x".repeat(SIZE));
        broker.publish("long", event).await.unwrap();
    }
    let connections = Connections::new();
    let (sender, mut opened) = mpsc::channel(2);
    let handler = async move |sse: SseConnection| sender.try_send(sse).unwrap();
    let layer = SseLayer::new("/events").registry(&connections);
    let router = Router::new().route("/events", any(handler)).layer(layer);
    let sockets = given::<DuplexStream>(router);

    let mut open = async || {
        let (client, socket) = duplex(2 * EVENTS * SIZE);
        sockets.send(Ok(socket)).await.unwrap();
        let mut client = Raw::over(client);
        client.send("GET /events HTTP/1.1\r\nhost: a\r\n").await;
        let sse = within("a request", opened.recv()).await.unwrap();
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().event_type, "welcome");
        (client, sse)
    };
    let (_replays, long) = open().await;
    let (mut other, short) = open().await;
    let subscription = broker.subscribe(&long, "long").from(&from).await.unwrap();
    assert!(subscription.is_exact());
    // Both are ready now, this one first.
    subscription.start();
    short.try_send(Event::message("short")).unwrap();
    assert_eq!(other.event().await.unwrap().data, "short");
    let replayed = connections.stats().bytes_sent;
    assert!(
        replayed < (EVENTS * SIZE / 2) as u64,
        "{replayed} bytes had to go out first"
    );
    let all = ((EVENTS - 1) * SIZE) as u64;
    until("the replay to end", || connections.stats().bytes_sent > all).await;
}

// ===== sockets =====

/// A socket that takes one piece of memory at a time, and notes how it was written to.
struct Single {
    inner: DuplexStream,
    writes: Arc<Mutex<Vec<usize>>>,
}

impl AsyncRead for Single {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Single {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = written {
            self.writes.lock().unwrap().push(written);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        panic!("it has said that it takes one piece at a time");
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Over TLS each write is a record of its own.
#[tokio::test]
async fn event_is_one_write_on_a_socket_without_vectored_writes() {
    let mut streams = Streams::new(SseLayer::new("/events").keep_alive(None));
    let sockets = given(streams.router.clone());
    let (client, socket) = duplex(1_000_000);
    let writes = Arc::new(Mutex::new(Vec::new()));
    let single = Single {
        inner: socket,
        writes: Arc::clone(&writes),
    };
    sockets.send(Ok(single)).await.unwrap();
    let mut client = Raw::over(client);
    let sse = streams.open(&mut client).await;
    assert_eq!(streams.direct(), 1, "it is direct");
    writes.lock().unwrap().clear();
    for size in [1, 100, 8_000, 20_000, 500_000] {
        sse.send(Event::message("x".repeat(size))).await.unwrap();
        assert_eq!(client.event().await.unwrap().data.len(), size);
        let written = std::mem::take(&mut *writes.lock().unwrap());
        assert_eq!(written.len(), 1, "{size}: {written:?}");
    }
}

/// A socket of which each write takes a few bytes.
struct Trickle(DuplexStream);

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(7)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Across the border of two pieces, too.
        let bytes: Vec<u8> = bufs
            .iter()
            .flat_map(|it| &it[..it.len().min(7)])
            .copied()
            .collect();
        self.poll_write(cx, &bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn partial_write_is_completed_before_the_next() {
    let broker = Broker::in_memory();
    let mut streams = Streams::new(SseLayer::new("/events"));
    let sockets = given(streams.router.clone());
    // Room for less than one write: each is pending in between.
    let (client, socket) = duplex(5);
    sockets.send(Ok(Trickle(socket))).await.unwrap();
    let mut client = Raw::over(client);
    let sse = streams.open(&mut client).await;
    broker.subscribe(&sse, "ticks").await.unwrap().start();
    for size in [1, 3, 15, 16, 17, 255, 256, 3_000, 9_000] {
        let text = "x".repeat(size);
        // By both ways: in its chunk already, and not.
        let sent = sse.send(Event::message(text.clone()));
        let published = broker.publish("ticks", Event::message(text));
        sent.await.unwrap();
        published.await.unwrap();
        let mut sizes = Vec::new();
        while sizes.len() < 2 {
            let event = client.event().await.unwrap();
            if event.event_type == "message" {
                sizes.push(event.data.len());
            }
        }
        assert_eq!(sizes, [size, size]);
    }
}

// ===== accepting =====

/// It waits where the system has nothing to give, not where one client was gone before it was
/// accepted.
#[tokio::test(start_paused = true)]
async fn aborted_connection_does_not_delay_the_next_accept() {
    let streams = Streams::new(SseLayer::new("/events"));
    let sockets = given::<DuplexStream>(streams.router.clone());
    let start = Instant::now();
    for _ in 0..20 {
        let error = Err(io::ErrorKind::ConnectionAborted.into());
        sockets.send(error).await.unwrap();
    }
    let (client, socket) = duplex(1000);
    sockets.send(Ok(socket)).await.unwrap();
    let mut client = Raw::over(client);
    client.send("GET /plain HTTP/1.1\r\nhost: a\r\n").await;
    assert_eq!(client.head().await.status, 200);
    // Twenty pauses, each twice as long as the last, would take a quarter of a minute of paused time.
    assert!(start.elapsed() < Duration::from_secs(1));
}
