//! Publish, subscribe, resume: the broker's paved path.

use super::paths;
use http::Request;
use paths::connection_of;
use tower_sse::{
    Broker, Event, SseLayer,
    broker::{History, Outcome},
    event::MessageEvent,
    test_util::EventReader,
};

fn layer() -> SseLayer {
    SseLayer::any_path()
}

fn returning(id: &str) -> Request<()> {
    Request::get("/")
        .header("last-event-id", id)
        .body(())
        .unwrap()
}

async fn texts(events: &mut EventReader, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        let MessageEvent {
            event_type, data, ..
        } = events.event().await.unwrap();
        texts.push(format!("{event_type}:{data}"));
    }
    texts
}

#[tokio::test(start_paused = true)]
async fn subscriber_gets_events_published_after_its_welcome() {
    let broker = Broker::in_memory();
    broker.publish("a", Event::message("before")).await.unwrap();
    let (sse, mut events) = connection_of(&layer(), Request::default()).await;
    let subscription = broker.subscribe(&sse, ["a", "b"]).await.unwrap();
    assert_eq!(subscription.outcome(), Outcome::Fresh);
    subscription.start();
    broker.publish("b", Event::message("1")).await.unwrap();
    broker.publish("a", Event::message("2")).await.unwrap();
    broker.publish("c", Event::message("3")).await.unwrap();
    let position = broker.publish("a", Event::message("4")).await.unwrap();
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    assert_eq!(
        texts(&mut events, 4).await,
        ["position:{}", "message:1", "message:2", "message:4"]
    );
    assert_eq!(events.last_event_id(), position.to_string());
}

#[tokio::test(start_paused = true)]
async fn resuming_client_gets_exactly_the_missed_events() {
    let broker = Broker::in_memory();
    let first = broker.publish("a", Event::message("1")).await.unwrap();
    broker.publish("a", Event::message("2")).await.unwrap();
    broker.publish("b", Event::message("3")).await.unwrap();
    let (sse, mut events) = connection_of(&layer(), returning(&first.to_string())).await;
    let subscription = broker.subscribe(&sse, ["a", "b"]).await.unwrap();
    assert!(subscription.is_exact());
    subscription.start();
    assert_eq!(texts(&mut events, 3).await[1..], ["message:2", "message:3"]);
    broker.publish("a", Event::message("4")).await.unwrap();
    assert_eq!(texts(&mut events, 1).await, ["message:4"]);
}

#[tokio::test(start_paused = true)]
async fn client_at_an_evicted_position_gets_a_gap() {
    let broker = Broker::builder()
        .history(History::default().events(2))
        .in_memory();
    let first = broker.publish("a", Event::message("1")).await.unwrap();
    for text in ["2", "3", "4"] {
        broker.publish("a", Event::message(text)).await.unwrap();
    }
    let (sse, mut events) = connection_of(&layer(), returning(&first.to_string())).await;
    let subscription = broker.subscribe(&sse, "a").await.unwrap();
    assert_eq!(subscription.outcome(), Outcome::Gap);
    subscription.start();
    assert_eq!(
        texts(&mut events, 3).await[1..],
        [r#"gap:{"reason":"evicted","missed":null}"#, "position:{}"]
    );
}

#[tokio::test(start_paused = true)]
async fn lagging_subscriber_gets_a_gap_with_the_missed_count() {
    let broker = Broker::builder()
        .history(History::default().events(2))
        .in_memory();
    let (sse, mut events) = connection_of(&layer(), Request::default()).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    for text in ["1", "2", "3", "4", "5"] {
        broker.publish("a", Event::message(text)).await.unwrap();
    }
    assert_eq!(
        texts(&mut events, 5).await,
        [
            format!(r#"welcome:{{"uuid":"{}"}}"#, sse.uuid()).as_str(),
            r#"gap:{"reason":"lagged","missed":3}"#,
            "position:{}",
            "message:4",
            "message:5"
        ]
    );
}
