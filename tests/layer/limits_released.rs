//! A connection's place is given back on whatever way it ends, and is given back once.

use super::{paths, rules};
use http::{Method, StatusCode};
use rules::{
    Answer, Call, Failure, Rest, Text, call, call_sse, forever, get, plain, sse_of, status,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};
use support::Held;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, service_fn};
use tower_sse::{
    Broker, CloseReason, Event, SseConnection, SseLayer,
    broker::{History, SlowConsumer},
    layer::Limits,
};

/// Admits one connection, by all bounds that there are.
fn layer() -> SseLayer {
    let layer = SseLayer::new("/events")
        .max_connections(1)
        .limits(Limits::new().connections_per(1, |_| Some("all")))
        .keep_alive(None);
    paths::without_welcome(layer)
}

/// A call whose handler limits a key of its own first.
fn limited(layer: &SseLayer, handler: impl AsyncFnOnce(SseConnection) -> Answer + 'static) -> Call {
    call_sse(layer, async move |sse| {
        sse.limit(&7, 1).unwrap();
        handler(sse).await
    })
}

/// A stream that has started, of a handler that has answered.
fn open(layer: &SseLayer) -> (SseConnection, rules::Stream) {
    let (keep, kept) = std::sync::mpsc::channel();
    let call = limited(layer, async move |sse| {
        keep.send(sse).unwrap();
        plain()
    });
    let mut stream = call.stream();
    stream.begin();
    (kept.recv().unwrap(), stream)
}

#[track_caller]
fn assert_full(layer: &SseLayer) {
    let mut refused = call(layer, get("/events"), async |_| -> Answer {
        unreachable!()
    })
    .stream();
    let (text, rest) = refused.rest();
    assert!(text.contains("full"), "{text}");
    rest.assert_ended();
}

/// There is room for one again, and for one only.
#[track_caller]
fn assert_released(layer: &SseLayer) {
    assert_eq!(layer.registered().held(), 0);
    for _ in 0..2 {
        let (sse, stream) = open(layer);
        assert_full(layer);
        assert!(!sse.is_closed());
        drop(stream);
    }
}

// ===== before the stream =====

#[test]
fn unpolled_response_future_releases_its_limits() {
    let layer = layer();
    drop(limited(&layer, async |_| plain()));
    assert_released(&layer);
}

#[test]
fn dropped_pending_response_future_releases_its_limits() {
    let layer = layer();
    let mut call = limited(&layer, async |_| {
        forever().await;
        plain()
    });
    assert!(call.poll().is_pending());
    assert_full(&layer);
    drop(call);
    assert_released(&layer);
}

#[test]
fn declining_handler_with_a_handle_releases_its_limits() {
    for code in [200, 204, 301, 304, 401, 404, 500] {
        let layer = layer();
        let response = limited(&layer, async move |sse| {
            sse.decline();
            std::mem::forget(sse);
            status(code)
        })
        .response();
        assert_eq!(response.status(), code);
        assert_released(&layer);
    }
}

#[test]
fn handler_error_before_start_releases_its_limits() {
    let layer = layer();
    let mut call = limited(&layer, async |_| Err(Failure));
    assert!(call.poll().is_ready());
    assert_released(&layer);
}

#[test]
fn handler_panic_before_start_releases_its_limits() {
    let layer = layer();
    let mut call = limited(&layer, async |_| panic!("before the stream"));
    let caught = catch_unwind(AssertUnwindSafe(|| call.poll().is_ready()));
    assert!(caught.is_err());
    // Whoever has caught it has the future still.
    assert_released(&layer);
    drop(call);
    assert_released(&layer);
}

#[test]
fn inner_service_panic_in_call_releases_its_limits() {
    let layer = layer();
    let mut service = layer.layer(service_fn(|request| -> std::future::Ready<Answer> {
        sse_of(&request).limit(&7, 1).unwrap();
        panic!("in call")
    }));
    let caught = catch_unwind(AssertUnwindSafe(|| service.call(get("/events"))));
    assert!(caught.is_err());
    assert_released(&layer);
}

#[test]
fn refusing_accept_function_releases_its_limits() {
    let layer = layer();
    let accept = layer.clone().accept(async |sse: SseConnection, _| {
        sse.limit(&7, 1).unwrap();
        Err(StatusCode::UNAUTHORIZED)
    });
    let response = call(&accept, get("/events"), async |_| -> Answer {
        unreachable!()
    })
    .response();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_released(&layer);
}

#[test]
fn head_request_releases_its_limits() {
    let layer = layer();
    let mut request = get("/events");
    *request.method_mut() = Method::HEAD;
    let response = call(&layer, request, async |request| {
        let sse = sse_of(&request);
        sse.limit(&7, 1).unwrap();
        sse.start();
        forever().await;
        plain()
    })
    .response();
    assert_eq!(response.status(), 200);
    assert_released(&layer);
}

#[test]
fn connection_refused_by_a_later_limit_releases_the_others() {
    let layer = layer();
    let response = limited(&layer, async |sse| {
        sse.limit(&"none of this", 0).unwrap_err();
        plain()
    })
    .response();
    assert_eq!(response.status(), 200);
    assert_released(&layer);
}

// ===== after the start =====

