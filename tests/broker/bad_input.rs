//! What does not make sense: it is refused with a clear error, or it means nothing. It never shows
//! what it should not, and never hides a loss.

use super::paths;
use http::{HeaderValue, Request};
use paths::connection_of;
use tower_sse::{
    Broker, BrokerError, CloseReason, Event, SseConnection, SseLayer,
    broker::{BrokerErrorKind, Epoch, History, Outcome, Position},
    connection::{SendError, TrySendError},
    event::{EventId, EventType},
    test_util::{EventReader, ReadError},
};

async fn coming_with(values: &[&[u8]]) -> (SseConnection, EventReader) {
    let mut request = Request::new(());
    for value in values {
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append("last-event-id", value);
    }
    connection_of(&SseLayer::any_path(), request).await
}

async fn publish(broker: &Broker, topic: &str, texts: &[&str]) -> Position {
    let mut last = None;
    for text in texts {
        let event = Event::message(*text);
        last = Some(broker.publish(topic, event).await.unwrap());
    }
    last.unwrap()
}

/// What a client with these `Last-Event-ID` headers gets up to an event that is published then.
async fn answer(broker: &Broker, values: &[&[u8]]) -> (Outcome, Vec<String>) {
    let (sse, mut events) = coming_with(values).await;
    let subscription = broker.subscribe(&sse, "a").await.unwrap();
    let outcome = subscription.outcome();
    subscription.start();
    publish(broker, "a", &["end"]).await;
    let mut got = Vec::new();
    loop {
        let event = events.event().await.unwrap();
        match (&*event.event_type, &*event.data) {
            ("welcome", _) => {}
            (_, "end") => return (outcome, got),
            (event_type, data) => got.push(format!("{event_type}:{data}")),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn malformed_last_event_id_starts_fresh() {
    let broker = Broker::in_memory();
    let known = publish(&broker, "a", &["1", "2", "3"]).await.to_string();
    let long = vec![b'1'; 64 * 1024];
    let upper = known.to_uppercase().replace('-', "_");
    let padded = format!(" {known}");
    let bad: [&[&[u8]]; 21] = [
        &[],
        &[b""],
        &[b"1"],
        &[b"x"],
        &[&long],
        &[b"\xff\xfe"],
        &[b"-1"],
        &[b"+1"],
        &[b"01"],
        &[b" 1"],
        &[b"18446744073709551616"],
        &[b"$"],
        &[b"*"],
        &[b"0-0"],
        &["１".as_bytes()],
        &[b"00000000000000ff-18446744073709551616-0000002a"],
        &[upper.as_bytes()],
        &[padded.as_bytes()],
        &[b"1", b"2"],
        &[known.as_bytes(), known.as_bytes()],
        &[known.as_bytes(), b"1"],
    ];
    for values in bad {
        let got = answer(&broker, values).await;
        let expected = vec!["position:{}".to_owned()];
        let shown = values
            .first()
            .map(|value| String::from_utf8_lossy(&value[..value.len().min(60)]));
        assert_eq!(got, (Outcome::Fresh, expected), "{shown:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn unresumable_position_gets_a_gap() {
    let builder = Broker::builder().history(History::default().events(2));
    let broker = builder.in_memory();
    let evicted = publish(&broker, "a", &["1"]).await;
    let head = publish(&broker, "a", &["2", "3", "4"]).await;
    let other = publish(&Broker::in_memory(), "a", &["1", "2", "3", "4"]).await;
    let epoch = head.epoch();
    let cases = [
        (evicted, "evicted"),
        (Position::new(epoch, 0, 0), "evicted"),
        (other, "other_log"),
        (
            Position::new(Epoch::new(epoch.value() ^ 1), 4, head.tag()),
            "other_log",
        ),
        (Position::new(epoch, 4, head.tag() ^ 1), "unknown_position"),
        (Position::new(epoch, 0, 1), "unknown_position"),
        (Position::new(epoch, 1000, 7), "unknown_position"),
        (Position::new(epoch, u64::MAX, 7), "unknown_position"),
    ];
    for (place, reason) in cases {
        let got = answer(&broker, &[place.to_string().as_bytes()]).await;
        let gap = format!(r#"gap:{{"reason":"{reason}","missed":null}}"#);
        assert_eq!(
            got,
            (Outcome::Gap, vec![gap, "position:{}".to_owned()]),
            "{place}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn position_before_the_first_event_is_resumable() {
    let broker = Broker::in_memory();
    let (sse, mut events) = coming_with(&[]).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    events.event().await.unwrap();
    let event = events.event().await.unwrap();
    assert_eq!(
        Position::parse(event.last_event_id.as_bytes())
            .unwrap()
            .offset(),
        0
    );
    publish(&broker, "a", &["1", "2"]).await;
    let got = answer(&broker, &[event.last_event_id.as_bytes()]).await;
    assert_eq!(
        got,
        (
            Outcome::Exact,
            vec!["message:1".to_owned(), "message:2".to_owned()]
        )
    );
}

#[tokio::test(start_paused = true)]
async fn id_from_another_users_stream_reveals_no_events() {
    let broker = Broker::in_memory();
    let start = publish(&broker, "user:a", &["a1"]).await;
    publish(&broker, "user:b", &["b1"]).await;
    publish(&broker, "user:a", &["a2", "a3"]).await;
    let (sse, mut events) = coming_with(&[start.to_string().as_bytes()]).await;
    let subscription = broker.subscribe(&sse, "user:b").await.unwrap();
    assert_eq!(subscription.outcome(), Outcome::Exact);
    subscription.start();
    publish(&broker, "user:a", &["a4"]).await;
    publish(&broker, "user:b", &["b2"]).await;
    events.event().await.unwrap();
    assert_eq!(events.event().await.unwrap().data, "b1");
    assert_eq!(events.event().await.unwrap().data, "b2");
    assert!(matches!(events.event().await, Err(ReadError::TimedOut(_))));
}

#[tokio::test(start_paused = true)]
async fn topic_names_have_no_special_characters() {
    let broker = Broker::in_memory();
    let longest = "x".repeat(256);
    let names = [
        "*", ">", "a.b..c", "a.b", "a.*", "{x}", " ", "a b", "\u{e4}", "１", "a\0b", "\0", "a\nb",
        "..", "/", &longest,
    ];
    for name in names {
        let (sse, mut events) = coming_with(&[]).await;
        broker.subscribe(&sse, name).await.unwrap().start();
        assert_eq!(broker.subscriber_count(name).unwrap(), 1, "{name:?}");
        for other in names {
            publish(
                &broker,
                other,
                &[other.escape_unicode().to_string().as_str()],
            )
            .await;
        }
        publish(&broker, name, &["end"]).await;
        let mut got = Vec::new();
        while got.last().is_none_or(|last| last != "end") {
            let event = events.event().await.unwrap();
            if event.event_type == "message" {
                got.push(event.data);
            }
        }
        assert_eq!(got, [name.escape_unicode().to_string(), "end".to_owned()]);
    }
}

#[tokio::test(start_paused = true)]
async fn empty_or_overlong_topic_name_is_refused_everywhere() {
    let broker = Broker::in_memory();
    let (sse, mut events) = coming_with(&[]).await;
    let too_long = "x".repeat(257);
    // 256 characters, and more bytes.
    let wide = format!("{}\u{e4}", "x".repeat(255));
    for name in ["", &too_long, &wide] {
        let errors = [
            broker.publish(name, Event::message("1")).await.unwrap_err(),
            broker.subscribe(&sse, ["good", name]).await.unwrap_err(),
            broker.unsubscribe(&sse, ["good", name]).unwrap_err(),
            broker.subscriber_count(name).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), BrokerErrorKind::Topic);
            let text = format!(
                "topic name has {} bytes: the limits are 1 and 256",
                name.len()
            );
            assert_eq!(error.to_string(), text);
        }
    }
    assert_eq!(
        (
            broker.topic_count(),
            broker.subscriber_count("good").unwrap()
        ),
        (0, 0)
    );
    drop(sse);
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    events.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn event_with_id_or_reserved_name_is_not_published() {
    let broker = Broker::builder()
        .gap_event(EventType::from_static("lost"))
        .in_memory();
    let (sse, mut events) = coming_with(&[]).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    let bad = [
        Event::message("1").id(EventId::from_static("1")).unwrap(),
        Event::message("1").id(EventId::from_static("")).unwrap(),
        Event::comment("1"),
        Event::new("welcome", "1").unwrap(),
        Event::new("lost", "1").unwrap(),
        Event::new("position", "1").unwrap(),
    ];
    for event in bad {
        let shown = format!("{event:?}");
        let error = broker.publish("a", event).await.unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::Event, "{shown}");
    }
    // A name that is free again is an ordinary one.
    let first = broker
        .publish("a", Event::new("gap", "mine").unwrap())
        .await;
    assert_eq!(first.unwrap().offset(), 1);
    let mut types = Vec::new();
    for _ in 0..3 {
        types.push(events.event().await.unwrap().event_type);
    }
    assert_eq!(types, ["welcome", "position", "gap"]);
}

fn kind<T>(result: Result<T, BrokerError>) -> Option<BrokerErrorKind> {
    result.err().map(|error| error.kind())
}

#[tokio::test(start_paused = true)]
async fn connection_with_other_event_ids_cannot_subscribe() {
    let broker = Broker::in_memory();
    let numbered = SseLayer::any_path().numbered(true);
    let (sse, mut events) = connection_of(&numbered, Request::default()).await;
    let refused = kind(broker.subscribe(&sse, "a").await);
    assert_eq!(refused, Some(BrokerErrorKind::Connection));
    sse.send(Event::message("goes on")).await.unwrap();
    events.event().await.unwrap();
    assert_eq!(events.event().await.unwrap().data, "goes on");

    let (sse, _events) = coming_with(&[]).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    let other = Broker::in_memory();
    let refused = kind(other.subscribe(&sse, "a").await);
    assert_eq!(refused, Some(BrokerErrorKind::Connection));
    other.unsubscribe(&sse, "a").unwrap();
    assert_eq!(broker.subscriber_count("a").unwrap(), 1);
    assert_eq!(
        (other.subscriber_count("a").unwrap(), other.topic_count()),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn subscribed_connection_returns_events_with_an_id() {
    let broker = Broker::in_memory();
    let (sse, mut events) = coming_with(&[]).await;
    let with_id = || Event::message("x").id(EventId::from_static("7")).unwrap();
    sse.send(with_id()).await.unwrap();
    broker.subscribe(&sse, "a").await.unwrap().start();
    let error = sse.send(with_id()).await.unwrap_err();
    assert_eq!(error.reason(), None);
    assert!(matches!(error, SendError::HasId(_)));
    assert_eq!(
        format!("{:?}", error.into_event()),
        format!("{:?}", with_id())
    );
    assert!(matches!(
        sse.try_send(with_id()),
        Err(TrySendError::Refused(SendError::HasId(_)))
    ));
    assert!(matches!(
        sse.close_with(with_id()),
        Err(SendError::HasId(_))
    ));
    assert!(!sse.is_closed());
    sse.send(Event::message("without")).await.unwrap();
    let mut texts = Vec::new();
    for _ in 0..4 {
        texts.push(events.event().await.unwrap().data);
    }
    assert_eq!(texts[1..], ["x", "without", "{}"]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_is_not_subscribed() {
    let broker = Broker::in_memory();
    let (sse, events) = coming_with(&[]).await;
    sse.close();
    let refused = kind(broker.subscribe(&sse, "a").await);
    assert_eq!(refused, Some(BrokerErrorKind::Closed(CloseReason::Closed)));
    drop(events);

    let (sse, events) = coming_with(&[]).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    drop(events);
    assert_eq!(
        (broker.subscriber_count("a").unwrap(), broker.topic_count()),
        (0, 0)
    );
    let refused = kind(broker.subscribe(&sse, ["a", "b"]).await);
    assert_eq!(
        refused,
        Some(BrokerErrorKind::Closed(CloseReason::ClientGone))
    );
    assert_eq!(broker.topic_count(), 0);
}
