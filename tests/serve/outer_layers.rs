//! Layers outside the layer of a direct stream: they act on it at once, and they see its later
//! frames.
//!
//! An outer [`SseLayer`] with a registry of its own adopts the streams of an inner one. Most sockets
//! are in memory, so that the clock can be paused.

use std::{
    io::{self, Write},
    mem,
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
};
use bytes::Bytes;
use flate2::write::GzDecoder;
use futures_util::TryStreamExt;
use http::{StatusCode, Version};
use support::{
    given::given_with,
    raw::{End, Raw},
    server::Server,
    streams::{Change, GET, Streams},
    until, within,
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
    time::{Instant, sleep},
};
use tower_http::compression::CompressionLayer;
use tower_sse::{
    Broker, CloseReason, Connections, Event, SseConnection, SseLayer,
    event::{Decoded, Decoder, MessageEvent},
    layer::{Limits, Welcome},
};

/// Takes all that is sent here at once.
const ROOMY: usize = 64 * 1024;

/// Takes less than an event that blocks it.
const SMALL: usize = 4_000;

const SECOND: Duration = Duration::from_secs(1);

/// How late the registry's clock and a test's own polling may be.
const AT_ONCE: Duration = Duration::from_millis(200);

/// What keeps the inner stream open.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A handle outside the handler.
    Held,
    /// The handler, which goes on in the body.
    Running,
    /// A subscription.
    Subscribed,
}

const KINDS: [Kind; 3] = [Kind::Held, Kind::Running, Kind::Subscribed];

/// A server of streams below an outer layer.
struct Nested {
    streams: Streams,
    outer: Connections,
    kind: Kind,
    broker: Broker,
    sockets: mpsc::Sender<io::Result<DuplexStream>>,
}

impl Nested {
    fn new(kind: Kind, outer: impl FnOnce(SseLayer) -> SseLayer) -> Self {
        let inner = SseLayer::new("/events")
            .welcome(Welcome::new(|_| Event::message("hello")))
            .retry(None)
            .stall_timeout(None);
        let mut streams = Streams::with(inner, Change::Nothing, kind == Kind::Running);
        let layer = outer(SseLayer::any_path().adopt(true));
        let connections = layer.registered().clone();
        streams.router = streams.router.layer(layer);
        // The layer is to end a blocked stream, not the server's write deadline.
        let sockets = given_with(streams.router.clone(), |serve| serve.write_deadline(None));
        Self {
            streams,
            outer: connections,
            kind,
            broker: Broker::in_memory(),
            sockets,
        }
    }

    async fn connect(&self, size: usize) -> Raw<DuplexStream> {
        let (client, socket) = duplex(size);
        self.sockets.send(Ok(socket)).await.unwrap();
        Raw::over(client)
    }

    /// Opens a stream, and checks that it is direct and in both registries.
    async fn open(&mut self, size: usize) -> Opened {
        let client = self.connect(size).await;
        self.open_with(client, GET).await
    }

    async fn open_with(&mut self, mut client: Raw<DuplexStream>, request: &str) -> Opened {
        let (direct, open) = (self.streams.direct(), self.outer.len());
        client.send(request).await;
        let sse = self.streams.next().await;
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().data, "hello");
        assert_eq!(self.streams.direct(), direct + 1, "{:?}", self.kind);
        assert_eq!(self.outer.len(), open + 1);
        assert_eq!(self.streams.connections.len(), open + 1);
        let sender = if self.kind == Kind::Subscribed {
            let topic = self.streams.direct().to_string();
            self.broker.subscribe(&sse, &topic).await.unwrap().start();
            // The event that announces its position.
            assert_ne!(client.event().await.unwrap().event_type, "message");
            // The handle would keep the stream open as well.
            Sender::Topic(topic)
        } else {
            Sender::Handle(sse)
        };
        let mut opened = Opened { client, sender };
        self.event_passes(&mut opened, "first").await;
        opened
    }

    async fn send(&self, sender: &Sender, text: &str) {
        let event = Event::message(text);
        match sender {
            Sender::Handle(sse) => sse.send(event).await.unwrap(),
            Sender::Topic(topic) => drop(self.broker.publish(topic, event).await.unwrap()),
        }
    }

    async fn event_passes(&self, opened: &mut Opened, text: &str) {
        self.send(&opened.sender, text).await;
        assert_eq!(opened.client.event().await.unwrap().data, text);
    }

    /// Asserts that the only stream has ended for this reason, and that nothing is left of it.
    async fn has_ended(&self, why: CloseReason, since: Instant) {
        until("the outer registry to be empty", || self.outer.is_empty()).await;
        self.streams.gone().await;
        assert!(since.elapsed() <= AT_ONCE, "{:?}", since.elapsed());
        assert_eq!(self.outer.stats().closed(why), 1, "{:?}", self.kind);
        // The inner stream loses its body.
        let stats = self.streams.connections.stats();
        assert_eq!(stats.closed(CloseReason::ClientGone), 1);
    }
}

