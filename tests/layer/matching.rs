//! Which requests are the layer's own: path, method and `Accept`.

use super::rules;
use http::{Method, Request, header::ACCEPT};
use rules::{Text, call, get, plain};
use std::{cell::RefCell, error::Error, rc::Rc};
use tower_sse::{SseConnection, SseLayer};

/// Calls the layer, and tells what the handler saw: the connection, if the request was its own.
fn seen<T: 'static>(
    layer: &SseLayer,
    request: Request<Text>,
    look: impl FnOnce(&SseConnection) -> T + 'static,
) -> Option<T> {
    let place = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&place);
    let call = call(layer, request, async move |request| {
        let connection = request.extensions().get::<SseConnection>();
        kept.replace(connection.map(look));
        plain()
    });
    assert_eq!(call.response().status(), 200);
    place.take()
}

fn is_ours(layer: &SseLayer, request: Request<Text>) -> bool {
    seen(layer, request, |_| ()).is_some()
}

fn param(layer: &SseLayer, path: &str, name: &'static str) -> Option<String> {
    let look = move |sse: &SseConnection| sse.param(name).map(str::to_owned);
    seen(layer, get(path), look).flatten()
}

fn with_accept(values: &[&str]) -> Request<Text> {
    let mut request = get("/events");
    for value in values {
        request.headers_mut().append(ACCEPT, value.parse().unwrap());
    }
    request
}

// ===== paths =====

#[test]
fn request_matches_by_path() {
    let layer = SseLayer::new("/events");
    assert!(is_ours(&layer, get("/events")));
    assert!(is_ours(&layer, get("/events?since=7")));
    assert!(is_ours(&layer, get("http://localhost/events")));

    for path in [
        "/",
        "/event",
        "/events/",
        "/events/7",
        "/EVENTS",
        "/a/events",
        "/%65vents",
    ] {
        assert!(!is_ours(&layer, get(path)), "{path}");
    }
}

#[test]
fn target_without_a_path_does_not_match() {
    let layer = SseLayer::new("/events");
    for target in ["*", "localhost:80"] {
        assert!(!is_ours(&layer, get(target)), "{target}");
    }
}

#[test]
fn a_pattern_captures_parameters() {
    let layer = SseLayer::new("/rooms/{room}/users/{user}");
    let path = "/rooms/blue/users/7?user=8";
    assert_eq!(param(&layer, path, "room").as_deref(), Some("blue"));
    assert_eq!(param(&layer, path, "user").as_deref(), Some("7"));
    assert_eq!(param(&layer, path, "{user}"), None);
    assert_eq!(param(&layer, path, ""), None);
    assert!(!is_ours(&layer, get("/rooms/blue/users/")));
}

#[test]
fn a_wildcard_captures_the_rest_of_the_path() {
    let layer = SseLayer::new("/files/{*rest}");
    let rest = param(&layer, "/files/a/b%2Fc/d", "rest");
    assert_eq!(rest.as_deref(), Some("a/b/c/d"));
}

#[test]
fn a_captured_parameter_is_percent_decoded() {
    let layer = SseLayer::new("/rooms/{room}");
    for (path, room) in [
        ("/rooms/a%20b", "a b"),
        ("/rooms/%e2%82%ac%C3%A9", "€é"),
        ("/rooms/a%2Fb", "a/b"),
        ("/rooms/a+b", "a+b"),
        ("/rooms/%00%0A", "\0\n"),
        ("/rooms/%252F", "%2F"),
    ] {
        assert_eq!(param(&layer, path, "room").as_deref(), Some(room), "{path}");
    }
}

#[test]
fn undecodable_parameter_is_kept_verbatim() {
    let layer = SseLayer::new("/rooms/{room}");
    for room in ["%ff", "a%C3", "%zz", "%", "%4", "100%"] {
        let path = format!("/rooms/{room}");
        assert_eq!(param(&layer, &path, "room").as_deref(), Some(room));
    }
}

#[test]
fn layer_matches_several_paths() {
    let layer = SseLayer::new("/events").path("/rooms/{room}").path("/news");
    assert!(is_ours(&layer, get("/events")));
    assert!(is_ours(&layer, get("/news")));
    assert_eq!(
        param(&layer, "/rooms/blue", "room").as_deref(),
        Some("blue")
    );
    assert_eq!(param(&layer, "/news", "room"), None);
    assert!(!is_ours(&layer, get("/")));
}

#[test]
fn any_path_matches_every_path() {
    let layer = SseLayer::any_path();
    for path in ["/", "/events", "/a/b/c", "*"] {
        assert!(is_ours(&layer, get(path)), "{path}");
    }
    let layer = layer.path("/events");
    assert!(is_ours(&layer, get("/elsewhere")));
}

#[test]
fn a_pattern_that_is_invalid_is_an_error_that_names_it() {
    for pattern in ["/{", "/{a}{b}", "/{*rest}/more", "/{}"] {
        let error = SseLayer::try_new(pattern).unwrap_err();
        assert!(error.to_string().contains(pattern), "{error}");
        assert!(error.source().is_some());
        assert!(SseLayer::any_path().try_path(pattern).is_err());
    }
}

#[test]
fn conflicting_pattern_is_an_error() {
    let layer = SseLayer::new("/rooms/{room}");
    assert!(layer.clone().try_path("/rooms/{name}").is_err());
    assert!(layer.try_path("/rooms/{room}/events").is_ok());
}

#[test]
#[should_panic(expected = "path pattern \"/{\" is invalid")]
fn the_constructor_panics_at_an_invalid_pattern() {
    let _ = SseLayer::new("/{");
}

