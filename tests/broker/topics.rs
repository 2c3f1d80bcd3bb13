//! Topics of live connections, quiet topics, slow readers, and the bounds of what is kept.

use super::paths;
use paths::connection_of;
use std::time::Duration;
use support::Held;

use futures_util::FutureExt;
use http::Request;
use tokio::time::advance;
use tower_sse::{
    Broker, CloseReason, Event, SseConnection, SseLayer,
    broker::{History, Outcome, Position, SlowConsumer},
    event::{Decoded, EventType},
    test_util::{EventReader, ReadError},
};

async fn connect(id: Option<&Position>) -> (SseConnection, EventReader) {
    let mut request = Request::get("/");
    if let Some(id) = id {
        request = request.header("last-event-id", id.to_string());
    }
    connection_of(&SseLayer::any_path(), request.body(()).unwrap()).await
}

async fn publish(broker: &Broker, topic: &str, text: &str) -> Position {
    broker.publish(topic, Event::message(text)).await.unwrap()
}

/// What becomes of a client that comes back to one topic.
async fn outcome(broker: &Broker, topic: &str, id: &Position) -> Outcome {
    let (sse, _events) = connect(Some(id)).await;
    broker.subscribe(&sse, topic).await.unwrap().outcome()
}

/// All that is there now, but the welcome: data alone for messages.
fn ready(events: &mut EventReader) -> Vec<String> {
    let mut got = Vec::new();
    while let Some(event) = events.event().now_or_never() {
        let event = event.unwrap();
        match &*event.event_type {
            "welcome" => {}
            "message" => got.push(event.data),
            "position" => got.push("position".to_owned()),
            other => got.push(format!("{other}:{}", event.data)),
        }
    }
    got
}

fn kept(events: usize) -> Broker {
    let history = History::default().events(events);
    Broker::builder().history(history).in_memory()
}

// ===== quiet topics =====

#[tokio::test(start_paused = true)]
async fn quiet_topic_resumes_after_busy_topic_wraps_the_window() {
    let history = History::default().events(4);
    let broker = Broker::builder().history(history).window(16).in_memory();
    let quiet = publish(&broker, "quiet", "1").await;
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "quiet").await.unwrap().start();
    assert_eq!(ready(&mut events), ["position"]);
    let mut positions = Vec::new();
    for number in 0..100 {
        publish(&broker, "busy", &number.to_string()).await;
        positions.extend(ready(&mut events));
    }
    // The one that was away, and the one that stayed.
    assert_eq!(outcome(&broker, "quiet", &quiet).await, Outcome::Exact);
    let given = Position::parse(events.last_event_id().as_bytes()).unwrap();
    assert!(given.offset() > 101 - 16, "{given}");
    assert_eq!(outcome(&broker, "quiet", &given).await, Outcome::Exact);
    // One for each half of the window, no more: each costs a write.
    assert_eq!(positions, vec!["position"; 100 / 9]);
}

#[tokio::test(start_paused = true)]
async fn sleeping_reader_of_quiet_topic_gets_a_position() {
    let broker = Broker::builder().window(16).in_memory();
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "quiet").await.unwrap().start();
    assert_eq!(ready(&mut events), ["position"]);
    let reading = tokio::spawn(async move { events.event().await.map(|it| it.event_type) });
    tokio::task::yield_now().await;
    for number in 0..20 {
        publish(&broker, "busy", &number.to_string()).await;
    }
    assert_eq!(reading.await.unwrap().unwrap(), "position");
}

// ===== topics of a live connection =====

