//! The moment from which topic events flow: after what was sent directly; and only then is the
//! client given its place.

use super::paths;
use paths::{connection_of, open};
use std::{convert::Infallible, future::Future};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, service_fn};
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    broker::{History, Outcome, Position},
    event::MessageEvent,
    layer::Welcome,
    test_util::EventReader,
};

fn layer() -> SseLayer {
    SseLayer::any_path()
}

fn request(id: Option<&str>) -> Request<()> {
    let mut request = Request::get("/");
    if let Some(id) = id {
        request = request.header("last-event-id", id);
    }
    request.body(()).unwrap()
}

/// The stream of a client that this handler answers.
async fn answered<Fut>(
    layer: SseLayer,
    id: Option<&str>,
    handler: impl Fn(SseConnection) -> Fut,
) -> EventReader
where
    Fut: Future<Output = ()> + Send + 'static,
{
    let service = layer.layer(service_fn(move |mut request: Request<()>| {
        let answer = handler(request.extensions_mut().remove().unwrap());
        answer.map(|()| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
    }));
    open(service, request(id)).await.unwrap().into_body()
}

async fn publish(broker: &Broker, topic: &str, text: &str) -> Position {
    broker.publish(topic, Event::message(text)).await.unwrap()
}

/// The next events: type, data, and the offset of the place that the client has then.
async fn next(events: &mut EventReader, count: usize) -> Vec<(String, String, Option<u64>)> {
    let mut got = Vec::new();
    for _ in 0..count {
        let MessageEvent {
            event_type,
            data,
            last_event_id,
            ..
        } = events.event().await.unwrap();
        let place = Position::parse(last_event_id.as_bytes());
        let data = if event_type == "welcome" {
            String::new()
        } else {
            data
        };
        got.push((event_type, data, place.map(|place| place.offset())));
    }
    got
}

fn event(
    event_type: &str,
    data: &str,
    place: impl Into<Option<u64>>,
) -> (String, String, Option<u64>) {
    (event_type.to_owned(), data.to_owned(), place.into())
}

#[tokio::test(start_paused = true)]
async fn welcome_carries_the_position_if_nothing_was_sent() {
    let broker = Broker::in_memory();
    publish(&broker, "a", "1").await;
    let to = broker.clone();
    let mut events = answered(layer(), None, move |sse| {
        let broker = to.clone();
        async move { broker.subscribe(&sse, "a").await.unwrap().start() }
    })
    .await;
    publish(&broker, "a", "2").await;
    assert_eq!(
        next(&mut events, 2).await,
        [event("welcome", "", 1), event("message", "2", 2)]
    );
}

#[tokio::test(start_paused = true)]
async fn snapshot_precedes_position_and_concurrent_events() {
    let broker = Broker::in_memory();
    publish(&broker, "a", "1").await;
    let to = broker.clone();
    let mut events = answered(layer(), None, move |sse| {
        let broker = to.clone();
        async move {
            let subscription = broker.subscribe(&sse, "a").await.unwrap();
            for number in ["2", "3", "4"] {
                publish(&broker, "a", number).await;
                sse.send(Event::new("snapshot", number).unwrap())
                    .await
                    .unwrap();
            }
            subscription.start();
            publish(&broker, "a", "5").await;
        }
    })
    .await;
    let expected = [
        event("welcome", "", None),
        event("snapshot", "2", None),
        event("snapshot", "3", None),
        event("snapshot", "4", None),
        event("position", "{}", 1),
        event("message", "2", 2),
        event("message", "3", 3),
        event("message", "4", 4),
        event("message", "5", 5),
    ];
    assert_eq!(next(&mut events, 9).await, expected);
}

#[tokio::test(start_paused = true)]
async fn welcome_of_exact_resume_repeats_the_client_position() {
    let broker = Broker::in_memory();
    let place = publish(&broker, "a", "1").await.to_string();
    publish(&broker, "a", "2").await;
    let to = broker.clone();
    let mut events = answered(layer(), Some(&place), move |sse| {
        let broker = to.clone();
        async move {
            let subscription = broker.subscribe(&sse, "a").await.unwrap();
            assert!(subscription.is_exact());
            sse.send(Event::message("sent")).await.unwrap();
            subscription.start();
        }
    })
    .await;
    let expected = [
        event("welcome", "", 1),
        event("message", "sent", 1),
        event("message", "2", 2),
    ];
    assert_eq!(next(&mut events, 3).await, expected);
}

#[tokio::test(start_paused = true)]
async fn gap_is_sent_before_the_new_position() {
    let builder = Broker::builder().history(History::default().events(1));
    let broker = builder.in_memory();
    let place = publish(&broker, "a", "1").await.to_string();
    publish(&broker, "a", "2").await;
    publish(&broker, "a", "3").await;
    let to = broker.clone();
    let mut events = answered(layer(), Some(&place), move |sse| {
        let broker = to.clone();
        async move { broker.subscribe(&sse, "a").await.unwrap().start() }
    })
    .await;
    // A client that is cut after the welcome comes back as it came, and is told.
    let expected = [
        event("welcome", "", None),
        event("gap", r#"{"reason":"evicted","missed":null}"#, None),
        event("position", "{}", 3),
    ];
    assert_eq!(next(&mut events, 3).await, expected);
}

#[tokio::test(start_paused = true)]
async fn client_resumes_only_after_receiving_its_position() {
    let broker = Broker::in_memory();
    publish(&broker, "a", "1").await;
    let mut id = String::new();
    let mut outcomes = Vec::new();
    for taken in [2, 1, 3, 1] {
        let came_with = Some(&*id).filter(|id| !id.is_empty());
        let (sse, mut events) = connection_of(&layer(), request(came_with)).await;
        let subscription = broker.subscribe(&sse, "a").await.unwrap();
        outcomes.push(subscription.outcome());
        if !subscription.is_exact() {
            sse.send(Event::new("snapshot", "1").unwrap())
                .await
                .unwrap();
        }
        subscription.start();
        // What comes in one frame may still be cut between its events.
        for _ in 0..taken {
            let event = events.event().await.unwrap();
            if !event.last_event_id.is_empty() {
                id = event.last_event_id;
            }
        }
    }
    use Outcome::{Exact, Fresh};
    assert_eq!(outcomes, [Fresh, Fresh, Fresh, Exact]);
}

#[tokio::test(start_paused = true)]
async fn dropped_subscription_starts_after_the_response() {
    let broker = Broker::in_memory();
    let to = broker.clone();
    let mut events = answered(layer(), None, move |sse| {
        let broker = to.clone();
        async move {
            drop(broker.subscribe(&sse, "a").await.unwrap());
            publish(&broker, "a", "1").await;
            // Still before the events: the handler has not answered.
            sse.send(Event::message("sent")).await.unwrap();
        }
    })
    .await;
    let expected = [
        event("welcome", "", None),
        event("message", "sent", None),
        event("position", "{}", 0),
        event("message", "1", 1),
    ];
    assert_eq!(next(&mut events, 4).await, expected);
}

#[tokio::test(start_paused = true)]
async fn subscription_kept_after_the_response_delays_events() {
    for goes_live in [true, false] {
        let broker = Broker::in_memory();
        let (sse, mut events) = connection_of(&layer(), request(None)).await;
        let first = broker.subscribe(&sse, "a").await.unwrap();
        let second = broker.subscribe(&sse, "b").await.unwrap();
        publish(&broker, "a", "1").await;
        publish(&broker, "b", "2").await;
        assert_eq!(next(&mut events, 1).await, [event("welcome", "", None)]);
        drop(first);
        assert!(events.event().now_or_never().is_none());
        let waiting = tokio::spawn(async move { next(&mut events, 3).await });
        tokio::task::yield_now().await;
        let other_task = tokio::spawn(async move {
            if goes_live {
                second.start();
            }
        });
        other_task.await.unwrap();
        let expected = [
            event("position", "{}", 0),
            event("message", "1", 1),
            event("message", "2", 2),
        ];
        assert_eq!(waiting.await.unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn without_welcome_the_position_is_its_own_event() {
    let broker = Broker::in_memory();
    let to = broker.clone();
    let mut events = answered(layer().welcome(None), None, move |sse| {
        let broker = to.clone();
        async move { broker.subscribe(&sse, "a").await.unwrap().start() }
    })
    .await;
    publish(&broker, "a", "1").await;
    let expected = [event("position", "{}", 0), event("message", "1", 1)];
    assert_eq!(next(&mut events, 2).await, expected);
}

#[tokio::test(start_paused = true)]
async fn custom_welcome_carries_the_position_if_it_has_data() {
    type WelcomeFn = fn(&SseConnection) -> Event;
    let welcomes: [(WelcomeFn, _); 2] = [
        (
            |_| Event::new("hello", "you").unwrap(),
            vec![event("hello", "you", 0)],
        ),
        // An id on a comment is one that no client sees.
        (
            |_| Event::comment("hello"),
            vec![event("position", "{}", 0)],
        ),
    ];
    for (welcome, expected) in welcomes {
        let broker = Broker::in_memory();
        let mut events = answered(layer().welcome(Welcome::new(welcome)), None, move |sse| {
            let broker = broker.clone();
            async move { broker.subscribe(&sse, "a").await.unwrap().start() }
        })
        .await;
        assert_eq!(next(&mut events, 1).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn last_event_id_is_read_from_the_query() {
    let broker = Broker::in_memory();
    let place = publish(&broker, "a", "1").await;
    publish(&broker, "a", "2").await;
    for (layer, expected) in [
        (layer().last_event_id_query("lastEventId"), Outcome::Exact),
        (layer(), Outcome::Fresh),
    ] {
        let uri = format!("/?x=1&lastEventId={place}");
        let request = Request::get(uri).body(()).unwrap();
        let (sse, _events) = connection_of(&layer, request).await;
        let subscription = broker.subscribe(&sse, "a").await.unwrap();
        assert_eq!(subscription.outcome(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn server_position_does_not_replace_the_client_position() {
    for is_client_first in [true, false] {
        for sends_between in [true, false] {
            let broker = Broker::in_memory();
            let start = publish(&broker, "b", "1").await;
            publish(&broker, "b", "2").await;
            publish(&broker, "a", "3").await;
            publish(&broker, "b", "4").await;
            let own = publish(&broker, "a", "5").await.to_string();
            publish(&broker, "a", "6").await;
            let to = broker.clone();
            let events = answered(layer(), Some(&own), move |sse| {
                let broker = to.clone();
                async move {
                    if !is_client_first {
                        let _ = broker.subscribe(&sse, "b").from(&start).await.unwrap();
                    }
                    let subscription = broker.subscribe(&sse, "a").await.unwrap();
                    assert!(subscription.is_exact());
                    if sends_between {
                        sse.send(Event::message("sent")).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    if is_client_first {
                        let _ = broker.subscribe(&sse, "b").from(&start).await.unwrap();
                    }
                    subscription.start();
                }
            });
            let mut got = next(&mut events.await, if sends_between { 5 } else { 4 }).await;
            got.retain(|(_, data, _)| data != "sent");
            // At no point is the client's place before the one that it came with.
            let expected = [
                event("welcome", "", 5),
                event("message", "2", 5),
                event("message", "4", 5),
                event("message", "6", 6),
            ];
            assert_eq!(got, expected, "{is_client_first} {sends_between}");
        }
    }
}
