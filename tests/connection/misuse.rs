//! What should not be done has a defined effect: an error, or nothing. No panic, no hang.

use super::{paths, rules};
use rules::{Answer, Failure, Notes, Text, call, call_sse, forever, get, open, plain, sse_of};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    task::Poll,
    thread,
};
use support::Held;
use tokio_test::block_on;
use tower::{Layer, Service, service_fn};
use tower_sse::{
    CloseReason, Event, SseConnection, SseLayer,
    connection::{SendError, TrySendError},
    layer::{OutboxLimits, Welcome},
};

fn layer() -> SseLayer {
    paths::without_welcome(SseLayer::new("/events"))
}

/// Asserts that nothing can be done with this connection any more, and that all of it says so.
#[track_caller]
fn assert_closed(sse: &SseConnection, reason: CloseReason) {
    assert!(sse.is_closed());
    let error = block_on(sse.send(Event::message("a"))).unwrap_err();
    assert_eq!(error.reason(), Some(reason));
    assert_eq!(error.into_event().into_bytes(), "data: a\n\n");
    let Err(TrySendError::Refused(error)) = sse.try_send(Event::message("b")) else {
        panic!("it was sent");
    };
    assert_eq!(error.reason(), Some(reason));
    let Err(SendError::Closed(event, at_close)) = sse.close_with(Event::message("c")) else {
        panic!("it was sent");
    };
    assert_eq!(at_close, reason);
    assert_eq!(event.into_bytes(), "data: c\n\n");
    sse.close();
    sse.fail("late");
    assert!(!sse.decline() || reason == CloseReason::Declined);
    assert_eq!(block_on(sse.closed()), reason);
}

#[test]
fn closed_connection_refuses_sends_and_a_second_close() {
    let (sse, mut stream) = open(&layer());
    sse.close();
    sse.close();
    stream.rest().1.assert_ended();
    assert_closed(&sse, CloseReason::Closed);
}

#[test]
fn handle_kept_after_disconnect_reports_client_gone() {
    let layer = layer();
    let (sse, stream) = open(&layer);
    drop(stream);
    assert_closed(&sse, CloseReason::ClientGone);
    let clone = sse.clone();
    drop(sse);
    assert_closed(&clone, CloseReason::ClientGone);
    assert_eq!(layer.registered().held(), 0);
    assert!(layer.registered().get(&clone.uuid()).is_none());
}

#[test]
fn a_handle_outlives_its_layer_and_its_registry() {
    let layer = layer();
    let (sse, mut stream) = open(&layer);
    drop(layer);
    sse.try_send(Event::message("a")).unwrap();
    assert_eq!(stream.text(), "data: a\n\n");
    drop(stream);
    assert_closed(&sse, CloseReason::ClientGone);
}

/// Sends and closes when it is dropped, and notes what came of it.
struct SendsInDrop(SseConnection, Notes);

impl Drop for SendsInDrop {
    fn drop(&mut self) {
        let sent = self.0.try_send(Event::message("from the destructor"));
        self.1.add(if sent.is_ok() { "sent" } else { "not sent" });
        let was_closed = self.0.is_closed();
        self.0.close();
        self.1.add(if was_closed { "not closed" } else { "closed" });
    }
}

#[test]
fn send_from_drop_of_a_finished_handler_is_delivered() {
    let notes = Notes::default();
    for later in [false, true] {
        let noted = notes.clone();
        let mut stream = call_sse(&layer(), async move |sse| {
            let _sends = SendsInDrop(sse.clone(), noted);
            sse.start();
            if later {
                tokio::task::yield_now().await;
            }
            plain()
        })
        .stream();
        let (text, rest) = stream.rest();
        assert_eq!(text, "data: from the destructor\n\n");
        rest.assert_ended();
        assert_eq!(notes.take(), ["sent", "closed"]);
    }
}