#[tokio::test(start_paused = true)]
async fn topic_added_to_a_live_connection_starts_fresh() {
    let layer = SseLayer::any_path();
    let broker = Broker::in_memory();
    let first = publish(&broker, "b", "old").await;
    let request = Request::get("/").header("last-event-id", first.to_string());
    let (sse, mut events) = connection_of(&layer, request.body(()).unwrap()).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    publish(&broker, "b", "still old").await;
    let found = layer.registered().get(&sse.uuid()).unwrap();
    // The place that the client came with is long past.
    let added = broker.subscribe(&found, ["a", "b"]).await.unwrap();
    assert_eq!(added.outcome(), Outcome::Fresh);
    publish(&broker, "b", "1").await;
    publish(&broker, "a", "2").await;
    assert_eq!(ready(&mut events), ["1", "2"]);
    assert_eq!(broker.subscriber_count("a").unwrap(), 1);
    assert_eq!(broker.subscriber_count("b").unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn events_replayed_on_a_live_connection_carry_no_ids() {
    let broker = Broker::in_memory();
    let start = publish(&broker, "b", "1").await;
    publish(&broker, "b", "2").await;
    let place = publish(&broker, "b", "3").await;
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    assert_eq!(ready(&mut events), ["position"]);
    let added = broker.subscribe(&sse, "b").from(&start).await.unwrap();
    assert_eq!(added.outcome(), Outcome::Exact);
    assert_eq!(ready(&mut events), ["2", "3"]);
    assert_eq!(events.last_event_id(), place.to_string());
    let next = publish(&broker, "b", "4").await;
    assert_eq!(ready(&mut events), ["4"]);
    assert_eq!(events.last_event_id(), next.to_string());

    let gone = Position::new(start.epoch(), 999, 0);
    let added = broker.subscribe(&sse, "c").from(&gone).await.unwrap();
    assert_eq!(added.outcome(), Outcome::Gap);
    publish(&broker, "c", "5").await;
    let gap = r#"gap:{"reason":"unknown_position","missed":null}"#;
    assert_eq!(ready(&mut events), [gap, "5"]);
}

#[tokio::test(start_paused = true)]
async fn without_replay_only_new_events_are_delivered() {
    let broker = Broker::in_memory();
    let start = publish(&broker, "a", "1").await;
    publish(&broker, "a", "2").await;
    let (sse, mut events) = connect(Some(&start)).await;
    let subscription = broker.subscribe(&sse, "a").without_replay().await.unwrap();
    assert_eq!(subscription.outcome(), Outcome::Fresh);
    subscription.start();
    publish(&broker, "a", "3").await;
    assert_eq!(ready(&mut events), ["position", "3"]);
}

#[tokio::test(start_paused = true)]
async fn stream_ends_without_topics_and_handles() {
    let layer = SseLayer::any_path();
    let broker = Broker::in_memory();
    let (sse, mut events) = connection_of(&layer, Request::default()).await;
    broker.subscribe(&sse, ["a", "b"]).await.unwrap().start();
    let uuid = sse.uuid();
    drop(sse);
    let found = || layer.registered().get(&uuid).unwrap();
    broker.unsubscribe(&found(), ["a", "never had"]).unwrap();
    publish(&broker, "a", "1").await;
    publish(&broker, "b", "2").await;
    assert_eq!(ready(&mut events), ["position", "2"]);
    broker.unsubscribe(&found(), "b").unwrap();
    events.end().await.unwrap();
    assert_eq!(broker.subscriber_count("b").unwrap(), 0);
    assert_eq!(layer.registered().held(), 0);
}

#[tokio::test(start_paused = true)]
async fn control_events_use_the_configured_names() {
    let broker = Broker::builder()
        .history(History::default().events(1))
        .gap_event(EventType::from_static("lost"))
        .position_event(EventType::from_static("place"))
        .in_memory();
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    publish(&broker, "a", "1").await;
    publish(&broker, "a", "2").await;
    let gap = r#"lost:{"reason":"lagged","missed":1}"#;
    assert_eq!(ready(&mut events), [gap, "place:{}", "2"]);
}

// ===== slow readers =====

#[tokio::test(start_paused = true)]
async fn stopped_reader_does_not_delay_others_and_gets_a_gap() {
    let broker = kept(10);
    let mut readers = Vec::new();
    for _ in 0..100 {
        let (sse, mut events) = connect(None).await;
        broker.subscribe(&sse, ["a", "b"]).await.unwrap().start();
        assert_eq!(ready(&mut events), ["position"]);
        readers.push((sse, events));
    }
    let mut stopped = readers.pop().unwrap().1;
    for number in 0..50 {
        publish(&broker, ["a", "b"][number % 2], &number.to_string()).await;
        for (_, events) in &mut readers {
            assert_eq!(ready(events), [number.to_string()]);
        }
    }
    let got = ready(&mut stopped);
    assert_eq!(got[0], r#"gap:{"reason":"lagged","missed":30}"#);
    let rest: Vec<_> = (30..50).map(|number| number.to_string()).collect();
    assert_eq!(got[1..], rest);
    assert_eq!(broker.stats().records, 50);
}

#[tokio::test(start_paused = true)]
async fn slow_consumer_is_disconnected_even_without_reading() {
    let builder = Broker::builder().history(History::default().events(2));
    let broker = builder.slow_consumer(SlowConsumer::Disconnect).in_memory();
    for reads in [true, false] {
        let (sse, mut events) = connect(None).await;
        broker.subscribe(&sse, "a").await.unwrap().start();
        assert_eq!(ready(&mut events), ["position"]);
        publish(&broker, "a", "1").await;
        publish(&broker, "a", "2").await;
        advance(Duration::from_secs(60)).await;
        assert!(!sse.is_closed(), "it has lost nothing yet");
        publish(&broker, "a", "3").await;
        if reads {
            assert!(matches!(events.event().await, Err(ReadError::Ended)));
        }
        let closed = async {
            while !sse.is_closed() {
                // On paused time: it is the clock that has to go on.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        // The ticker visits it with the next heartbeat at the latest.
        let visited = tokio::time::timeout(Duration::from_secs(60), closed).await;
        assert!(visited.is_ok(), "nobody has looked at it");
        drop(events);
        assert_eq!(sse.closed().await, CloseReason::SlowConsumer);
        assert_eq!(broker.subscriber_count("a").unwrap(), 0);
    }
}

// ===== bounds =====

#[tokio::test(start_paused = true)]
async fn history_is_limited_in_events_bytes_and_age() {
    let day = Duration::from_secs(24 * 3600);
    let base = History::default().events(1000).bytes(1 << 20).age(day);
    // The frame of each event has some hundred bytes, and counts with 128 more.
    let histories = [
        base.events(3),
        base.bytes(3 * 360),
        base.age(Duration::from_millis(3500)),
    ];
    for history in histories {
        let broker = Broker::builder().history(history).in_memory();
        let text = "x".repeat(180);
        let mut places = vec![publish(&broker, "a", &text).await];
        for _ in 0..6 {
            advance(Duration::from_secs(1)).await;
            places.push(publish(&broker, "a", &text).await);
        }
        // On paused time: the broker's task has its turn at what is too old.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut outcomes = Vec::new();
        for place in &places {
            outcomes.push(outcome(&broker, "a", place).await);
        }
        let exact = outcomes.iter().filter(|it| **it == Outcome::Exact).count();
        // Whoever had the last one that is gone needs nothing of it.
        assert!(
            outcomes.is_sorted_by_key(|it| *it == Outcome::Exact),
            "{outcomes:?}"
        );
        assert!((4..=5).contains(&exact), "{history:?}: {outcomes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn oldest_events_of_all_topics_are_evicted_first() {
    let broker = Broker::builder().max_bytes(8 * 1024).in_memory();
    let text = "x".repeat(800);
    let before = publish(&broker, "z", "0").await;
    let a = publish(&broker, "a", &text).await;
    for _ in 0..3 {
        publish(&broker, "b", &text).await;
    }
    let c = publish(&broker, "c", &text).await;
    assert_eq!(outcome(&broker, "a", &before).await, Outcome::Exact);
    for _ in 0..5 {
        publish(&broker, "c", &text).await;
    }
    assert_eq!(outcome(&broker, "a", &before).await, Outcome::Gap);
    assert_eq!(outcome(&broker, "b", &a).await, Outcome::Gap);
    assert_eq!(outcome(&broker, "c", &c).await, Outcome::Exact);
}

#[tokio::test(start_paused = true)]
async fn topics_without_events_use_no_history() {
    let broker = Broker::builder().max_bytes(64 * 1024).in_memory();
    let (sse, _events) = connect(None).await;
    let names: Vec<_> = (0..1000).map(|user| format!("user:{user}")).collect();
    broker.subscribe(&sse, names).await.unwrap().start();
    let first = publish(&broker, "a", "1").await;
    for text in ["2", "3", "4"] {
        publish(&broker, "a", text).await;
    }
    assert_eq!(outcome(&broker, "a", &first).await, Outcome::Exact);
}

#[tokio::test(start_paused = true)]
async fn topics_are_removed_once_their_history_expires() {
    let history = History::default().age(Duration::from_secs(10));
    let broker = Broker::builder().history(history).in_memory();
    let first = publish(&broker, "first", "1").await;
    for number in 0..5000 {
        publish(&broker, &format!("once:{number}"), "x").await;
        let (sse, events) = connect(None).await;
        broker
            .subscribe(&sse, format!("read:{number}"))
            .await
            .unwrap()
            .start();
        drop((sse, events));
    }
    assert_eq!(broker.topic_count(), 5001);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(broker.topic_count(), 0);
    // Forgotten, and yet nothing is passed over in silence.
    assert_eq!(outcome(&broker, "once:7", &first).await, Outcome::Gap);
}

// ===== the stream =====

#[tokio::test(start_paused = true)]
async fn outbox_and_topics_share_frames_fairly() {
    let broker = Broker::in_memory();
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    let text = "x".repeat(10_000);
    for _ in 0..20 {
        sse.try_send(Event::new("direct", &*text).unwrap()).unwrap();
        publish(&broker, "a", &text).await;
    }
    let (mut direct, mut topic) = (0_i32, 0_i32);
    while direct + topic < 40 {
        let frame = events.frame().await.unwrap();
        assert!(frame.len() <= 32 * 1024, "{} bytes", frame.len());
        assert!(frame.ends_with(b"\n\n"));
        let count = |needle: &[u8]| memmem(&frame, needle);
        direct += count(b"event: direct\n");
        topic += count(b"\nid: ") - count(b"event: position\n");
        assert!(
            (direct - topic).abs() <= 6,
            "{direct} direct, {topic} of the topic"
        );
    }
    assert_eq!((direct, topic), (20, 20));
}

fn memmem(text: &[u8], needle: &[u8]) -> i32 {
    let places = text.windows(needle.len()).filter(|it| *it == needle);
    i32::try_from(places.count()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn heartbeat_is_sent_only_in_silence() {
    let broker = Broker::in_memory();
    let (sse, events) = connect(None).await;
    let mut events = events.time_limit(Duration::from_secs(60));
    broker.subscribe(&sse, "a").await.unwrap().start();
    assert_eq!(ready(&mut events), ["position"]);
    for number in 0..10 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        publish(&broker, "a", &number.to_string()).await;
        match events.decoded().now_or_never() {
            Some(Ok(Decoded::Event(event))) => assert_eq!(event.data, number.to_string()),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(events.decoded().await, Ok(Decoded::Comment(_))));
}
