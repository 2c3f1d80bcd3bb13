//! Lifetimes of streams that nobody takes: they end without their bodies.

use super::timed;
use std::time::Duration;
use timed::{LONG, TICK, bare, connect, emptied, read, seconds, settle, text};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower_sse::{CloseReason, Connections, SseLayer, test_util::EventReader};

fn layer() -> SseLayer {
    bare(&Connections::new())
}

/// Asserts that the body breaks off when it is polled at last.
async fn assert_broken(mut events: EventReader, expected: &str) {
    let error = events.frame().await.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(source.as_deref(), Some(expected));
}

#[tokio::test(start_paused = true)]
async fn unread_stream_is_closed_after_grace_without_polling() {
    let (closed, mut reasons) = mpsc::channel(2);
    let layer = layer().stall_timeout(None).close_timeout(seconds(20));
    let layer = layer.on_close(move |_, reason| closed.try_send(reason).unwrap());
    let layer = layer.max_connections(1);
    let (sse, events) = connect(&layer).await;
    sse.try_send(text("never taken")).unwrap();
    let began = Instant::now();
    sse.close_at(began + seconds(100));
    let time = emptied(layer.registered()).await - began;
    assert!(
        (seconds(120)..=seconds(120) + TICK).contains(&time),
        "{time:?}"
    );
    assert_eq!(reasons.recv().await, Some(CloseReason::Lifetime));
    assert_eq!(sse.closed().await, CloseReason::Lifetime);
    assert_eq!(layer.registered().stats().queued_bytes, 0);
    let (_other, _events) = connect(&layer).await;
    assert_broken(events, "event stream was aborted before it was complete").await;
    assert!(reasons.try_recv().is_err(), "once");
}

#[tokio::test(start_paused = true)]
async fn closed_stream_has_the_grace_to_send_queued_events() {
    let layer = layer().stall_timeout(None).close_timeout(seconds(20));
    let (sse, events) = connect(&layer).await;
    sse.try_send(text("never taken")).unwrap();
    let (other, late) = connect(&layer).await;
    other.try_send(text("taken late")).unwrap();
    let began = Instant::now();
    assert_eq!(layer.registered().close_where(|_| true), 2);
    sleep(seconds(19)).await;
    let late = read(late).await;
    late.assert_clean();
    assert_eq!(late.texts(), ["message: taken late"]);

    let time = emptied(layer.registered()).await - began;
    // Such streams are looked at every 15 seconds.
    assert!(
        (seconds(20)..=seconds(35) + 2 * TICK).contains(&time),
        "{time:?}"
    );
    assert_eq!(sse.closed().await, CloseReason::Closed);
    assert_broken(events, "event stream was aborted before it was complete").await;
}

#[tokio::test(start_paused = true)]
async fn lifetime_end_does_not_extend_a_close() {
    let layer = layer().stall_timeout(None).close_timeout(seconds(20));
    let (sse, _events) = connect(&layer).await;
    sse.try_send(text("never taken")).unwrap();
    let began = Instant::now();
    sse.close_at(began + seconds(19));
    sse.close();
    let time = emptied(layer.registered()).await - began;
    assert!(time <= seconds(35) + 2 * TICK, "{time:?}");
    assert_eq!(sse.closed().await, CloseReason::Closed);
}

// ===== ending =====

#[tokio::test(start_paused = true)]
async fn ending_resolves_on_close_and_disconnect() {
    let (sse, events) = connect(&layer()).await;
    assert!(timeout(LONG / 10, sse.ending()).await.is_err());
    sse.close();
    assert_eq!(sse.ending().await, CloseReason::Closed);
    drop(events);
    assert_eq!(sse.ending().await, CloseReason::Closed);

    let (sse, events) = connect(&layer()).await;
    drop(events);
    assert_eq!(sse.ending().await, CloseReason::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn times_out_of_range_are_unlimited() {
    let layer = layer()
        .max_lifetime(Duration::MAX)
        .close_timeout(Duration::MAX)
        .stall_timeout(Duration::MAX);
    let (sse, mut events) = connect(&layer).await;
    sse.close_at(Instant::now() + LONG);
    sse.try_send(text("a")).unwrap();
    sleep(LONG / 10).await;
    assert_eq!(events.event().await.unwrap().data, "a");
    let reading = tokio::spawn(read(events));
    settle().await;
    let drain = layer.registered().drain().deadline(Duration::MAX);
    let drained = drain
        .retry(Duration::ZERO..=Duration::MAX)
        .over(seconds(1))
        .await;
    assert_eq!((drained.ended, drained.aborted), (1, 0));
    reading.await.unwrap().assert_clean();
}
