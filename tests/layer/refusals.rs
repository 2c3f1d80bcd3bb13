//! The answers to requests that get no stream: there are too many, or the registry drains.

use super::rules;
use http::{HeaderMap, Method, Request, Version, header};
use rules::{Answer, Text, call, get, open, plain, sse_of};
use std::{collections::HashSet, time::Duration};
use support::Held;
use tower_sse::{
    CloseReason, Connections, SseLayer,
    connection::Refusal,
    event::{Decoded, Decoder, EventType, MessageEvent},
    layer::Limits,
};

/// A layer without room.
fn full() -> SseLayer {
    SseLayer::new("/events")
        .methods([Method::GET, Method::POST])
        .max_connections(0)
}

/// A layer whose registry drains.
fn draining() -> SseLayer {
    let connections = Connections::new();
    let drain = connections.drain();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(drain.into_future());
    let layer = SseLayer::new("/events").registry(&connections);
    layer.methods([Method::GET, Method::POST])
}

fn of(method: Method) -> Request<Text> {
    let mut request = get("/events");
    *request.method_mut() = method;
    request
}

/// A refusal, all of it.
struct Refused {
    status: u16,
    headers: HeaderMap,
    exact_size: Option<u64>,
    text: String,
    events: Vec<MessageEvent>,
    retries: Vec<Duration>,
}

/// Asks a layer that refuses, and sees that nobody is called and nothing registered.
#[track_caller]
fn ask(layer: &SseLayer, request: Request<Text>) -> Refused {
    let before = layer.registered().stats();
    let handler = async |_| -> Answer { panic!("the inner service is called") };
    let (head, mut body) = call(layer, request, handler).response().into_parts();
    let after = layer.registered().stats();
    assert_eq!(layer.registered().held(), 0);
    assert_eq!(after.refused, before.refused + 1);
    assert_eq!((after.opened, after.closed(CloseReason::Refused)), (0, 0));

    let exact_size = body.size_hint().exact();
    let (text, rest) = body.rest();
    rest.assert_ended();
    let mut decoder = Decoder::new();
    decoder.feed(text.as_bytes()).unwrap();
    let (mut events, mut retries) = (Vec::new(), Vec::new());
    for decoded in &mut decoder {
        match decoded {
            Decoded::Event(event) => events.push(event),
            Decoded::Retry(time) => retries.push(time),
            _ => {}
        }
    }
    Refused {
        status: head.status.as_u16(),
        headers: head.headers,
        exact_size,
        text,
        events,
        retries,
    }
}