#[test]
fn body_dropped_after_any_poll_releases_its_limits() {
    for fails in [false, true] {
        for polls in 0.. {
            let layer = layer();
            let mut stream = limited(&layer, async move |sse| {
                let large = "x".repeat(20_000);
                for _ in 0..6 {
                    sse.send(Event::message(&large)).await.unwrap();
                    tokio::task::yield_now().await;
                }
                if fails { status(500) } else { plain() }
            })
            .stream();
            for _ in 0..polls {
                let _ = stream.poll();
            }
            let has_ended = stream.is_end_stream();
            if has_ended {
                // The server has the body still.
                assert_released(&layer);
            } else {
                assert_full(&layer);
            }
            drop(stream);
            assert_released(&layer);
            if has_ended {
                assert!(polls > 4, "{polls} polls are few");
                break;
            }
        }
    }
}

#[test]
fn ended_stream_releases_its_limits() {
    let ends: [fn(SseConnection); 4] = [
        |sse| sse.close(),
        |sse| sse.fail("broken"),
        |sse| sse.close_with(Event::message("bye")).unwrap(),
        |_| {},
    ];
    for end in ends {
        let layer = layer();
        let (sse, mut stream) = open(&layer);
        sse.try_send(Event::message("queued")).unwrap();
        end(sse);
        assert_full(&layer);
        let (_, rest) = stream.rest();
        assert!(!matches!(rest, Rest::Waits));
        assert_released(&layer);
    }
}

#[test]
fn handler_panic_inside_the_body_releases_its_limits() {
    let layer = layer();
    let mut stream = limited(&layer, async |sse| -> Answer<Text> {
        sse.start();
        tokio::task::yield_now().await;
        panic!("in the body")
    })
    .stream();
    stream.rest().1.into_error();
    assert_released(&layer);
}

#[test]
fn panicking_hooks_do_not_keep_limits() {
    let layer = layer()
        .on_open(|_| panic!("in on_open"))
        .on_close(|_, _| panic!("in on_close"));
    let (sse, stream) = open(&layer);
    sse.on_close(|_| panic!("in a hook of its own"));
    drop(stream);
    assert_released(&layer);
}

#[test]
fn limits_are_released_before_hooks_run() {
    let layer = layer();
    let (sse, stream) = open(&layer);
    let (tell, told) = std::sync::mpsc::channel();
    sse.on_close(move |_| {
        assert_released(&layer);
        tell.send(()).unwrap();
    });
    drop(stream);
    told.try_recv().expect("the hook has run to its end");
}

// ===== by time =====

/// Waits until the connection has ended without anybody polling its body.
async fn ended(layer: &SseLayer, sse: &SseConnection) -> CloseReason {
    let began = Instant::now();
    while layer.registered().held() > 0 {
        assert!(
            began.elapsed() < Duration::from_secs(600),
            "{sse:?} is there still"
        );
        sleep(Duration::from_millis(50)).await;
    }
    sse.closed().await
}

#[tokio::test(start_paused = true)]
async fn stalled_stream_releases_its_limits() {
    let layer = layer();
    let (sse, _stream) = open(&layer);
    sse.try_send(Event::message("never taken")).unwrap();
    assert_eq!(ended(&layer, &sse).await, CloseReason::SlowConsumer);
    assert_released(&layer);
}

#[tokio::test(start_paused = true)]
async fn slow_subscriber_releases_its_limits() {
    let layer = layer().stall_timeout(None);
    let history = History::default().events(2);
    let builder = Broker::builder().history(history);
    let broker = builder.slow_consumer(SlowConsumer::Disconnect).in_memory();
    let (sse, _stream) = open(&layer);
    broker.subscribe(&sse, "a").await.unwrap().start();
    for _ in 0..5 {
        broker.publish("a", Event::message("x")).await.unwrap();
    }
    assert_eq!(ended(&layer, &sse).await, CloseReason::SlowConsumer);
    assert_eq!(broker.subscriber_count("a").unwrap(), 0);
    assert_released(&layer);
}

#[tokio::test(start_paused = true)]
async fn unread_stream_past_its_lifetime_releases_its_limits() {
    let layer = layer();
    let (sse, _stream) = open(&layer);
    sse.try_send(Event::message("never taken")).unwrap();
    sse.close_at(Instant::now());
    assert_eq!(ended(&layer, &sse).await, CloseReason::Lifetime);
    assert_released(&layer);
}

#[tokio::test(start_paused = true)]
async fn unread_closed_stream_releases_its_limits() {
    let layer = layer().stall_timeout(None);
    let (sse, _stream) = open(&layer);
    sse.try_send(Event::message("never taken")).unwrap();
    layer.registered().close_where(|_| true);
    assert_eq!(ended(&layer, &sse).await, CloseReason::Closed);
    assert_released(&layer);
}

#[tokio::test(start_paused = true)]
async fn drained_stream_is_deregistered() {
    let layer = layer();
    let (sse, _stream) = open(&layer);
    let drained = layer.registered().drain().await;
    assert_eq!((drained.ended, drained.aborted), (0, 1));
    assert_eq!(sse.closed().await, CloseReason::Drained);
    assert_eq!(layer.registered().held(), 0);
}
