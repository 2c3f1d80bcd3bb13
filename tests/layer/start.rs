//! When a stream starts, and what HEAD gets.

use super::{paths, rules};
use http::{Method, Request, Response};
use rules::{
    Answer, Failure, Notes, Text, call, call_sse, forever, get, open, plain, sse_of, status,
};
use std::{collections::HashSet, task::Poll};
use support::Held;
use tokio::sync::oneshot;
use tower_sse::{Connections, Event, SseLayer};

#[test]
fn each_connection_has_a_random_uuid_of_its_own() {
    let layer = SseLayer::new("/events");
    let uuids: HashSet<_> = (0..100)
        .map(|_| {
            let (sse, _stream) = open(&layer);
            assert_eq!(sse.uuid().get_version_num(), 4);
            sse.uuid()
        })
        .collect();
    assert_eq!(uuids.len(), 100);
}

#[test]
fn matched_request_is_registered_before_the_handler_runs() {
    let connections = Connections::new();
    let layer = SseLayer::new("/events").registry(&connections);
    let seen = connections.clone();
    let call = call_sse(&layer, async move |sse| {
        assert_eq!(seen.held(), 1);
        assert_eq!(seen.get(&sse.uuid()), Some(sse));
        assert_eq!(seen.iter().count(), 0, "its stream has not started");
        status(404)
    });
    assert!(connections.held() > 0, "also before the handler was polled");
    call.response();
    assert_eq!(connections.held(), 0);
}

#[test]
fn stream_starts_when_the_inner_service_returns_200() {
    let layer = SseLayer::new("/events");
    let (answer, answered) = oneshot::channel();
    let (keep, kept) = std::sync::mpsc::channel();
    let mut call = call_sse(&layer, async move |sse| {
        keep.send(sse).unwrap();
        answered.await.map_err(|_| Failure)?;
        plain()
    });
    assert!(call.poll().is_pending());
    assert!(layer.registered().iter().next().is_none());

    answer.send(()).unwrap();
    assert!(call.is_woken());
    let mut stream = call.stream();
    assert_eq!(layer.registered().iter().count(), 1);
    stream.skip_welcome();
    stream.assert_waits();
    kept.recv()
        .unwrap()
        .try_send(Event::message("later"))
        .unwrap();
    assert!(stream.is_woken());
    assert_eq!(stream.text(), "data: later\n\n");
}

#[test]
fn the_stream_starts_at_the_first_event_sent() {
    let layer = SseLayer::new("/events");
    let mut stream = call_sse(&layer, async |sse| {
        sse.send(Event::message("first")).await.unwrap();
        forever().await;
        plain()
    })
    .stream();
    let (text, _) = stream.rest();
    assert!(text.starts_with("event: welcome\n"), "{text}");
    assert!(text.ends_with("\n\ndata: first\n\n"), "{text}");
}

#[test]
fn the_stream_starts_at_start() {
    let layer = SseLayer::new("/events");
    let mut stream = call_sse(&layer, async |sse| {
        sse.start();
        sse.start();
        forever().await;
        plain()
    })
    .stream();
    stream.skip_welcome();
    stream.assert_waits();
}

#[test]
fn send_from_another_task_starts_the_stream() {
    let layer = SseLayer::new("/events");
    for way in ["try_send", "start", "close_with"] {
        let (keep, kept) = std::sync::mpsc::channel();
        let mut call = call_sse(&layer, async move |sse| {
            keep.send(sse).unwrap();
            forever().await;
            plain()
        });
        assert!(call.poll().is_pending());
        assert!(!call.is_woken());
        let sse = kept.recv().unwrap();
        match way {
            "try_send" => sse.try_send(Event::message("from elsewhere")).unwrap(),
            "start" => sse.start(),
            _ => sse.close_with(Event::message("from elsewhere")).unwrap(),
        }
        assert!(call.is_woken(), "{way}");
        call.stream();
    }
}

