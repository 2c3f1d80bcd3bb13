//! Asks layers with guards, without a socket.

use crate::Held;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, HOST, ORIGIN},
};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio_test::block_on;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::SseLayer;

pub type Text = Full<Bytes>;

pub const NOT_LISTED: &str = "is not in the server's";
pub const INVALID: &str = "or an invalid";

/// What came of a request: what the client got, and whether the inner service was called.
pub struct Outcome {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub exact_size: Option<u64>,
    pub text: String,
    pub calls: usize,
}

pub fn ask(layer: &SseLayer, request: Request<Text>) -> Outcome {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let service = layer.layer(service_fn(move |_| {
        counter.fetch_add(1, Relaxed);
        async { Ok::<_, Infallible>(Response::new(Text::from("inner"))) }
    }));
    let (head, body) = block_on(service.oneshot(request)).unwrap().into_parts();
    // The body is still there: what it held would be registered.
    assert_eq!(layer.registered().held(), 0);
    let exact_size = body.size_hint().exact();
    let bytes = block_on(body.collect()).unwrap().to_bytes();
    Outcome {
        status: head.status,
        headers: head.headers,
        exact_size,
        text: String::from_utf8(bytes.into()).unwrap(),
        calls: calls.load(Relaxed),
    }
}

impl Outcome {
    #[track_caller]
    pub fn assert_admitted(&self, what: &str) {
        assert_eq!(self.status, StatusCode::OK, "{what}: {}", self.text);
        assert_eq!(self.text, "inner", "{what}");
        assert_eq!(self.calls, 1, "{what}");
    }

    #[track_caller]
    pub fn assert_refused(&self, why: &str, what: &str) {
        assert_eq!(self.status, StatusCode::FORBIDDEN, "{what}");
        assert_eq!(self.headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(self.headers.len(), 1, "{what}");
        assert!(self.text.contains(why), "{what}: {}", self.text);
        assert_eq!(self.exact_size, Some(self.text.len() as u64), "{what}");
        assert_eq!(self.calls, 0, "{what}");
    }
}

pub fn with(headers: &[(HeaderName, &[u8])]) -> Request<Text> {
    to("/events", headers)
}

pub fn to(uri: &str, headers: &[(HeaderName, &[u8])]) -> Request<Text> {
    let mut request = Request::get(uri).body(Text::default()).unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append(name, value);
    }
    request
}

pub fn from_origin(origin: &str) -> Request<Text> {
    with(&[(ORIGIN, origin.as_bytes())])
}

pub fn for_host(host: &str) -> Request<Text> {
    with(&[(HOST, host.as_bytes())])
}

pub fn origins() -> SseLayer {
    SseLayer::new("/events").allowed_origins([
        "https://example.com",
        "http://localhost:3000",
        "http://[0:0::1]:8080",
        "HTTPS://Dotted.Example.:8443",
        "http://plain.example:80",
        "tauri://localhost",
        "chrome-extension://abcdefghijklmnop",
    ])
}

pub fn hosts() -> SseLayer {
    SseLayer::new("/events").allowed_hosts([
        "Example.com.",
        "localhost:8080",
        "127.0.0.1",
        "[::1]:8080",
        "[2001:DB8::1]",
        "secure.example:443",
        "plain.example:80",
    ])
}