impl Refused {
    /// An event stream that ends at once, and says why and when to come back.
    #[track_caller]
    fn assert_later(&self, reason: &str) {
        assert_eq!(self.status, 200);
        assert_eq!(self.headers[header::CONTENT_TYPE], "text/event-stream");
        assert_eq!(
            self.headers[header::CACHE_CONTROL],
            "no-store, no-transform"
        );
        assert_eq!(self.retries.len(), 1);
        let [event] = &self.events[..] else {
            panic!("{}", self.text);
        };
        assert_eq!(event.event_type, "reconnect");
        assert_eq!(event.data, format!(r#"{{"reason":"{reason}"}}"#));
        assert_eq!(event.last_event_id, "", "the client keeps its place");
        assert!(!self.text.contains("\nid:"), "{}", self.text);
    }

    #[track_caller]
    fn assert_unavailable(&self, text: &str) {
        assert_eq!(self.status, 503);
        let content_type = &self.headers[header::CONTENT_TYPE];
        assert_eq!(content_type, "text/plain; charset=utf-8");
        assert_eq!(self.headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(self.text, format!("{text}\n"));
        let seconds: u64 = self.headers[header::RETRY_AFTER]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((5..=15).contains(&seconds), "{seconds}");
    }
}

const FULL: &str = "too many event streams";
const STOPS: &str = "server is shutting down";

#[test]
fn get_gets_a_retry_event_and_other_methods_a_503() {
    ask(&full(), of(Method::GET)).assert_later("full");
    ask(&full(), of(Method::POST)).assert_unavailable(FULL);
    ask(&draining(), of(Method::GET)).assert_later("draining");
    ask(&draining(), of(Method::POST)).assert_unavailable(STOPS);
    let keyed = SseLayer::new("/events").limits(Limits::new().connections_per(0, |_| Some(())));
    ask(&keyed, of(Method::GET)).assert_later("key_full");
}

#[test]
fn refused_head_request_gets_the_head_of_get() {
    for layer in [
        full(),
        full().limits(Limits::new().refusal(Refusal::Unavailable)),
    ] {
        let of_get = ask(&layer, of(Method::GET));
        let mut of_head = ask(&layer, of(Method::HEAD));
        assert_eq!((&*of_head.text, of_head.exact_size), ("", None));
        assert_eq!(of_head.status, of_get.status);
        if let Some(time) = of_get.headers.get(header::RETRY_AFTER) {
            of_head.headers.insert(header::RETRY_AFTER, time.clone());
        }
        assert_eq!(of_head.headers, of_get.headers);
    }
}

#[test]
fn refusal_kind_can_be_set_for_all_methods() {
    let later = full().limits(Limits::new().refusal(Refusal::RetryLater));
    let unavailable = full().limits(Limits::new().refusal(Refusal::Unavailable));
    for method in [Method::GET, Method::POST] {
        ask(&later, of(method.clone())).assert_later("full");
        ask(&unavailable, of(method)).assert_unavailable(FULL);
    }
}

#[test]
fn refused_completion_is_a_503() {
    let layer = SseLayer::completions("/events").max_connections(0);
    ask(&layer, of(Method::POST)).assert_unavailable(FULL);
}

#[test]
fn refusal_event_uses_the_configured_name() {
    let layer = full().reconnect_event(EventType::from_static("busy"));
    let refused = ask(&layer, of(Method::GET));
    assert_eq!(refused.events[0].event_type, "busy");
    assert_eq!(refused.retries.len(), 1);

    let refused = ask(&full().reconnect_event(None), of(Method::GET));
    assert_eq!(refused.events, []);
    assert_eq!(refused.retries.len(), 1, "the time comes all the same");
}

#[test]
fn retry_delays_are_drawn_from_their_range() {
    for (bounds, layer) in [
        ((5_000, 15_000), full()),
        (
            (100, 1_100),
            full().limits(
                Limits::new()
                    .refusal_retry(Duration::from_millis(100)..=Duration::from_millis(1_100)),
            ),
        ),
    ] {
        let times: HashSet<_> = (0..200)
            .map(|_| ask(&layer, of(Method::GET)).retries[0].as_millis())
            .collect();
        assert!(
            times
                .iter()
                .all(|time| (bounds.0..=bounds.1).contains(time)),
            "{times:?}"
        );
        assert!(times.len() > 50, "{} different times", times.len());
    }
    // Whole seconds, and never less than was meant.
    let time = Duration::from_millis(1_001);
    let refused = ask(
        &full().limits(Limits::new().refusal_retry(time..=time)),
        of(Method::POST),
    );
    assert_eq!(refused.headers[header::RETRY_AFTER], "2");
    let time = Duration::from_secs(3);
    let refused = ask(
        &full().limits(Limits::new().refusal_retry(time..=time)),
        of(Method::POST),
    );
    assert_eq!(refused.headers[header::RETRY_AFTER], "3");
}

#[test]
fn drain_refusal_closes_only_http1_connections() {
    for (version, closes) in [
        (Version::HTTP_10, true),
        (Version::HTTP_11, true),
        (Version::HTTP_2, false),
        (Version::HTTP_3, false),
    ] {
        for method in [Method::GET, Method::HEAD, Method::POST] {
            let with_version = || {
                let mut request = of(method.clone());
                *request.version_mut() = version;
                request
            };
            let refused = ask(&draining(), with_version());
            let connection = refused.headers.get(header::CONNECTION);
            assert_eq!(
                connection.map(|it| it.as_bytes()),
                closes.then_some(&b"close"[..])
            );
            let refused = ask(&full(), with_version());
            assert!(!refused.headers.contains_key(header::CONNECTION));
        }
    }
}

#[test]
fn accept_function_is_not_called_when_refused() {
    let layer = full().accept(async |_, _| panic!("it is called"));
    ask(&layer, of(Method::GET)).assert_later("full");
}

#[test]
fn unmatched_requests_pass_through() {
    for layer in [full(), draining()] {
        for request in [get("/other"), of(Method::PUT)] {
            let mut body = call(&layer, request, async |_| plain())
                .response()
                .into_body();
            assert_eq!(body.rest().0, "the inner body");
        }
        assert_eq!(layer.registered().stats().refused, 0);
    }
}

#[test]
fn limit_refused_in_a_handler_overrides_its_response() {
    for (method, code) in [(Method::GET, 200), (Method::POST, 503)] {
        for handler_answers in [200, 403, 500] {
            let layer = SseLayer::new("/events").methods([Method::GET, Method::POST]);
            let (sse, _stream) = open(&layer);
            sse.limit(&7, 1).unwrap();
            let response = call(&layer, of(method.clone()), async move |request| {
                let sse = sse_of(&request);
                sse.limit(&7, 1).unwrap_err();
                assert!(sse.is_closed());
                assert_eq!(sse.closed().await, CloseReason::Refused);
                rules::status(handler_answers)
            })
            .response();
            assert_eq!(response.status(), code);
            assert_eq!(
                response.headers().contains_key(header::RETRY_AFTER),
                code == 503
            );
            let (text, rest) = response.into_body().rest();
            rest.assert_ended();
            let expected = if code == 200 {
                "key_full"
            } else {
                "of the same kind"
            };
            assert!(text.contains(expected), "{text}");
            assert_eq!(layer.registered().len(), 1);
            assert_eq!(layer.registered().stats().refused, 1);
        }
    }
}

#[test]
fn refusal_body_ends_after_its_frame() {
    let mut body = call(&full(), of(Method::GET), async |_| plain()).stream();
    assert!(!body.is_end_stream());
    body.frame();
    assert!(body.is_end_stream());
}
