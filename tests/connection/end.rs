//! How a stream ends: finished, or broken off. The first reason wins.

use super::{paths, rules};
use rules::{Answer, Failure, Notes, Rest, Text, call_sse, forever, open, plain, status};
use std::{error::Error, sync::mpsc};
use support::Held;
use tokio_test::block_on;
use tower_sse::{
    CloseReason, Event, SseConnection, SseLayer, connection::StreamError, layer::OutboxLimits,
};

fn layer() -> SseLayer {
    paths::without_welcome(SseLayer::new("/events"))
}

fn fill(sse: &SseConnection, texts: &[&str]) {
    for text in texts {
        sse.try_send(Event::message(text)).unwrap();
    }
}

// ===== finished =====

#[test]
fn close_sends_queued_events_and_ends_the_stream() {
    let layer = layer();
    let (sse, mut stream) = open(&layer);
    stream.assert_waits();
    fill(&sse, &["a", "b"]);
    sse.close();
    assert!(sse.is_closed());
    assert_eq!(layer.registered().len(), 1, "it is sending still");

    assert!(stream.is_woken());
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: a\n\ndata: b\n\n");
    rest.assert_ended();
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(block_on(sse.closed()), CloseReason::Closed);
}

/// What hyper asks of a body: a direct stream has no need of it.
#[test]
fn last_frame_sets_end_of_stream() {
    let _bodies = paths::bodies_alone();
    let (sse, mut stream) = open(&layer());
    fill(&sse, &["last"]);
    sse.close();
    assert!(!stream.is_end_stream());
    stream.frame();
    assert!(stream.is_end_stream());
    assert_eq!(block_on(sse.closed()), CloseReason::Closed);
}

#[test]
fn closed_waits_for_the_last_frame() {
    let (sse, mut stream) = open(&layer());
    fill(&sse, &["last"]);
    sse.close();
    let mut closed = tokio_test::task::spawn(sse.closed());
    assert!(closed.poll().is_pending());
    stream.frame();
    assert!(closed.is_woken());
    tokio_test::assert_ready_eq!(closed.poll(), CloseReason::Closed);
}

#[test]
fn close_with_sends_its_event_even_if_outbox_is_full() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1)));
    fill(&sse, &["a"]);
    assert!(sse.try_send(Event::message("no room")).is_err());
    sse.close_with(Event::message("bye")).unwrap();
    let error = sse.close_with(Event::message("again")).unwrap_err();
    assert_eq!(error.into_event().into_bytes(), "data: again\n\n");

    let (text, rest) = stream.rest();
    assert_eq!(text, "data: a\n\ndata: bye\n\n");
    rest.assert_ended();
}

#[test]
fn a_stream_ends_when_its_last_handle_is_dropped() {
    let (sse, mut stream) = open(&layer());
    stream.assert_waits();
    fill(&sse, &["a"]);
    let other = sse.clone();
    drop(sse);
    assert_eq!(stream.rest().0, "data: a\n\n");
    stream.assert_waits();

    fill(&other, &["b"]);
    drop(other);
    assert!(stream.is_woken());
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: b\n\n");
    rest.assert_ended();
}

#[test]
fn a_running_handler_is_polled_on_until_the_queue_is_empty() {
    let notes = Notes::default();
    let (noted, dropped) = (notes.clone(), notes.on_drop("dropped"));
    let (keep, kept) = mpsc::channel();
    let mut stream = call_sse(&layer(), async move |sse| {
        let _dropped = dropped;
        keep.send(sse.clone()).unwrap();
        sse.start();
        loop {
            noted.add("polled");
            let mut is_first = true;
            std::future::poll_fn(|_| match std::mem::take(&mut is_first) {
                true => std::task::Poll::Pending,
                false => std::task::Poll::Ready(()),
            })
            .await;
        }
    })
    .stream();
    stream.assert_waits();
    let sse = kept.recv().unwrap();
    // Too much for one frame.
    let large = "x".repeat(20_000);
    fill(&sse, &[&large, &large, &large]);
    sse.close();
    notes.take();

    for _ in 0..2 {
        stream.frame();
        assert_eq!(notes.take(), ["polled"]);
        assert!(!stream.is_end_stream());
    }
    stream.frame();
    assert_eq!(notes.take(), ["polled", "dropped"]);
    assert!(stream.is_end_stream());
    stream.rest().1.assert_ended();
}

