//! The head of a stream, and its first event.

use super::rules;
use http::{HeaderMap, Response, Version};
use rules::{Text, call, forever, get, open, plain, sse_of};
use std::time::Duration;
use tower_sse::{Event, SseLayer, layer::Welcome};

fn answer_with(headers: &[(&'static str, &'static str)]) -> Response<rules::Stream> {
    let mut response = Response::new(Text::from("the inner body"));
    for (name, value) in headers {
        let value = value.parse().unwrap();
        response.headers_mut().append(*name, value);
    }
    let layer = SseLayer::new("/events").hold_open(true);
    call(&layer, get("/events"), async move |_| Ok(response)).response()
}

fn sorted(headers: &HeaderMap) -> Vec<(&str, &str)> {
    let headers = headers.iter();
    let headers = headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
    let mut headers: Vec<_> = headers.collect();
    headers.sort_unstable();
    headers
}

const OURS: [(&str, &str); 3] = [
    ("cache-control", "no-store, no-transform"),
    ("content-type", "text/event-stream"),
    ("x-accel-buffering", "no"),
];

#[test]
fn the_head_is_200_with_three_headers() {
    let response = answer_with(&[]);
    assert_eq!(response.status(), 200);
    assert_eq!(sorted(response.headers()), OURS);

    let layer = SseLayer::new("/events");
    let response = call(&layer, get("/events"), async |request| {
        sse_of(&request).start();
        forever().await;
        plain()
    });
    let response = response.response();
    assert_eq!(response.status(), 200);
    assert_eq!(sorted(response.headers()), OURS);
}