#[test]
fn handler_continues_inside_the_body_after_start() {
    let layer = SseLayer::new("/events");
    let (go_on, told) = oneshot::channel();
    let notes = Notes::default();
    let noted = notes.clone();
    let mut stream = call_sse(&layer, async move |sse| {
        sse.send(Event::message("one")).await.unwrap();
        noted.add(told.await.unwrap_or("dropped"));
        sse.send(Event::message("two")).await.unwrap();
        noted.add("finished");
        plain()
    })
    .stream();
    stream.rest();
    assert_eq!(notes.take(), [""; 0]);

    go_on.send("went on").unwrap();
    assert!(stream.is_woken());
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: two\n\n");
    assert_eq!(notes.take(), ["went on", "finished"]);
    rest.assert_ended();
}

#[test]
fn inner_body_of_a_started_stream_is_dropped_unread() {
    let layer = SseLayer::new("/events");
    let (_sse, mut stream) = open(&layer);
    assert_eq!(stream.size_hint().exact(), None);
    assert!(!stream.is_end_stream());
    let (text, _) = stream.rest();
    assert!(!text.contains("inner"), "{text}");
}

#[test]
fn events_sent_in_a_single_poll_are_delivered() {
    let layer = paths::without_welcome(SseLayer::new("/events"));
    let mut stream = call_sse(&layer, async |sse| {
        for text in ["a", "b", "c"] {
            sse.try_send(Event::message(text)).unwrap();
        }
        plain()
    })
    .stream();
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: a\n\ndata: b\n\ndata: c\n\n");
    rest.assert_ended();
    assert!(stream.is_end_stream());
}

// ===== closed before the start =====

#[test]
fn a_200_after_close_is_a_stream_that_ends_at_once() {
    let layer = SseLayer::new("/events");
    let mut stream = call_sse(&layer, async |sse| {
        sse.close();
        plain()
    })
    .stream();
    stream.skip_welcome();
    stream.rest().1.assert_ended();
}

#[test]
fn other_status_after_close_passes_through() {
    let layer = SseLayer::new("/events");
    let notes = Notes::default();
    let hook = notes.own();
    let call = call_sse(&layer, async move |sse| {
        sse.on_close(hook);
        sse.close();
        assert!(!sse.decline(), "the first reason wins");
        status(204)
    });
    assert_eq!(call.response().status(), 204);
    assert_eq!(notes.take(), ["own: closed"]);
}

#[test]
fn close_where_does_not_turn_responses_into_streams() {
    let layer = SseLayer::new("/events");
    let connections = layer.registered().clone();
    let call = call_sse(&layer, async move |sse| {
        drop(sse);
        assert_eq!(connections.close_where(|_| true), 1);
        plain()
    });
    let mut response = call.response();
    assert!(!response.headers().contains_key("content-type"));
    assert_eq!(response.body_mut().text(), "the inner body");
}

#[test]
fn event_racing_the_response_is_sent_or_refused() {
    for _ in 0..500 {
        let layer = paths::without_welcome(SseLayer::new("/events"));
        let (keep, kept) = std::sync::mpsc::channel();
        let (answer, answered) = oneshot::channel();
        let mut call = call_sse(&layer, async move |sse| {
            keep.send(sse).unwrap();
            answered.await.map_err(|_| Failure)?;
            status(404)
        });
        assert!(call.poll().is_pending());
        let sse = kept.recv().unwrap();
        let sender = std::thread::spawn(move || {
            answer.send(()).unwrap();
            sse.try_send(Event::message("raced")).is_ok()
        });
        let mut response = loop {
            if let Poll::Ready(response) = call.poll() {
                break response.unwrap();
            }
            std::thread::yield_now();
        };
        let was_sent = sender.join().unwrap();
        assert_eq!(response.status() == 200, was_sent);
        let (text, rest) = response.body_mut().rest();
        if was_sent {
            assert_eq!(text, "data: raced\n\n");
            rest.into_error();
        } else {
            assert_eq!(text, "the inner body");
        }
        assert_eq!(layer.registered().held(), 0);
    }
}

// ===== head =====

