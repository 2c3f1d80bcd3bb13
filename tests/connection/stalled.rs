//! Clients that have stopped reading: their servers take nothing, and so do not poll the body.

use super::{rules, timed};
use rules::{Notes, Stream, call_sse, forever, open, plain, status};
use std::{future::pending, panic::Location, time::Duration};
use support::Held;
use timed::{TICK, about, answer, bare, connect, emptied, handled, request, seconds, settle, text};
use tokio::time::{Instant, sleep};
use tower_sse::{
    Broker, CloseReason, Connections, Event, SseConnection, SseLayer,
    broker::{History, SlowConsumer},
    layer::OutboxLimits,
};

const STALL: Duration = Duration::from_secs(20);

fn layer() -> SseLayer {
    bare(&Connections::new()).stall_timeout(STALL)
}

/// Asserts that the connection is ended this long after `since`, without its body.
#[track_caller]
fn assert_stalls(layer: &SseLayer, since: Instant) -> impl Future<Output = ()> {
    let layer = layer.clone();
    let at = Location::caller();
    async move {
        let time = emptied(layer.registered()).await - since;
        assert!(about(STALL).contains(&time), "{time:?} at {at}");
        let stats = layer.registered().stats();
        assert_eq!(stats.closed(CloseReason::SlowConsumer), 1, "at {at}");
        assert_eq!(stats.queued_bytes, 0);
    }
}

// ===== found =====

