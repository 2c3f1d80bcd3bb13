//! A client that has stopped reading, over a real socket whose buffers are full.

use super::SERVER;
use axum::{Router, routing::get};
use http::Version;
use std::time::Duration;
use support::{SLACK, client::Client, server::Server, within};
use tokio::time::Instant;
use tower_sse::{CloseReason, Connections, Event, SseConnection, SseLayer};

#[tokio::test]
async fn stalled_socket_is_closed_without_affecting_another() {
    // Longer than the other client may be unable to read on a busy machine.
    let stall = Duration::from_secs(3);
    let connections = Connections::new();
    let layer = SseLayer::any_path()
        .registry(&connections)
        .hold_open(true)
        .stall_timeout(stall);
    let handler = async |sse: SseConnection| {
        sse.start();
    };
    let app = Router::new().route("/", get(handler)).layer(layer);
    let server = Server::chosen(SERVER, app).await;
    let mut lazy = Client::connect(server.address, Version::HTTP_11).await;
    let lazy_events = lazy.open("/").await;
    let stalled = connections.iter().next().unwrap();
    let mut eager = Client::connect(server.address, Version::HTTP_11).await;
    let mut events = eager.open("/").await;
    let healthy = connections.iter().find(|it| *it != stalled).unwrap();

    let large = "x".repeat(30_000);
    let healthy_one = healthy.clone();
    let reading = tokio::spawn(async move {
        let mut count = 0;
        while events.event().await.is_ok() {
            count += 1;
        }
        count
    });
    let mut sent = 0;
    let (mut full_since, mut closed_after) = (None, None);
    let publish = async {
        while closed_after.is_none() {
            healthy_one.send(Event::message(&large)).await.unwrap();
            sent += 1;
            if stalled.is_closed() {
                closed_after = full_since.map(|since: Instant| since.elapsed());
            } else if stalled.try_send(Event::message(&large)).is_ok() {
                // Its buffers take some still.
                full_since = None;
            } else {
                full_since.get_or_insert_with(Instant::now);
            }
            tokio::task::yield_now().await;
        }
    };
    within("the stalled client to be found", publish).await;
    let time = closed_after.unwrap();
    assert!(time <= stall + SLACK, "{time:?}");
    assert_eq!(stalled.closed().await, CloseReason::SlowConsumer);
    assert_eq!(connections.len(), 1);
    healthy.close();
    assert_eq!(within("the end", reading).await.unwrap(), sent);
    drop(lazy_events);
}
