//! `accept`: a function that answers in place of the inner service.

use super::rules;
use http::{Method, StatusCode};
use rules::{Call, Notes, Text, call, forever, get, plain};
use std::task::Poll;
use support::Held;
use tower_sse::{Event, SseLayer, layer::OutboxLimits};

/// Calls the layer around a service that must not be called.
fn call_accepting(layer: &SseLayer) -> Call {
    call(layer, get("/events/7"), async |_| -> rules::Answer<Text> {
        panic!("the inner service was called")
    })
}

#[test]
fn function_receives_the_connection_and_the_request_head() {
    let layer = SseLayer::new("/events/{n}").accept(async |sse, parts| {
        assert_eq!(sse.param("n"), Some("7"));
        assert_eq!(parts.uri, "/events/7");
        assert_eq!(parts.method, Method::GET);
        Ok(())
    });
    let (text, rest) = call_accepting(&layer).stream().rest();
    assert!(text.starts_with("event: welcome\n"), "{text}");
    rest.assert_ended();
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn ok_keeps_the_stream_open_while_a_handle_exists() {
    let (keep, kept) = std::sync::mpsc::sync_channel(1);
    let layer = SseLayer::new("/events/{n}").accept(move |sse, _| {
        keep.send(sse).unwrap();
        async { Ok(()) }
    });
    let mut stream = call_accepting(&layer).stream();
    stream.skip_welcome();
    stream.assert_waits();
    drop(kept.recv().unwrap());
    assert!(stream.is_woken());
    stream.rest().1.assert_ended();
}

#[test]
fn err_is_a_response_with_its_status() {
    for code in [204, 401, 404, 503] {
        let status = StatusCode::from_u16(code).unwrap();
        let notes = Notes::default();
        let hooks = notes.clone();
        let layer = notes
            .on(SseLayer::new("/events/{n}"))
            .accept(move |sse, _| {
                sse.on_close(hooks.own());
                async move { Err(status) }
            });
        let mut response = call_accepting(&layer).response();
        assert_eq!(response.status(), code);
        assert!(response.headers().is_empty());
        assert_eq!(response.body().size_hint().exact(), Some(0));
        assert!(response.body().is_end_stream());
        assert!(matches!(response.body_mut().poll(), Poll::Ready(None)));
        assert_eq!(notes.take(), ["own: declined"]);
        assert_eq!(layer.registered().held(), 0);
    }
}

#[test]
fn function_that_has_sent_continues_inside_the_body() {
    let notes = Notes::default();
    let noted = notes.clone();
    let layer = SseLayer::new("/events/{n}")
        .welcome(None)
        .outbox(OutboxLimits::new().events(1).bytes(1024))
        .accept(move |sse, _| {
            let noted = noted.clone();
            async move {
                for text in ["a", "b", "c"] {
                    let sent = sse.send(Event::message(text)).await;
                    sent.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
                    noted.add(text);
                }
                Ok(())
            }
        });
    let mut stream = call_accepting(&layer).stream();
    assert_eq!(notes.take(), ["a"]);
    assert_eq!(stream.text(), "data: a\n\n");
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: b\n\ndata: c\n\n");
    assert_eq!(notes.take(), ["b", "c"]);
    rest.assert_ended();
}

#[test]
fn err_after_start_aborts_the_stream() {
    let layer = SseLayer::new("/events/{n}").accept(async |sse, _| {
        let _ = sse.send(Event::message("sent")).await;
        Err(StatusCode::BAD_GATEWAY)
    });
    let (text, rest) = call_accepting(&layer).stream().rest();
    assert!(text.ends_with("data: sent\n\n"), "{text}");
    let error = rest.into_error().to_string();
    assert!(error.contains("502"), "{error}");
}

#[test]
fn the_function_is_dropped_with_the_body() {
    let notes = Notes::default();
    let noted = notes.clone();
    let layer = SseLayer::new("/events/{n}").accept(move |sse, _| {
        let dropped = noted.on_drop("dropped");
        async move {
            let _dropped = dropped;
            sse.start();
            forever().await;
            Ok(())
        }
    });
    let mut stream = call_accepting(&layer).stream();
    stream.rest();
    assert_eq!(notes.take(), [""; 0]);
    drop(stream);
    assert_eq!(notes.take(), ["dropped"]);
}

#[test]
fn ok_after_decline_is_a_204() {
    let layer = SseLayer::new("/events/{n}").accept(async |sse, _| {
        sse.decline();
        Ok(())
    });
    let response = call_accepting(&layer).response();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn unmatched_requests_reach_the_inner_service() {
    let layer = SseLayer::new("/events/{n}").accept(async |_, _| Err(StatusCode::GONE));
    let mut response = call(&layer, get("/elsewhere"), async |_| plain()).response();
    assert_eq!(response.status(), 200);
    assert_eq!(response.body_mut().text(), "the inner body");
}