#[tokio::test(start_paused = true)]
async fn unread_event_stalls() {
    for idle in [0, 1, 19, 20, 100] {
        let layer = layer();
        let (sse, _events) = connect(&layer).await;
        sleep(seconds(idle)).await;
        sse.try_send(text("never taken")).unwrap();
        assert_stalls(&layer, Instant::now()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unread_event_after_read_ones_stalls() {
    for idle in [0, 7, 35] {
        let layer = layer();
        let (sse, mut events) = connect(&layer).await;
        for _ in 0..3 {
            sse.try_send(text("taken")).unwrap();
            assert_eq!(events.event().await.unwrap().data, "taken");
        }
        sleep(seconds(idle)).await;
        sse.try_send(text("never taken")).unwrap();
        let since = Instant::now();
        sleep(seconds(5)).await;
        sse.try_send(text("nor this")).unwrap();
        assert_stalls(&layer, since).await;
    }
}

/// As a server leaves it that has filled its buffers: the last poll gave a frame.
#[tokio::test(start_paused = true)]
async fn rest_of_a_partly_read_queue_stalls() {
    let layer = layer();
    let (sse, mut events) = connect(&layer).await;
    let large = "x".repeat(20_000);
    for _ in 0..5 {
        sse.try_send(text(&large)).unwrap();
    }
    sleep(seconds(7)).await;
    events.frame().await.unwrap();
    assert_stalls(&layer, Instant::now()).await;
}

#[tokio::test(start_paused = true)]
async fn unread_rest_of_a_running_handler_stalls() {
    let layer = layer();
    let large = handled(&layer, async |sse: SseConnection| {
        let large = "x".repeat(20_000);
        for _ in 0..5 {
            sse.send(text(&large)).await.unwrap();
        }
        pending().await
    });
    let mut events = answer(&large, request()).await.into_body();
    sleep(seconds(7)).await;
    events.frame().await.unwrap();
    assert_stalls(&layer, Instant::now()).await;
}

/// A stream, polled by hand, that subscribes to a topic.
async fn subscribed(layer: &SseLayer, broker: &Broker) -> (SseConnection, Stream) {
    let (sse, stream) = open(layer);
    broker.subscribe(&sse, "a").await.unwrap().start();
    (sse, stream)
}

async fn publish(broker: &Broker, text: &str) {
    let event = Event::message(text);
    broker.publish("a", event).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unread_topic_event_stalls() {
    // One server has polled until the body slept; another one took a frame with its last poll.
    for sleeps in [true, false] {
        for idle in [0, 1, 33] {
            let layer = layer();
            let broker = Broker::in_memory();
            let (_sse, mut stream) = subscribed(&layer, &broker).await;
            sleep(seconds(1)).await;
            if sleeps {
                stream.rest();
            } else {
                stream.frame();
            }
            sleep(seconds(idle)).await;
            publish(&broker, "never taken").await;
            let since = Instant::now();
            sleep(seconds(5)).await;
            publish(&broker, "nor this").await;
            assert_stalls(&layer, since).await;
            assert_eq!(broker.subscriber_count("a").unwrap(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rest_of_a_partly_read_topic_stalls() {
    let layer = layer();
    let broker = Broker::in_memory();
    let (_sse, mut stream) = subscribed(&layer, &broker).await;
    stream.rest();
    let large = "x".repeat(20_000);
    for _ in 0..5 {
        publish(&broker, &large).await;
    }
    sleep(seconds(7)).await;
    stream.frame();
    assert_stalls(&layer, Instant::now()).await;
}

#[tokio::test(start_paused = true)]
async fn unread_heartbeat_stalls() {
    for beat in [seconds(2), seconds(15), seconds(90)] {
        for sleeps in [true, false] {
            let layer = layer().keep_alive(beat);
            let (sse, mut stream) = open(&layer);
            sse.try_send(text("taken")).unwrap();
            stream.frame();
            if sleeps {
                stream.assert_waits();
            }
            let since = Instant::now();
            let time = emptied(layer.registered()).await - since;
            let expected = beat + STALL;
            assert!(
                (expected..=expected + 2 * TICK).contains(&time),
                "{beat:?}: {time:?}"
            );
            assert_eq!(sse.closed().await, CloseReason::SlowConsumer);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unread_end_of_a_closed_stream_stalls() {
    let layer = layer().close_timeout(seconds(1_000));
    let (sse, mut stream) = open(&layer);
    sse.try_send(text("queued")).unwrap();
    stream.frame();
    sse.close();
    let time = Instant::now();
    // Noticed with the ticker's next visit.
    let time = emptied(layer.registered()).await - time;
    assert!(
        (STALL..=STALL + seconds(15) + 2 * TICK).contains(&time),
        "{time:?}"
    );
    assert_eq!(sse.closed().await, CloseReason::Closed, "the first reason");
}

// ===== what comes of it =====

#[tokio::test(start_paused = true)]
async fn stall_runs_hooks_once_and_fails_senders_and_body() {
    let notes = Notes::default();
    let layer = notes.on(layer().outbox(OutboxLimits::new().events(2).bytes(1_000)));
    let (sse, mut stream) = open(&layer);
    sse.on_close(notes.own());
    for _ in 0..2 {
        sse.try_send(text("queued")).unwrap();
    }
    assert!(layer.registered().stats().queued_bytes > 0);
    let senders: Vec<_> = (0..3)
        .map(|_| {
            let sse = sse.clone();
            tokio::spawn(async move { sse.send(text("waits")).await.unwrap_err() })
        })
        .collect();
    assert_stalls(&layer, Instant::now()).await;
    for sender in senders {
        let error = sender.await.unwrap();
        assert_eq!(error.reason(), Some(CloseReason::SlowConsumer));
        assert_eq!(error.into_event().into_bytes(), "data: waits\n\n");
    }
    assert_eq!(sse.closed().await, CloseReason::SlowConsumer);
    let expected = ["open", "own: slow_consumer", "close: slow_consumer"];
    assert_eq!(notes.take(), expected);

    let (sent, rest) = stream.rest();
    assert_eq!(sent, "");
    let error = rest.into_error().to_string();
    assert_eq!(
        error,
        "client stalled: nothing read within the stall timeout"
    );
    drop(stream);
    assert_eq!(notes.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn stall_stops_the_handler_inside_the_body() {
    let layer = layer().outbox(OutboxLimits::new().events(1).bytes(1_000));
    let mut stream = call_sse(&layer, async |sse| {
        while sse.send(text("more")).await.is_ok() {}
        status(500)
    })
    .stream();
    assert_stalls(&layer, Instant::now()).await;
    stream.rest().1.into_error();
}

// ===== not found =====

#[tokio::test(start_paused = true)]
async fn slowly_polled_stream_does_not_stall() {
    let layer = layer();
    let broker = Broker::in_memory();
    let (sse, mut stream) = subscribed(&layer, &broker).await;
    let large = "x".repeat(30_000);
    for number in 0..30 {
        // There is always more than one frame.
        while sse.try_send(text(&large)).is_ok() {}
        if number % 3 == 0 {
            publish(&broker, &large).await;
        }
        sleep(STALL - TICK).await;
        assert!(!stream.frame().is_empty());
    }
    assert!(!sse.is_closed());
}

#[tokio::test(start_paused = true)]
async fn quiet_stream_does_not_stall() {
    for sleeps in [true, false] {
        let layer = layer();
        let broker = Broker::in_memory();
        let (sse, mut stream) = subscribed(&layer, &broker).await;
        publish(&broker, "taken").await;
        // The broker wakes those who sleep once more.
        settle().await;
        if sleeps {
            stream.rest();
        } else {
            stream.frame();
        }
        sleep(100 * STALL).await;
        assert!(!sse.is_closed());
        publish(&broker, "goes on").await;
        sleep(STALL - TICK).await;
        assert!(stream.rest().0.contains("goes on"));
        sleep(100 * STALL).await;
        assert!(!sse.is_closed());
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_timeout_streams_never_stall() {
    let layer = layer().stall_timeout(None).keep_alive(seconds(15));
    let (sse, mut stream) = open(&layer);
    sse.try_send(text("taken late")).unwrap();
    sleep(seconds(100_000)).await;
    assert!(!sse.is_closed());
    assert_eq!(stream.text(), "data: taken late\n\n");
}

#[tokio::test(start_paused = true)]
async fn handler_before_its_response_does_not_stall() {
    let layer = layer();
    let mut call = call_sse(&layer, async |_| {
        forever().await;
        plain()
    });
    assert!(call.poll().is_pending());
    sleep(100 * STALL).await;
    assert_eq!(layer.registered().held(), 1);
}

// ===== subscribers that fall off their history =====

#[tokio::test(start_paused = true)]
async fn slow_subscriber_is_disconnected_without_a_poll() {
    for beats in [true, false] {
        let notes = Notes::default();
        let layer = notes.on(layer().stall_timeout(None));
        let layer = if beats {
            layer.keep_alive(seconds(15))
        } else {
            layer
        };
        let history = History::default().events(2);
        let builder = Broker::builder().history(history);
        let broker = builder.slow_consumer(SlowConsumer::Disconnect).in_memory();
        let (sse, mut stream) = subscribed(&layer, &broker).await;
        for number in 0..3 {
            publish(&broker, &number.to_string()).await;
        }
        let since = Instant::now();
        let time = emptied(layer.registered()).await - since;
        // With the ticker's next visit, and the last call.
        assert!(time <= seconds(16), "{time:?}");
        assert_eq!(sse.closed().await, CloseReason::SlowConsumer);
        assert_eq!(notes.take(), ["open", "close: slow_consumer"]);
        assert_eq!(broker.subscriber_count("a").unwrap(), 0);
        stream.rest();
        drop(stream);
        assert_eq!(notes.take(), [""; 0]);
    }
}
