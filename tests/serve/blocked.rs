//! Streams whose sockets take nothing, ended by their layer: the socket is closed.
//!
//! The sockets are in memory, so that the clock can be paused.

use std::time::Duration;

use support::{
    given::given_with,
    raw::{End, Raw},
    streams::Streams,
};
use tokio::{
    io::{DuplexStream, duplex},
    time::{Instant, sleep, timeout},
};
use tower_sse::{CloseReason, Event, SseConnection, SseLayer};

const SECOND: Duration = Duration::from_secs(1);

/// How far apart the checks of a registry are at most.
const CHECKS: Duration = Duration::from_secs(15);

/// A stream whose client has read its beginning, and takes nothing more.
struct Blocked {
    streams: Streams,
    client: Raw<DuplexStream>,
    sse: SseConnection,
    since: Instant,
}

impl Blocked {
    async fn open(layer: SseLayer) -> Self {
        let mut streams = Streams::new(layer.keep_alive(5 * SECOND));
        // The layer is to end the stream, not the server's write deadline.
        let sockets = given_with(streams.router.clone(), |serve| serve.write_deadline(None));
        let (client, socket) = duplex(4_000);
        sockets.send(Ok(socket)).await.unwrap();
        let mut client = Raw::over(client);
        let sse = streams.open(&mut client).await;
        assert_eq!(streams.direct(), 1);
        sse.send(Event::message("x".repeat(100_000))).await.unwrap();
        let since = Instant::now();
        // The server takes the event, and the socket a part of it.
        sleep(SECOND / 10).await;
        Self {
            streams,
            client,
            sse,
            since,
        }
    }

    /// Asserts that the stream ends after this time, and its socket with it.
    async fn ends(mut self, why: CloseReason, after: Duration) {
        let reason = timeout(10 * CHECKS, self.sse.closed()).await.unwrap();
        assert_eq!(reason, why);
        timeout(10 * CHECKS, self.streams.gone()).await.unwrap();
        let took = self.since.elapsed();
        assert!(took >= after && took <= after + CHECKS + SECOND, "{took:?}");
        // What the socket has taken is there, and nothing follows.
        assert_eq!(self.client.event().await, Err(End::Cut));
        assert!(self.since.elapsed() <= took + SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn lifetime_closes_a_blocked_socket() {
    let layer = SseLayer::new("/events")
        .stall_timeout(1000 * SECOND)
        .max_lifetime(20 * SECOND)
        .close_timeout(10 * SECOND);
    let blocked = Blocked::open(layer).await;
    // A lifetime is shortened at random, by a tenth at most.
    blocked.ends(CloseReason::Lifetime, 28 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn drain_deadline_closes_a_blocked_socket() {
    let layer = SseLayer::new("/events").stall_timeout(1000 * SECOND);
    let blocked = Blocked::open(layer).await;
    let drain = blocked.streams.connections.drain();
    let drained = drain.over(SECOND).deadline(20 * SECOND).await;
    assert_eq!((drained.ended, drained.aborted), (0, 1));
    blocked.ends(CloseReason::Drained, 19 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn stall_timeout_closes_a_blocked_socket() {
    let layer = SseLayer::new("/events").stall_timeout(30 * SECOND);
    let blocked = Blocked::open(layer).await;
    // More waits, behind what the socket has taken in part.
    blocked.sse.send(Event::message("more")).await.unwrap();
    blocked.ends(CloseReason::SlowConsumer, 30 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn close_timeout_closes_a_blocked_socket() {
    let layer = SseLayer::new("/events")
        .stall_timeout(1000 * SECOND)
        .close_timeout(10 * SECOND);
    let blocked = Blocked::open(layer).await;
    blocked.sse.close();
    blocked.ends(CloseReason::Closed, 10 * SECOND).await;
}