#[test]
fn send_from_drop_of_a_dropped_handler_is_an_error() {
    let notes = Notes::default();
    let noted = notes.clone();
    let mut stream = call_sse(&layer(), async move |sse| {
        sse.start();
        let _sends = SendsInDrop(sse, noted);
        forever().await;
        plain()
    })
    .stream();
    stream.assert_waits();
    drop(stream);
    assert_eq!(notes.take(), ["not sent", "not closed"]);
}

#[test]
fn send_from_drop_of_a_panicking_handler_does_not_abort() {
    let notes = Notes::default();
    let noted = notes.clone();
    let layer = layer();
    let mut call = call_sse(&layer, async move |sse| -> Answer {
        let _sends = SendsInDrop(sse, noted);
        panic!("in the handler")
    });
    // Sent is started: the client gets it, and sees the stream break.
    let caught = catch_unwind(AssertUnwindSafe(|| call.poll().is_ready()));
    assert!(caught.is_ok_and(|is_ready| is_ready));
    assert_eq!(notes.take(), ["sent", "closed"]);
    drop(call);
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn drop_of_a_connection_value_may_use_the_registry() {
    struct Value(mpsc::Sender<usize>, tower_sse::Connections);

    impl Drop for Value {
        fn drop(&mut self) {
            let closed = self.1.close_where(|_| true);
            self.0.send(closed).unwrap();
        }
    }

    let layer = layer();
    let (told, tells) = mpsc::channel();
    let (sse, stream) = open(&layer);
    let value = Value(told, layer.registered().clone());
    assert!(sse.insert(value).is_ok());
    drop(sse);
    drop(stream);
    assert_eq!(tells.recv().unwrap(), 0, "and it does not hang");
}

#[test]
fn a_response_future_may_be_polled_after_it_was_ready() {
    let mut service = layer().layer(service_fn(async |_| plain()));
    let mut call = tokio_test::task::spawn(service.call(get("/events")));
    assert!(call.poll().is_ready());
    assert!(call.poll().is_pending());
}

#[test]
fn a_body_may_be_polled_after_its_end() {
    for fails in [false, true] {
        let (sse, mut stream) = open(&layer());
        if fails {
            sse.fail("broken");
            stream.rest().1.into_error();
        } else {
            sse.close();
        }
        for _ in 0..3 {
            assert!(matches!(stream.poll(), Poll::Ready(None)));
        }
    }
}

#[test]
fn a_send_may_be_polled_after_it_was_ready() {
    let (sse, mut stream) = open(&layer());
    let mut send = tokio_test::task::spawn(sse.send(Event::message("once")));
    assert!(send.poll().is_ready());
    assert!(send.poll().is_ready());
    assert_eq!(stream.rest().0, "data: once\n\n");
}

#[test]
fn panicking_welcome_function_closes_the_connection() {
    let notes = Notes::default();
    let layer = notes
        .on(SseLayer::new("/events"))
        .welcome(Welcome::new(|_| panic!("in the welcome")));
    let call = call_sse(&layer, async |sse| {
        sse.start();
        forever().await;
        plain()
    });
    assert!(catch_unwind(AssertUnwindSafe(|| call.response())).is_err());
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(notes.take(), ["open", "close: failed"]);
}

#[test]
fn panicking_predicate_closes_no_stream_and_holds_no_lock() {
    let layer = layer();
    let (sse, mut stream) = open(&layer);
    let connections = layer.registered().clone();
    let close = || connections.close_where(|_| panic!("in the predicate"));
    assert!(catch_unwind(AssertUnwindSafe(close)).is_err());
    assert!(!sse.is_closed());
    stream.assert_waits();
    drop(stream);
    assert_eq!(connections.held(), 0);
}

#[test]
fn handler_may_remove_the_connection_from_its_request() {
    let layer = layer();
    let mut stream = call(&layer, get("/events"), async |mut request| {
        let sse: SseConnection = request.extensions_mut().remove().unwrap();
        assert!(request.extensions().get::<SseConnection>().is_none());
        sse.send(Event::message("a")).await.map_err(|_| Failure)?;
        plain()
    })
    .stream();
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: a\n\n");
    rest.assert_ended();
}

#[test]
fn handler_awaiting_its_own_close_ends_with_the_stream() {
    let notes = Notes::default();
    let dropped = notes.on_drop("dropped");
    let (keep, kept) = mpsc::channel();
    let mut stream = call(&layer(), get("/events"), async move |request| {
        let _dropped = dropped;
        let sse = sse_of(&request);
        keep.send(sse.clone()).unwrap();
        sse.start();
        sse.closed().await;
        plain()
    })
    .stream();
    stream.assert_waits();
    kept.recv().unwrap().close();
    stream.rest().1.assert_ended();
    assert_eq!(notes.take(), ["dropped"]);
}

// ===== threads and runtimes =====

#[test]
fn handles_are_used_from_many_threads_at_once() {
    const THREADS: usize = 8;
    const EVENTS: usize = 500;
    let (sse, mut stream) = open(&layer());
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let sse = sse.clone();
            thread::spawn(move || {
                // Each with a runtime of its own.
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.build().unwrap();
                runtime.block_on(async {
                    for event in 0..EVENTS {
                        let event = Event::message(format!("{number} {event}"));
                        sse.send(event).await.unwrap();
                    }
                });
            })
        })
        .collect();
    drop(sse);

    let mut next = [0; THREADS];
    loop {
        match stream.poll() {
            Poll::Ready(Some(Ok(frame))) => {
                let frame = frame.into_data().unwrap();
                let text = std::str::from_utf8(&frame).unwrap();
                for event in text.split_terminator("\n\n") {
                    let numbers = event.strip_prefix("data: ").unwrap();
                    let (number, event) = numbers.split_once(' ').unwrap();
                    let number: usize = number.parse().unwrap();
                    assert_eq!(event, next[number].to_string(), "in order, of each sender");
                    next[number] += 1;
                }
            }
            Poll::Ready(None) => break,
            Poll::Ready(Some(Err(error))) => panic!("{error}"),
            Poll::Pending => thread::yield_now(),
        }
    }
    assert_eq!(next, [EVENTS; THREADS]);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn concurrent_closes_report_one_reason() {
    for _ in 0..200 {
        let notes = Notes::default();
        let layer = notes.on(layer());
        let (sse, stream) = open(&layer);
        sse.on_close(notes.own());
        let closers: [fn(&SseConnection); 3] = [
            SseConnection::close,
            |sse| sse.fail("broken"),
            |sse| drop(sse.close_with(Event::message("bye"))),
        ];
        thread::scope(|scope| {
            for close in closers {
                let sse = sse.clone();
                scope.spawn(move || close(&sse));
            }
        });
        drop(stream);
        let reason = block_on(sse.closed());
        assert!(matches!(reason, CloseReason::Closed | CloseReason::Failed));
        let reason = reason.as_str();
        let expected = [
            "open".into(),
            format!("own: {reason}"),
            format!("close: {reason}"),
        ];
        assert_eq!(notes.take(), expected);
        assert_eq!(layer.registered().held(), 0);
    }
}

#[test]
fn dropped_stream_wakes_all_waiting_senders() {
    let (sse, stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1)));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let sse = sse.clone();
            thread::spawn(move || {
                block_on(async {
                    loop {
                        if let Err(error) = sse.send(Event::message("a")).await {
                            return error.reason().expect("it is closed");
                        }
                    }
                })
            })
        })
        .collect();
    drop(stream);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), CloseReason::ClientGone);
    }
}

#[test]
fn bodies_and_handles_are_send() {
    fn moves<T: Send + Sync>() {}
    fn sends<T: Send>(_: &T) {}
    moves::<SseConnection>();
    moves::<tower_sse::Connections>();
    moves::<SseLayer>();
    moves::<Event>();
    let mut service = layer().layer(service_fn(async |_| {
        Ok::<_, Failure>(http::Response::new(Text::default()))
    }));
    let call = service.call(get("/events"));
    sends(&call);
    let response = block_on(call).unwrap();
    sends(&response);
    let (sse, _stream) = open(&layer());
    sends(&sse.send(Event::message("a")));
    sends(&sse.closed());
}
