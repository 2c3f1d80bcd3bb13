//! Clients that stop reading while events of their topics wait for them.

use super::paths;
use http::Request;
use paths::connection_of;
use std::{future::IntoFuture, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tower_sse::{
    Broker, CloseReason, Connections, Event, SseConnection, SseLayer, broker::History,
    test_util::EventReader,
};

const STALL_TIMEOUT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(64);

/// A subscriber whose server has taken an event, and does not come back for the next one.
async fn stalled(layer: &SseLayer, broker: &Broker) -> (SseConnection, EventReader) {
    let (sse, mut events) = connection_of(layer, Request::default()).await;
    broker.subscribe(&sse, "news").await.unwrap().start();
    publish(broker).await;
    while events.event().await.unwrap().data != "news" {}
    (sse, events)
}

async fn publish(broker: &Broker) {
    let event = Event::message("news");
    broker.publish("news", event).await.unwrap();
}

/// Waits for the end of a stream, and gives its reason and how long it took.
async fn end_of(sse: &SseConnection) -> (CloseReason, Duration) {
    let since = Instant::now();
    let reason = timeout(Duration::from_secs(3600), sse.closed()).await;
    (reason.expect("it ends"), since.elapsed())
}

#[tokio::test(start_paused = true)]
async fn unread_topic_events_stall_their_stream() {
    let layer = SseLayer::new("/").stall_timeout(STALL_TIMEOUT);
    let short = History::default().events(1);
    for history in [History::default(), short] {
        let beating = layer.clone().keep_alive(Duration::from_secs(600));
        for layer in [layer.clone().keep_alive(None), beating] {
            let broker = Broker::builder().history(history).in_memory();
            let (sse, _events) = stalled(&layer, &broker).await;
            // The last of them pushes the others out of the short history.
            for _ in 0..3 {
                publish(&broker).await;
            }
            let (reason, time) = end_of(&sse).await;
            assert_eq!(reason, CloseReason::SlowConsumer);
            let expected = STALL_TIMEOUT..=STALL_TIMEOUT + 2 * TICK;
            assert!(expected.contains(&time), "{time:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stall_is_measured_from_the_first_waiting_event() {
    let layer = SseLayer::new("/")
        .keep_alive(None)
        .stall_timeout(STALL_TIMEOUT);
    let broker = Broker::in_memory();
    let (sse, mut events) = stalled(&layer, &broker).await;

    // Nothing waits: the server has had all there is.
    sleep(10 * STALL_TIMEOUT).await;
    assert!(!sse.is_closed());

    publish(&broker).await;
    sleep(STALL_TIMEOUT / 2).await;
    publish(&broker).await;
    sleep(STALL_TIMEOUT / 2 - TICK).await;
    // It comes back in time.
    assert_eq!(events.event().await.unwrap().data, "news");
    assert_eq!(events.event().await.unwrap().data, "news");
    sleep(10 * STALL_TIMEOUT).await;
    assert!(!sse.is_closed());

    publish(&broker).await;
    let (reason, time) = end_of(&sse).await;
    assert_eq!(reason, CloseReason::SlowConsumer);
    let expected = STALL_TIMEOUT..=STALL_TIMEOUT + 2 * TICK;
    assert!(expected.contains(&time), "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn events_before_start_do_not_stall() {
    let layer = SseLayer::new("/")
        .keep_alive(None)
        .stall_timeout(STALL_TIMEOUT);
    let broker = Broker::in_memory();
    let (sse, mut events) = connection_of(&layer, Request::default()).await;
    let subscription = broker.subscribe(&sse, "news").await.unwrap();
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    publish(&broker).await;
    sleep(10 * STALL_TIMEOUT).await;
    assert!(!sse.is_closed());

    subscription.start();
    let (reason, time) = end_of(&sse).await;
    assert_eq!(reason, CloseReason::SlowConsumer);
    let expected = STALL_TIMEOUT..=STALL_TIMEOUT + 2 * TICK;
    assert!(expected.contains(&time), "{time:?}");
}

/// How long ago the server came last is of no account then.
#[tokio::test(start_paused = true)]
async fn drained_idle_stream_has_time_until_the_deadline() {
    let connections = Connections::new();
    let layer = SseLayer::new("/")
        .registry(&connections)
        .keep_alive(None)
        .stall_timeout(STALL_TIMEOUT);
    let (sse, mut events) = stalled(&layer, &Broker::in_memory()).await;
    sleep(10 * STALL_TIMEOUT).await;
    let drain = connections.drain().over(Duration::ZERO);
    let drain = tokio::spawn(drain.deadline(STALL_TIMEOUT / 2).into_future());
    sleep(STALL_TIMEOUT / 2 - TICK).await;
    assert_eq!(events.event().await.unwrap().event_type, "reconnect");
    assert_eq!(sse.closed().await, CloseReason::Drained);
    let drained = drain.await.unwrap();
    assert_eq!((drained.ended, drained.aborted), (1, 0));
}

/// More than one frame takes, so that some stays when the server has come once.
#[tokio::test(start_paused = true)]
async fn stall_is_measured_from_the_last_frame_read() {
    let layer = SseLayer::new("/")
        .keep_alive(None)
        .stall_timeout(STALL_TIMEOUT);
    let (sse, mut events) = connection_of(&layer, Request::default()).await;
    for _ in 0..2 {
        let text = "x".repeat(30_000);
        sse.send(Event::message(text)).await.unwrap();
    }
    events.frame().await.unwrap();
    assert!(!sse.is_closed());
    let (reason, time) = end_of(&sse).await;
    assert_eq!(reason, CloseReason::SlowConsumer);
    let expected = STALL_TIMEOUT..=STALL_TIMEOUT + 2 * TICK;
    assert!(expected.contains(&time), "{time:?}");
}
