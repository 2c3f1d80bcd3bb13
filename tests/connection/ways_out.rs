//! Whatever the way out, the registry is empty afterwards, and each hook has run once.

use super::rules;
use rules::{
    Answer, Call, Failure, Notes, Text, call_sse, forever, get, open, plain, sse_of, status,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
};
use support::Held;
use tokio_test::block_on;
use tower::{Layer, Service, service_fn};
use tower_sse::{CloseReason, Event, SseConnection, SseLayer};

/// A layer with hooks, and a call whose handler adds one of its own.
fn noted(
    notes: &Notes,
    handler: impl AsyncFnOnce(SseConnection) -> Answer + 'static,
) -> (SseLayer, Call) {
    let layer = notes.on(SseLayer::new("/events"));
    let hook = notes.own();
    let call = call_sse(&layer, async move |sse| {
        sse.on_close(hook);
        handler(sse).await
    });
    (layer, call)
}

#[test]
fn dropped_unpolled_response_future_is_deregistered() {
    let notes = Notes::default();
    let (layer, call) = noted(&notes, async |_| plain());
    assert_eq!(layer.registered().held(), 1);
    drop(call);
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(notes.take(), [""; 0]);
}

#[test]
fn response_future_dropped_while_pending_is_client_gone() {
    let notes = Notes::default();
    let dropped = notes.on_drop("handler dropped");
    let (layer, mut call) = noted(&notes, async move |_| {
        let _dropped = dropped;
        forever().await;
        plain()
    });
    assert!(call.poll().is_pending());
    drop(call);
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(notes.take(), ["own: client_gone", "handler dropped"]);
}

#[test]
fn response_dropped_unpolled_is_client_gone() {
    for starts_first in [false, true] {
        let notes = Notes::default();
        let dropped = notes.on_drop("handler dropped");
        let (layer, call) = noted(&notes, async move |sse| {
            let _dropped = dropped;
            std::mem::forget(sse.clone());
            if starts_first {
                sse.start();
                forever().await;
            }
            plain()
        });
        let response = call.response();
        let mut expected = vec!["own: client_gone", "close: client_gone"];
        if starts_first {
            expected.push("handler dropped");
            assert_eq!(notes.take(), ["open"]);
        } else {
            assert_eq!(notes.take(), ["handler dropped", "open"]);
        }
        drop(response);
        assert_eq!(layer.registered().held(), 0);
        assert_eq!(notes.take(), expected);
    }
}

#[test]
fn body_dropped_after_any_poll_runs_hooks_once() {
    // A stream with all that can happen: a welcome, merged and large frames, waits, a handler that
    // finishes, and an end, clean or not.
    fn busy(notes: &Notes, fails: bool) -> (SseLayer, Call) {
        noted(notes, async move |sse| {
            for text in ["a", "b"] {
                sse.send(Event::message(text)).await.unwrap();
            }
            tokio::task::yield_now().await;
            let large = "x".repeat(20_000);
            for _ in 0..5 {
                sse.send(Event::message(&large)).await.unwrap();
            }
            tokio::task::yield_now().await;
            sse.send(Event::message("z")).await.unwrap();
            if fails { status(500) } else { plain() }
        })
    }

    for (fails, reason) in [(false, "closed"), (true, "failed")] {
        let mut polls = 0;
        loop {
            let notes = Notes::default();
            let (layer, call) = busy(&notes, fails);
            let mut stream = call.stream();
            for _ in 0..polls {
                let _ = stream.poll();
            }
            let ended = stream.is_end_stream();
            drop(stream);
            assert_eq!(layer.registered().held(), 0, "after {polls} polls");
            let notes = notes.take();
            let reasons = ["client_gone", reason].map(|reason| {
                [
                    "open".into(),
                    format!("own: {reason}"),
                    format!("close: {reason}"),
                ]
            });
            // The reason is there before the end: when the handler is done, and events are queued.
            let expected = &reasons[usize::from(ended)..];
            assert!(
                expected.iter().any(|it| *it == notes[..]),
                "{polls} polls: {notes:?}"
            );
            polls += 1;
            if ended {
                break;
            }
        }
        assert!(polls > 5, "{polls} polls are few");
    }
}