struct Opened {
    client: Raw<DuplexStream>,
    sender: Sender,
}

/// How events get into a stream.
enum Sender {
    Handle(SseConnection),
    Topic(String),
}

// ===== an outer registry =====

#[tokio::test(start_paused = true)]
async fn close_where_of_an_outer_registry_ends_a_stream() {
    for kind in KINDS {
        let mut nested = Nested::new(kind, |outer| outer);
        let mut opened = nested.open(ROOMY).await;
        // Long enough for it to be driven together with others, if it may be.
        sleep(SECOND).await;
        let since = Instant::now();
        assert_eq!(nested.outer.close_where(|_| true), 1);
        assert_eq!(opened.client.event().await, Err(End::LastChunk));
        nested.has_ended(CloseReason::Closed, since).await;
        if let Sender::Handle(sse) = opened.sender {
            assert_eq!(sse.closed().await, CloseReason::ClientGone);
        }
        // The socket is used again.
        drop(nested.open_with(opened.client, GET).await);
    }
}

#[tokio::test(start_paused = true)]
async fn lifetime_of_an_outer_layer_ends_a_stream() {
    for kind in KINDS {
        let opened_at = Instant::now();
        let mut nested = Nested::new(kind, |outer| outer.max_lifetime(20 * SECOND));
        let mut opened = nested.open(ROOMY).await;
        for second in 1..18 {
            nested.event_passes(&mut opened, &second.to_string()).await;
            sleep(SECOND).await;
        }
        assert_eq!(opened.client.event().await, Err(End::LastChunk));
        // Shortened at random, by a tenth at most.
        let took = opened_at.elapsed();
        assert!(
            took >= 18 * SECOND && took <= 20 * SECOND + AT_ONCE,
            "{took:?}"
        );
        nested
            .has_ended(CloseReason::Lifetime, Instant::now())
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn drain_of_an_outer_registry_ends_a_stream() {
    for kind in KINDS {
        let mut nested = Nested::new(kind, |outer| outer);
        let mut opened = nested.open(ROOMY).await;
        let since = Instant::now();
        let drained = nested.outer.drain().over(Duration::ZERO).await;
        assert_eq!((drained.ended, drained.aborted), (1, 0), "{kind:?}");
        let last = opened.client.event().await.unwrap();
        assert_eq!(last.event_type, "reconnect");
        assert_eq!(last.data, r#"{"reason":"drained"}"#);
        assert_eq!(opened.client.event().await, Err(End::LastChunk));
        nested.has_ended(CloseReason::Drained, since).await;
        // No new stream begins.
        let mut refused = nested.connect(ROOMY).await;
        refused.send(GET).await;
        assert_eq!(refused.stream_head().await.headers["connection"], "close");
        assert_eq!((nested.streams.direct(), nested.outer.len()), (1, 0));
    }
}

/// Blocks the stream's socket: the server has an event that the socket takes in part.
async fn block(nested: &Nested, opened: &Opened) {
    let large = "x".repeat(100_000);
    nested.send(&opened.sender, &large).await;
    sleep(AT_ONCE).await;
}

#[tokio::test(start_paused = true)]
async fn drain_deadline_of_an_outer_registry_closes_a_socket() {
    for kind in KINDS {
        let mut nested = Nested::new(kind, |outer| outer.stall_timeout(None));
        let mut opened = nested.open(SMALL).await;
        block(&nested, &opened).await;
        let since = Instant::now();
        let drain = nested.outer.drain().over(Duration::ZERO);
        let drained = drain.deadline(20 * SECOND).await;
        assert_eq!((drained.ended, drained.aborted), (0, 1), "{kind:?}");
        let took = since.elapsed();
        assert!(
            took >= 20 * SECOND && took <= 20 * SECOND + AT_ONCE,
            "{took:?}"
        );
        nested.has_ended(CloseReason::Drained, Instant::now()).await;
        assert_eq!(opened.client.event().await, Err(End::Cut));
    }
}

#[tokio::test(start_paused = true)]
async fn stall_timeout_of_an_outer_layer_closes_a_socket() {
    for kind in KINDS {
        let mut nested = Nested::new(kind, |outer| {
            outer.keep_alive(SECOND).stall_timeout(30 * SECOND)
        });
        let mut opened = nested.open(SMALL).await;
        let since = Instant::now();
        block(&nested, &opened).await;
        // A heartbeat is what waits in the outer layer.
        until("the outer stream to end", || nested.outer.is_empty()).await;
        let took = since.elapsed();
        assert!(took >= 30 * SECOND && took <= 32 * SECOND, "{took:?}");
        nested
            .has_ended(CloseReason::SlowConsumer, Instant::now())
            .await;
        assert_eq!(opened.client.event().await, Err(End::Cut));
    }
}

/// Asserts that the outer layer refuses this request.
async fn is_refused(nested: &Nested, request: &str, reason: &str) {
    let mut client = nested.connect(ROOMY).await;
    client.send(request).await;
    let head = client.stream_head().await;
    let length = head.headers["content-length"].to_str().unwrap();
    let body = client.take(length.parse().unwrap()).await;
    let expected = format!("event: reconnect\ndata: {{\"reason\":\"{reason}\"}}\n");
    let body = String::from_utf8(body).unwrap();
    assert!(body.starts_with(&expected), "{body}");
}

#[tokio::test(start_paused = true)]
async fn limits_of_an_outer_layer_refuse_a_second_stream() {
    const ANN: &str = "GET /events HTTP/1.1\r\nhost: a\r\nx-user: ann\r\n";
    const BEN: &str = "GET /events HTTP/1.1\r\nhost: a\r\nx-user: ben\r\n";
    for kind in KINDS {
        for by_key in [false, true] {
            let mut nested = Nested::new(kind, |outer| match by_key {
                false => outer.max_connections(1),
                true => outer.limits(
                    Limits::new()
                        .connections_per(1, |request| request.headers.get("x-user").cloned()),
                ),
            });
            let client = nested.connect(ROOMY).await;
            let mut first = nested.open_with(client, ANN).await;
            let reason = if by_key { "key_full" } else { "full" };
            is_refused(&nested, ANN, reason).await;
            assert_eq!(nested.outer.stats().refused, 1);
            if by_key {
                let client = nested.connect(ROOMY).await;
                drop(nested.open_with(client, BEN).await);
                until("the other user to be gone", || nested.outer.len() == 1).await;
            }
            nested.event_passes(&mut first, "on").await;
            // The end of the first stream makes room at once.
            nested.outer.close_where(|_| true);
            assert_eq!(first.client.event().await, Err(End::LastChunk));
            drop(nested.open_with(first.client, ANN).await);
        }
    }
}

// ===== other layers =====

/// Returns frames without a secret unchanged.
async fn mask(request: Request, next: Next) -> Response {
    let masked = |frame: Bytes| {
        let text = std::str::from_utf8(&frame).unwrap();
        if text.contains("secret-") {
            Bytes::from(text.replace("secret-", "masked-"))
        } else {
            frame
        }
    };
    let response = next.run(request).await;
    response.map(|body| Body::from_stream(body.into_data_stream().map_ok(masked)))
}

/// A server of streams, on the system's sockets, with an open stream that has a subscription.
struct Below {
    streams: Streams,
    broker: Broker,
    _server: Server,
    client: Raw,
}

impl Below {
    async fn open(mut streams: Streams, request: &str) -> Self {
        let broker = Broker::in_memory();
        let server = Server::ours(streams.router.clone(), true).await;
        let client = Raw::request(server.address, request).await;
        let sse = streams.next().await;
        broker.subscribe(&sse, "topic").await.unwrap().start();
        Self {
            streams,
            broker,
            _server: server,
            client,
        }
    }

    async fn publish(&self, text: &str) {
        let event = Event::message(text);
        self.broker.publish("topic", event).await.unwrap();
    }
}

#[tokio::test]
async fn outer_layer_that_masks_sees_every_frame() {
    let mut streams = Streams::new(SseLayer::new("/events"));
    streams.router = streams.router.layer(from_fn(mask));
    let mut below = Below::open(streams, GET).await;
    below.client.stream_head().await;
    let client = &mut below.client;
    assert_eq!(client.event().await.unwrap().data, "hello");
    assert_ne!(client.event().await.unwrap().event_type, "message");
    assert_eq!(below.streams.direct(), 1);
    for number in 0..5 {
        below.publish(&format!("secret-{number}")).await;
        let event = below.client.event().await.unwrap();
        assert_eq!(event.data, format!("masked-{number}"));
        // The mask returns this frame unchanged.
        below.publish("open").await;
        assert_eq!(below.client.event().await.unwrap().data, "open");
    }
}

/// What a client decodes of a compressed stream.
struct Unzipped {
    gzip: GzDecoder<Vec<u8>>,
    events: Decoder,
}

impl Unzipped {
    async fn event(&mut self, client: &mut Raw) -> MessageEvent {
        loop {
            let event = self.events.find_map(|decoded| match decoded {
                Decoded::Event(event) => Some(event),
                _ => None,
            });
            if let Some(event) = event {
                return event;
            }
            let chunk = client.chunk().await.unwrap();
            self.gzip.write_all(&chunk).unwrap();
            self.gzip.flush().unwrap();
            let text = mem::take(self.gzip.get_mut());
            self.events.feed(&text).unwrap();
        }
    }
}

#[tokio::test]
async fn compressed_stream_decodes_event_by_event() {
    let mut streams = Streams::new(SseLayer::new("/events"));
    let always = |_: StatusCode, _: Version, _: &http::HeaderMap, _: &http::Extensions| true;
    let compressing = CompressionLayer::new().gzip(true).compress_when(always);
    streams.router = streams.router.layer(compressing);
    let request = format!("{GET}accept-encoding: gzip\r\n");
    let mut below = Below::open(streams, &request).await;
    let head = below.client.stream_head().await;
    assert_eq!(head.headers["content-encoding"], "gzip");
    let mut unzipped = Unzipped {
        gzip: GzDecoder::new(Vec::new()),
        events: Decoder::new(),
    };
    let first = unzipped.event(&mut below.client).await;
    assert_eq!(first.data, "hello");
    assert_eq!(below.streams.direct(), 1);
    let position = unzipped.event(&mut below.client).await;
    assert_ne!(position.event_type, "message");
    for number in 0..50 {
        // The client has each event before the next one is published.
        let text = format!("{number} ").repeat(1 + number * number * 20);
        below.publish(&text).await;
        let event = within("an event", unzipped.event(&mut below.client)).await;
        assert_eq!(event.data, text);
    }
    // A clean end is one of the gzip stream, too.
    assert_eq!(below.streams.connections.close_where(|_| true), 1);
    let end = loop {
        match below.client.chunk().await {
            Ok(chunk) => unzipped.gzip.write_all(&chunk).unwrap(),
            Err(end) => break end,
        }
    };
    assert_eq!(end, End::LastChunk);
    unzipped.gzip.finish().unwrap();
    below.streams.gone().await;
}