#[test]
fn close_fails_a_waiting_send_of_the_handler() {
    let notes = Notes::default();
    let noted = notes.clone();
    let mut stream = call_sse(
        &layer().outbox(OutboxLimits::new().events(1).bytes(1)),
        async move |sse| {
            sse.send(Event::message("a")).await.unwrap();
            let closer = sse.clone();
            let send = async { sse.send(Event::message("b")).await.unwrap_err() };
            let close = async { closer.close() };
            let (error, _) = futures_util::future::join(send, close).await;
            noted.add(error.into_event().into_bytes().escape_ascii().to_string());
            status(500)
        },
    )
    .stream();
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: a\n\n");
    assert_eq!(notes.take(), ["data: b\\n\\n"]);
    // The handler failed because it was closed: that reason came first.
    rest.assert_ended();
}

#[test]
fn stream_outlives_its_handler_while_handles_remain() {
    let (keep, kept) = mpsc::channel();
    let mut stream = call_sse(&layer(), async move |sse| {
        sse.send(Event::message("a")).await.unwrap();
        keep.send(sse).unwrap();
        plain()
    })
    .stream();
    assert_eq!(stream.rest().0, "data: a\n\n");
    let sse = kept.recv().unwrap();
    fill(&sse, &["b"]);
    assert_eq!(stream.rest().0, "data: b\n\n");
    drop(sse);
    stream.rest().1.assert_ended();
}

// ===== broken off =====

#[derive(Debug, PartialEq)]
struct Cause;

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the database went away")
    }
}

impl Error for Cause {}