#[test]
fn body_may_be_polled_and_dropped_after_its_end() {
    let notes = Notes::default();
    let (layer, call) = noted(&notes, async |sse| {
        sse.start();
        plain()
    });
    let mut stream = call.stream();
    for _ in 0..3 {
        stream.rest().1.assert_ended();
    }
    drop(stream);
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(notes.take(), ["open", "own: closed", "close: closed"]);
}

#[test]
fn handler_panic_before_start_is_a_failure() {
    let notes = Notes::default();
    let layer = notes.on(SseLayer::new("/events"));
    let (hook, dropped) = (notes.own(), notes.on_drop("handler dropped"));
    let mut parts = Some((hook, dropped));
    let mut service = layer.layer(service_fn(move |request| {
        let (hook, dropped) = parts.take().expect("the service is called once");
        async move {
            let _dropped = dropped;
            sse_of(&request).on_close(hook);
            if request.uri() != "/" {
                panic!("before the start");
            }
            plain()
        }
    }));
    let mut call = tokio_test::task::spawn(service.call(get("/events")));
    let caught = catch_unwind(AssertUnwindSafe(|| call.poll().is_ready()));
    assert!(caught.is_err(), "the panic is the server's to handle");
    // Whoever has caught it, as a layer that answers 500 does, may keep the future for a while.
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(notes.take(), ["handler dropped", "own: failed"]);
    drop(call);
    assert_eq!(notes.take(), [""; 0]);
}

#[test]
fn inner_service_panic_in_call_is_a_failure() {
    let notes = Notes::default();
    let layer = notes.on(SseLayer::new("/events"));
    let hook = notes.own();
    let hook = std::sync::Mutex::new(Some(hook));
    let mut service = layer.layer(service_fn(|request| -> std::future::Ready<Answer> {
        let sse = sse_of(&request);
        sse.on_close(hook.lock().unwrap().take().unwrap());
        panic!("in call")
    }));
    let caught = catch_unwind(AssertUnwindSafe(|| service.call(get("/events"))));
    assert!(caught.is_err());
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(notes.take(), ["own: failed"]);
}

#[test]
fn inner_service_error_before_start_is_a_failure() {
    let notes = Notes::default();
    let (layer, mut call) = noted(&notes, async |sse| {
        std::mem::forget(sse);
        Err(Failure)
    });
    assert!(matches!(call.poll(), std::task::Poll::Ready(Err(Failure))));
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(notes.take(), ["own: failed"]);
}

// ===== hooks =====

#[test]
fn closed_resolves_for_every_waiter() {
    let (sse, stream) = open(&SseLayer::new("/events"));
    let mut waiting: Vec<_> = (0..3)
        .map(|_| tokio_test::task::spawn(sse.closed()))
        .collect();
    for closed in &mut waiting {
        assert!(closed.poll().is_pending());
    }
    drop(stream);
    for closed in &mut waiting {
        assert!(closed.is_woken());
        tokio_test::assert_ready_eq!(closed.poll(), CloseReason::ClientGone);
    }
    assert_eq!(block_on(sse.closed()), CloseReason::ClientGone);
}

#[test]
fn a_hook_added_after_the_end_runs_at_once() {
    let notes = Notes::default();
    let (sse, stream) = open(&SseLayer::new("/events"));
    sse.close();
    sse.on_close(notes.own());
    assert_eq!(notes.take(), [""; 0], "it is closing, not ended");
    drop(stream);
    assert_eq!(notes.take(), ["own: closed"]);
    sse.on_close(notes.own());
    assert_eq!(notes.take(), ["own: closed"]);
}