fn head() -> Request<Text> {
    let mut request = get("/events");
    *request.method_mut() = Method::HEAD;
    request
}

#[track_caller]
fn assert_head_of_a_stream(layer: &SseLayer, notes: &Notes, response: Response<rules::Stream>) {
    let (parts, mut body) = response.into_parts();
    assert_eq!(parts.status, 200);
    assert_eq!(parts.headers["content-type"], "text/event-stream");
    assert_eq!(parts.headers["cache-control"], "no-store, no-transform");
    assert!(!parts.headers.contains_key("content-length"));

    assert_eq!(layer.registered().held(), 0, "nothing stays registered");
    assert_eq!(body.size_hint().exact(), None);
    assert!(!body.is_end_stream());
    assert!(matches!(body.poll(), Poll::Ready(None)));
    let notes = notes.take();
    assert!(
        !notes
            .iter()
            .any(|note| note == "open" || note.starts_with("close")),
        "{notes:?}"
    );
}

#[test]
fn head_request_gets_the_stream_head_for_a_200() {
    let notes = Notes::default();
    let layer = notes.on(SseLayer::new("/events"));
    let (keep, kept) = std::sync::mpsc::channel();
    let handler = async move |request| {
        keep.send(sse_of(&request)).unwrap();
        Ok(Response::builder()
            .header("content-length", "14")
            .header("x-own", "1")
            .body(Text::from("the inner body"))
            .unwrap())
    };
    let response = call(&layer, head(), handler).response();
    assert_eq!(response.headers()["x-own"], "1");
    assert_head_of_a_stream(&layer, &notes, response);
    let sse = kept.recv().unwrap();
    assert!(sse.is_closed());
    assert!(sse.try_send(Event::message("late")).is_err());
    assert_eq!(tokio_test::block_on(sse.closed()).as_str(), "closed");
}

#[test]
fn head_drops_the_handler_that_has_started_a_stream() {
    let notes = Notes::default();
    let layer = notes.on(SseLayer::new("/events"));
    let dropped = notes.on_drop("handler dropped");
    let response = call(&layer, head(), async move |request| {
        let _dropped = dropped;
        sse_of(&request).send(Event::message("one")).await.unwrap();
        forever().await;
        plain()
    })
    .response();
    assert_eq!(notes.take(), ["handler dropped"]);
    assert_head_of_a_stream(&layer, &notes, response);
}

#[test]
fn declined_head_request_passes_through() {
    let layer = SseLayer::new("/events");
    for code in [200, 401, 404] {
        let response = call(&layer, head(), async move |_| status(code)).response();
        assert_eq!(response.status(), code);
        assert!(!response.headers().contains_key("content-type"));
        assert_eq!(response.body().size_hint().exact(), Some(14));
    }
    assert_eq!(layer.registered().held(), 0);
}

// ===== readiness and completion =====

#[test]
fn poll_ready_forwards_to_the_inner_service() {
    use std::{cell::Cell, rc::Rc, task::Context};
    use tower::{Layer, Service};

    struct Gate(Rc<Cell<Poll<Result<(), Failure>>>>);

    impl Service<Request<Text>> for Gate {
        type Response = Response<Text>;
        type Error = Failure;
        type Future = std::future::Ready<Answer>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
            self.0.replace(Poll::Pending)
        }

        fn call(&mut self, _: Request<Text>) -> Self::Future {
            std::future::ready(plain())
        }
    }

    let gate = Rc::new(Cell::new(Poll::Pending));
    let mut service = SseLayer::new("/events").layer(Gate(Rc::clone(&gate)));
    let mut ready = |answer| {
        gate.set(answer);
        tokio_test::task::spawn(()).enter(|cx, _| service.poll_ready(cx))
    };
    assert!(ready(Poll::Pending).is_pending());
    assert_eq!(ready(Poll::Ready(Ok(()))), Poll::Ready(Ok(())));
    assert_eq!(ready(Poll::Ready(Err(Failure))), Poll::Ready(Err(Failure)));
}