#[test]
fn fail_sends_queued_events_and_aborts_the_stream() {
    let layer = layer();
    let (sse, mut stream) = open(&layer);
    fill(&sse, &["a", "b"]);
    sse.fail(Cause);
    assert!(sse.is_closed());
    sse.fail("again");
    sse.close();

    let (text, rest) = stream.rest();
    assert_eq!(text, "data: a\n\ndata: b\n\n");
    let error = rest.into_error();
    let error: &StreamError = error.downcast_ref().unwrap();
    let cause = error.source().and_then(|source| source.downcast_ref());
    assert_eq!(cause, Some(&Cause));

    assert!(stream.is_end_stream());
    stream.rest().1.assert_ended();
    assert_eq!(block_on(sse.closed()), CloseReason::Failed);
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn body_is_pending_between_queued_events_and_error() {
    let (sse, mut stream) = open(&layer());
    fill(&sse, &["a"]);
    sse.fail("broken");
    stream.frame();
    // A server writes when the body is pending, and drops what it has not written at an error.
    assert!(stream.poll().is_pending());
    assert!(stream.is_woken());
    stream.rest().1.into_error();

    let (sse, mut stream) = open(&layer());
    stream.assert_waits();
    sse.fail("broken");
    assert!(stream.is_woken());
    assert!(matches!(
        stream.poll(),
        std::task::Poll::Ready(Some(Err(_)))
    ));
}

/// How the stream of this handler goes on after its first event, and why it ended.
fn outcome(handler: impl AsyncFnOnce(SseConnection) -> Answer + 'static) -> (Rest, Vec<String>) {
    let notes = Notes::default();
    let layer = notes.on(layer());
    let hook = notes.own();
    let mut stream = call_sse(&layer, async move |sse| {
        sse.on_close(hook);
        sse.send(Event::message("sent")).await.unwrap();
        handler(sse).await
    })
    .stream();
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: sent\n\n");
    assert_eq!(layer.registered().held(), 0);
    (rest, notes.take())
}

const FAILED: [&str; 3] = ["open", "own: failed", "close: failed"];

/// Fails at once, in the poll that also sent; and later, inside the body.
#[track_caller]
fn assert_breaks_off(fail: fn() -> Answer, expected: &str) {
    for later in [false, true] {
        for keeps_a_handle in [false, true] {
            let (rest, notes) = outcome(async move |sse| {
                if later {
                    tokio::task::yield_now().await;
                }
                if keeps_a_handle {
                    std::mem::forget(sse.clone());
                }
                fail()
            });
            let error = rest.into_error().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(notes, FAILED);
        }
    }
}

#[test]
fn handler_error_after_start_aborts_the_stream() {
    assert_breaks_off(|| Err(Failure), "returned an error");
}

#[test]
fn status_other_than_200_after_start_aborts_the_stream() {
    assert_breaks_off(|| status(500), "answered 500");
    assert_breaks_off(|| status(204), "answered 204");
}

#[test]
fn handler_panic_inside_the_body_aborts_the_stream() {
    let (rest, notes) = outcome(async |_| -> Answer<Text> {
        tokio::task::yield_now().await;
        panic!("in the body")
    });
    let error = rest.into_error().to_string();
    assert!(error.contains("panicked"), "{error}");
    assert_eq!(notes, FAILED);
}

#[test]
fn err_item_in_send_all_aborts_the_stream() {
    let (rest, notes) = outcome(async |sse| {
        let events = [Err(Cause), Ok(Event::message("never taken"))];
        let error = sse.send_all(tokio_stream::iter(events)).await.unwrap_err();
        assert_eq!(error.reason(), CloseReason::Failed);
        plain()
    });
    let error = rest.into_error();
    assert_eq!(error.source().unwrap().to_string(), Cause.to_string());
    assert_eq!(notes, FAILED);
}

#[test]
fn a_handler_that_fails_because_it_was_closed_ends_cleanly() {
    for later in [false, true] {
        let (rest, notes) = outcome(async move |sse| {
            if later {
                tokio::task::yield_now().await;
            }
            sse.close();
            Err(Failure)
        });
        rest.assert_ended();
        assert_eq!(notes, ["open", "own: closed", "close: closed"]);
    }
}

#[test]
fn disconnect_stays_the_reason_if_the_handler_fails_later() {
    struct FailsInDrop(SseConnection);

    impl Drop for FailsInDrop {
        fn drop(&mut self) {
            self.0.fail("in the destructor");
        }
    }

    let notes = Notes::default();
    let layer = notes.on(layer());
    let mut stream = call_sse(&layer, async |sse| {
        sse.start();
        let _fails = FailsInDrop(sse);
        forever().await;
        plain()
    })
    .stream();
    stream.assert_waits();
    drop(stream);
    assert_eq!(notes.take(), ["open", "close: client_gone"]);
}

// ===== send_all =====

#[test]
fn send_all_sends_a_stream_and_waits_for_room() {
    let notes = Notes::default();
    let noted = notes.clone();
    let mut stream = call_sse(
        &layer().outbox(OutboxLimits::new().events(2).bytes(1024)),
        async move |sse| {
            let texts = tokio_stream::iter(["a", "b", "c", "d", "e"]);
            let events = futures_util::StreamExt::map(texts, |text| {
                noted.add(text);
                Ok::<_, Cause>(Event::message(text))
            });
            sse.send_all(events).await.unwrap();
            plain()
        },
    )
    .stream();
    assert_eq!(notes.take(), ["a", "b", "c"], "one waits for room");
    let (text, rest) = stream.rest();
    assert_eq!(
        text,
        "data: a\n\ndata: b\n\ndata: c\n\ndata: d\n\ndata: e\n\n"
    );
    rest.assert_ended();
}

#[test]
fn send_all_of_a_closed_connection_is_an_error() {
    let (sse, _stream) = open(&layer());
    sse.close();
    let events = tokio_stream::iter([Ok::<_, Cause>(Event::message("late"))]);
    let error = block_on(sse.send_all(events)).unwrap_err();
    assert_eq!(error.reason(), CloseReason::Closed);
    let none = tokio_stream::iter(None::<Result<Event, Cause>>);
    assert!(block_on(sse.send_all(none)).is_ok());
}