#[test]
fn hooks_run_between_deregistration_and_closed() {
    let layer = SseLayer::new("/events");
    let (keep, kept) = mpsc::channel();
    let connections = layer.registered().clone();
    let layer = layer.on_close(move |sse, reason| {
        assert!(connections.get(&sse.uuid()).is_none());
        keep.send((sse.clone(), reason)).unwrap();
    });
    let (sse, stream) = open(&layer);
    let mut closed = tokio_test::task::spawn(sse.closed());
    assert!(closed.poll().is_pending());
    drop(stream);
    assert_eq!(kept.recv().unwrap(), (sse.clone(), CloseReason::ClientGone));
    assert!(closed.is_woken());
}

#[test]
fn panicking_hook_does_not_affect_other_hooks() {
    let notes = Notes::default();
    let close = notes.clone();
    let layer = SseLayer::new("/events")
        .on_open(|_| panic!("in on_open"))
        .on_close(move |_, _| {
            close.add("close");
            panic!("in on_close")
        });
    let (sse, mut stream) = open(&layer);
    stream.skip_welcome();
    sse.on_close(|_| panic!("in the first hook"));
    sse.on_close(notes.own());
    sse.on_close(|_| panic!("in the last hook"));
    drop(stream);
    assert_eq!(notes.take(), ["own: client_gone", "close"]);
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(block_on(sse.closed()), CloseReason::ClientGone);
    sse.on_close(|_| panic!("after the end"));
}

#[test]
fn a_hook_that_panics_while_a_panic_unwinds_does_not_abort() {
    let notes = Notes::default();
    let hook = notes.own();
    let layer = SseLayer::new("/events");
    let call = call_sse(&layer, async move |sse| -> Answer<Text> {
        sse.on_close(|_| panic!("in the hook"));
        sse.on_close(hook);
        panic!("in the handler")
    });
    let caught = catch_unwind(AssertUnwindSafe(|| call.response()));
    assert!(caught.is_err());
    assert_eq!(notes.take(), ["own: failed"]);
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn on_open_runs_before_the_first_event_is_sent() {
    let layer = SseLayer::new("/events").on_open(|sse| {
        assert!(!sse.is_closed());
        sse.try_send(Event::message("from the hook")).unwrap();
        sse.close();
    });
    let (_sse, mut stream) = open(&layer);
    let (text, rest) = stream.rest();
    assert!(text.starts_with("event: welcome\n"), "{text}");
    assert!(text.ends_with("data: from the hook\n\n"), "{text}");
    rest.assert_ended();
}

#[test]
fn a_hook_may_use_the_connection_and_the_registry() {
    let layer = SseLayer::new("/events");
    let connections = layer.registered().clone();
    let notes = Notes::default();
    let (at_open, at_close) = (notes.clone(), notes.clone());
    let (open_registry, close_registry) = (connections.clone(), connections.clone());
    let layer = layer
        .on_open(move |sse| {
            assert_eq!(open_registry.get(&sse.uuid()).as_ref(), Some(sse));
            assert_eq!(open_registry.close_where(|_| false), 0);
            sse.clone().on_close(at_open.own());
        })
        .on_close(move |sse, reason| {
            assert_eq!(
                sse.try_send(Event::message("late")).is_err(),
                sse.is_closed()
            );
            sse.close();
            sse.fail("late");
            assert!(!sse.decline());
            assert!(sse.insert(7_u8).is_ok());
            assert_eq!(block_on(sse.closed()), reason);
            let nested = at_close.clone();
            sse.on_close(move |_| nested.add("nested"));
            // Other connections can be closed, and opened, from here.
            assert_eq!(close_registry.close_where(|_| true), close_registry.len());
            let _ = format!("{sse:?} {close_registry:?}");
            at_close.add("close");
        });
    let (_first, one) = open(&layer);
    let (_second, mut two) = open(&layer);
    drop(one);
    assert_eq!(notes.take(), ["own: client_gone", "nested", "close"]);
    let (_, rest) = two.rest();
    rest.assert_ended();
    assert_eq!(notes.take(), ["own: closed", "nested", "close"]);
    assert_eq!(connections.held(), 0);
}