// ===== methods =====

fn with_method(method: Method) -> Request<Text> {
    let mut request = get("/events");
    *request.method_mut() = method;
    request
}

#[test]
fn get_and_head_requests_match() {
    let layer = SseLayer::new("/events");
    assert!(is_ours(&layer, with_method(Method::GET)));
    assert!(is_ours(&layer, with_method(Method::HEAD)));
    for method in [Method::POST, Method::PUT, Method::OPTIONS, Method::DELETE] {
        assert!(!is_ours(&layer, with_method(method.clone())), "{method}");
    }
    let lower_case = Method::from_bytes(b"get").unwrap();
    assert!(!is_ours(&layer, with_method(lower_case)));
}

#[test]
fn methods_can_be_set_and_get_includes_head() {
    let query = Method::from_bytes(b"QUERY").unwrap();
    let layer = SseLayer::new("/events").methods([Method::POST, query.clone()]);
    assert!(is_ours(&layer, with_method(Method::POST)));
    assert!(is_ours(&layer, with_method(query)));
    assert!(!is_ours(&layer, with_method(Method::GET)));
    assert!(!is_ours(&layer, with_method(Method::HEAD)));

    let layer = layer.methods([Method::GET, Method::POST]);
    assert!(is_ours(&layer, with_method(Method::HEAD)));
}

// ===== accept =====

#[test]
fn missing_or_compatible_accept_matches() {
    let layer = SseLayer::new("/events");
    for accept in [
        &[][..],
        &[""],
        &["text/event-stream"],
        &["Text/Event-Stream"],
        &["text/*"],
        &["TEXT/*"],
        &["*/*"],
        &["text/html, application/xhtml+xml, */*;q=0.8"],
        &["text/html,text/event-stream"],
        &["text/event-stream;q=0.001"],
        &["text/event-stream ; q=1.0"],
        &["text/event-stream;charset=utf-8"],
        &["text/html", "text/event-stream"],
        &["text/html", "*/*"],
        // The most specific range counts, wherever it stands.
        &["text/event-stream, */*;q=0"],
        &["*/*;q=0, text/event-stream"],
        &["text/*;q=0, text/event-stream"],
        &["*/*;q=0", "text/*"],
    ] {
        assert!(is_ours(&layer, with_accept(accept)), "{accept:?}");
    }
}

#[test]
fn accept_excluding_event_streams_does_not_match() {
    let layer = SseLayer::new("/events");
    for accept in [
        &["text/html"][..],
        &["application/json"],
        &["text/html, application/json"],
        &["text/event-streams"],
        &["text/event"],
        &["image/*"],
        &["*/*;q=0"],
        &["*/*;q=0.000"],
        &["*/* ; Q=0"],
        &["text/event-stream;q=0"],
        &["text/event-stream;charset=utf-8;q=0"],
        &["text/event-stream;q=0, */*"],
        &["*/*, text/event-stream;q=0.0"],
        &["text/*;q=0, */*"],
        &["text/*", "text/event-stream;q=0"],
        &["nonsense"],
        &["*"],
    ] {
        assert!(!is_ours(&layer, with_accept(accept)), "{accept:?}");
    }
}

#[test]
fn accept_that_is_not_text_excludes_event_streams() {
    let mut request = get("/events");
    let value = http::HeaderValue::from_bytes(b"\xff\xfe").unwrap();
    request.headers_mut().insert(ACCEPT, value);
    assert!(!is_ours(&SseLayer::new("/events"), request));
}

#[test]
fn any_accept_ignores_the_accept_header() {
    let layer = SseLayer::new("/events").any_accept();
    for accept in ["application/json", "text/event-stream;q=0", ""] {
        assert!(is_ours(&layer, with_accept(&[accept])), "{accept:?}");
    }
    assert!(!is_ours(&layer, get("/elsewhere")));
}

// ===== what is kept of the request =====

fn place_of(values: &[&[u8]]) -> Option<String> {
    let mut request = get("/events");
    for value in values {
        let value = http::HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append("last-event-id", value);
    }
    let look = |sse: &SseConnection| sse.last_event_id().map(str::to_owned);
    seen(&SseLayer::new("/events"), request, look).expect("no error status, whatever the id")
}

#[test]
fn last_event_id_is_one_valid_header_or_absent() {
    assert_eq!(place_of(&[b"7"]).as_deref(), Some("7"));
    assert_eq!(place_of(&["café €".as_bytes()]).as_deref(), Some("café €"));
    let long = "x".repeat(8 * 1024);
    assert_eq!(place_of(&[long.as_bytes()]), Some(long));

    assert_eq!(place_of(&[]), None);
    assert_eq!(place_of(&[b""]), None);
    assert_eq!(place_of(&[b"7", b"8"]), None);
    assert_eq!(place_of(&[b"7", b"7"]), None);
    assert_eq!(place_of(&[b"caf\xe9"]), None);
    assert_eq!(place_of(&[b"\xff\xfe"]), None);
}

// ===== completions =====

#[test]
fn completions_match_post_with_any_accept() {
    let layer = SseLayer::completions("/v1/chat/completions");
    let request = |method: Method| {
        let request = Request::builder().method(method);
        let request = request.uri("/v1/chat/completions");
        let request = request.header(ACCEPT, "application/json");
        request.body(Text::default()).unwrap()
    };
    assert!(is_ours(&layer, request(Method::POST)));
    assert!(!is_ours(&layer, request(Method::GET)));
    assert!(!is_ours(&layer, request(Method::HEAD)));
    assert!(!is_ours(&layer, get("/v1/chat/completions")));
}