#[test]
fn headers_of_the_inner_response_are_kept() {
    let own = [
        ("access-control-allow-origin", "*"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("vary", "cookie"),
        ("x-request-id", "7"),
    ];
    let response = answer_with(&own);
    let mut expected: Vec<_> = own.into_iter().chain(OURS).collect();
    expected.sort_unstable();
    assert_eq!(sorted(response.headers()), expected);
}

#[test]
fn headers_about_the_inner_body_are_removed() {
    let response = answer_with(&[
        ("content-length", "14"),
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-13/14"),
        ("content-type", "application/json"),
        ("transfer-encoding", "chunked"),
        ("etag", "\"1\""),
        ("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("accept-ranges", "bytes"),
        ("digest", "sha-256=x"),
        ("content-digest", "sha-256=:x:"),
        ("repr-digest", "sha-256=:x:"),
        ("content-md5", "x"),
        ("cache-control", "max-age=60"),
        ("cache-control", "public"),
        ("x-accel-buffering", "yes"),
    ]);
    assert_eq!(sorted(response.headers()), OURS);
}

#[test]
fn connection_headers_illegal_in_http2_are_removed() {
    let response = answer_with(&[("connection", "keep-alive"), ("keep-alive", "timeout=5")]);
    assert_eq!(sorted(response.headers()), OURS);
}

/// Over HTTP/1.0 a server could end a stream only by closing its connection: nobody could tell a broken
/// one from a finished one.
#[test]
fn inner_extensions_are_kept_but_not_the_version() {
    let layer = SseLayer::new("/events").hold_open(true);
    let response = Response::builder()
        .version(Version::HTTP_10)
        .extension("an extension")
        .body(Text::default())
        .unwrap();
    let response = call(&layer, get("/events"), async move |_| Ok(response)).response();
    assert_eq!(response.version(), Version::HTTP_11);
    assert_eq!(response.extensions().get(), Some(&"an extension"));
}

// ===== the welcome =====

fn first_frame(layer: &SseLayer) -> (String, String) {
    let (sse, mut stream) = open(layer);
    let text = stream.text();
    stream.assert_waits();
    (text, sse.uuid().to_string())
}

#[test]
fn first_event_is_a_welcome_with_uuid_and_retry() {
    let (text, uuid) = first_frame(&SseLayer::new("/events"));
    let welcome = format!("event: welcome\ndata: {{\"uuid\":\"{uuid}\"}}\nretry: 3000\n\n");
    assert_eq!(text, welcome);
}

#[test]
fn welcome_precedes_the_event_that_starts_the_stream() {
    let layer = SseLayer::new("/events").welcome(Welcome::new(|_| Event::message("welcome")));
    let mut stream = call(&layer, get("/events"), async |request| {
        sse_of(&request).try_send(Event::message("sent")).unwrap();
        plain()
    })
    .stream();
    let (text, _) = stream.rest();
    assert_eq!(text, "data: welcome\nretry: 3000\n\ndata: sent\n\n");
}

#[test]
fn retry_of_the_welcome_can_be_set_or_omitted() {
    let layer = SseLayer::new("/events").welcome(Welcome::new(|_| Event::message("hi")));
    for (time, expected) in [
        (Duration::from_millis(1500), "data: hi\nretry: 1500\n\n"),
        (Duration::from_micros(1999), "data: hi\nretry: 1\n\n"),
        (Duration::ZERO, "data: hi\nretry: 0\n\n"),
        // JavaScript timers hold 31 bits.
        (Duration::MAX, "data: hi\nretry: 2147483647\n\n"),
    ] {
        assert_eq!(first_frame(&layer.clone().retry(time)).0, expected);
    }
    let without = first_frame(&layer.retry(None)).0;
    assert_eq!(without, "data: hi\n\n");
}

#[test]
fn the_welcome_can_be_made_by_a_function() {
    let layer = SseLayer::new("/events").welcome(Welcome::new(|sse| {
        let event = Event::new("hello", sse.uuid().to_string()).unwrap();
        event.id("0").unwrap()
    }));
    let (text, uuid) = first_frame(&layer);
    let expected = format!("event: hello\ndata: {uuid}\nid: 0\nretry: 3000\n\n");
    assert_eq!(text, expected);
}

#[test]
fn welcome_with_its_own_retry_keeps_it() {
    let layer = SseLayer::new("/events").welcome(Welcome::new(|_| {
        Event::message("hi").retry(Duration::from_secs(60))
    }));
    assert_eq!(first_frame(&layer).0, "data: hi\nretry: 60000\n\n");
}

#[test]
fn comment_welcome_gets_no_retry() {
    // Some clients would make an empty event of a `retry` that comes alone.
    let layer = SseLayer::new("/events").welcome(Welcome::new(|_| Event::comment("hi")));
    assert_eq!(first_frame(&layer).0, ": hi\n");
}

#[test]
fn event_sent_by_the_welcome_function_follows_the_welcome() {
    let layer = SseLayer::new("/events")
        .retry(None)
        .welcome(Welcome::new(|sse| {
            sse.try_send(Event::message("second")).unwrap();
            Event::message("first")
        }));
    let (_sse, mut stream) = open(&layer);
    assert_eq!(stream.rest().0, "data: first\n\ndata: second\n\n");
}

#[test]
fn without_welcome_the_first_event_is_the_first_frame() {
    let layer = SseLayer::new("/events").welcome(None);
    let (sse, mut stream) = open(&layer);
    stream.assert_waits();
    sse.try_send(Event::message("first")).unwrap();
    assert_eq!(stream.text(), "data: first\n\n");
}

#[test]
fn completions_send_only_events_of_the_handler() {
    let layer = SseLayer::completions("/v1/chat/completions");
    let mut request = get("/v1/chat/completions");
    *request.method_mut() = http::Method::POST;
    let accept = "application/json".parse().unwrap();
    request.headers_mut().insert("accept", accept);
    let mut stream = call(&layer, request, async |request| {
        let sse = sse_of(&request);
        sse.try_send(Event::message(r#"{"delta":"Hi"}"#)).unwrap();
        sse.try_send(Event::message("[DONE]")).unwrap();
        plain()
    })
    .stream();
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: {\"delta\":\"Hi\"}\n\ndata: [DONE]\n\n");
    rest.assert_ended();
}

#[test]
fn completion_without_a_stream_is_a_plain_response() {
    let layer = SseLayer::completions("/v1/chat/completions");
    let mut request = get("/v1/chat/completions");
    *request.method_mut() = http::Method::POST;
    let mut response = call(&layer, request, async |_| plain()).response();
    assert!(!response.headers().contains_key("content-type"));
    assert_eq!(response.body_mut().text(), "the inner body");
}
