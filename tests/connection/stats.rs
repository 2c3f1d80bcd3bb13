//! The figures of connections and brokers.

use super::paths;
use paths::connection_of;
use std::time::Duration;

use http::Request;
use tower_sse::{
    Broker, CloseReason, Event, SseConnection, SseLayer,
    broker::{History, Position},
    test_util::EventReader,
};

async fn connect(layer: &SseLayer, id: Option<&Position>) -> (SseConnection, EventReader) {
    let mut request = Request::get("/");
    if let Some(id) = id {
        request = request.header("last-event-id", id.to_string());
    }
    connection_of(layer, request.body(()).unwrap()).await
}

async fn publish(broker: &Broker, topic: &str, text: &str) -> Position {
    broker.publish(topic, Event::message(text)).await.unwrap()
}

async fn read_up_to(events: &mut EventReader, event_type: &str) {
    while events.event().await.unwrap().event_type != event_type {}
}

#[tokio::test(start_paused = true)]
async fn stats_count_queued_sent_opened_and_closed() {
    let layer = SseLayer::any_path();
    let stats = || layer.registered().stats();
    assert_eq!(stats(), tower_sse::Connections::new().stats());

    let (first, events) = connect(&layer, None).await;
    let mut events = events.time_limit(Duration::from_secs(60));
    let (second, mut others) = connect(&layer, None).await;
    let mut welcomes = events.frame().await.unwrap().len() as u64;
    welcomes += others.frame().await.unwrap().len() as u64;
    assert_eq!((stats().open, stats().opened), (2, 2));
    assert_eq!((stats().events_sent, stats().bytes_sent), (2, welcomes));

    for connection in [&first, &second] {
        connection.send(Event::message("1")).await.unwrap();
        connection.send(Event::message("2")).await.unwrap();
    }
    assert_eq!((stats().queued_events, stats().queued_bytes), (4, 36));
    assert_eq!(events.frame().await.unwrap().len(), 18);
    let after = stats();
    assert_eq!((after.queued_events, after.queued_bytes), (2, 18));
    assert_eq!((after.events_sent, after.bytes_sent), (4, welcomes + 18));

    // A heartbeat is bytes, and no event.
    assert_eq!(events.frame().await.unwrap(), ":\n");
    assert_eq!(
        (stats().events_sent, stats().bytes_sent),
        (4, welcomes + 20)
    );

    drop(events);
    second.fail("broken");
    drop(second);
    drop(others);
    let end = stats();
    assert_eq!((end.open, end.opened), (0, 2));
    assert_eq!((end.events_sent, end.bytes_sent), (4, welcomes + 20));
    assert_eq!((end.queued_events, end.queued_bytes), (0, 0));
    assert_eq!(end.closed(CloseReason::ClientGone), 1);
    assert_eq!(end.closed(CloseReason::Failed), 1);
    let all: u64 = end.closed_by_reason().map(|(_, count)| count).sum();
    assert_eq!(all, end.opened);
}

#[tokio::test(start_paused = true)]
async fn topic_events_are_counted_like_sent_events() {
    let layer = SseLayer::any_path().welcome(None);
    let broker = Broker::in_memory();
    let (sse, mut events) = connect(&layer, None).await;
    broker.subscribe(&sse, ["a", "b"]).await.unwrap().start();
    events.frame().await.unwrap(); // its place
    for text in ["1", "2", "3"] {
        publish(&broker, "a", text).await;
    }
    sse.send(Event::message("4")).await.unwrap();
    let frame = events.frame().await.unwrap();
    assert_eq!(frame.windows(6).filter(|it| it == b"data: ").count(), 4);
    assert_eq!(layer.registered().stats().events_sent, 5);
}

#[tokio::test(start_paused = true)]
async fn broker_stats_count_records_subscriptions_and_gaps() {
    let layer = SseLayer::any_path();
    let history = History::default().events(4);
    let broker = Broker::builder().history(history).in_memory();
    let place = publish(&broker, "a", "0").await;
    let (sse, mut events) = connect(&layer, None).await;
    let (other, _other_events) = connect(&layer, None).await;
    broker.subscribe(&sse, ["a", "b"]).await.unwrap().start();
    broker.subscribe(&other, "a").await.unwrap().start();
    read_up_to(&mut events, "position").await;
    for _ in 0..10 {
        publish(&broker, "a", "1").await;
    }
    // Six of them are lost to it.
    read_up_to(&mut events, "gap").await;
    let stats = broker.stats();
    assert_eq!((stats.topics, stats.subscriptions), (2, 3));
    assert_eq!((stats.published, stats.records), (11, 11));
    assert_eq!((stats.history_events, stats.gaps, stats.lagged), (4, 1, 6));
    assert!(stats.history_bytes > 4 * 128);

    // A gap that is found at a resume is one, though nobody knows how many it has missed.
    let (back, mut back_events) = connect(&layer, Some(&place)).await;
    broker.subscribe(&back, "a").await.unwrap().start();
    read_up_to(&mut back_events, "gap").await;
    assert_eq!((broker.stats().gaps, broker.stats().lagged), (2, 6));

    drop((sse, events, other, _other_events, back, back_events));
    assert_eq!(broker.stats().subscriptions, 0);
}
