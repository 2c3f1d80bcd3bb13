//! Guards: what becomes of what they refuse, and what is none of their business. Which origins and
//! hosts are admitted stands in `guards_matrix.rs`.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use support::Held;
use support::guarded;

use guarded::{NOT_LISTED, Text, ask, for_host, from_origin, hosts, origins, to, with};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN},
};
use support::{
    client::Client,
    server::{Hyper, Server},
};
use tower::{Layer, service_fn};
use tower_sse::{Event, SseConnection, SseLayer, layer::GuardError};

#[test]
fn unset_list_admits_all_and_empty_list_no_origin_or_host() {
    let both = [
        (HOST, &b"a@b"[..]),
        (ORIGIN, b"null"),
        (ORIGIN, b"https://a.test"),
    ];
    ask(&SseLayer::new("/events"), with(&both)).assert_admitted("off");

    let none: [&str; 0] = [];
    let origins = SseLayer::new("/events").allowed_origins(none);
    ask(&origins, with(&[])).assert_admitted("no origin");
    ask(&origins, from_origin("https://a.test")).assert_refused(NOT_LISTED, "an origin");
    let hosts = SseLayer::new("/events").allowed_hosts(none);
    ask(&hosts, for_host("a.test")).assert_refused(NOT_LISTED, "a host");
}

#[test]
fn a_second_list_replaces_the_first() {
    let origins = SseLayer::new("/events").allowed_origins(["https://a.test"]);
    let origins = origins.allowed_origins(vec![String::from("https://b.test")]);
    ask(&origins, from_origin("https://b.test")).assert_admitted("the second");
    ask(&origins, from_origin("https://a.test")).assert_refused(NOT_LISTED, "the first");

    let hosts = SseLayer::new("/events").allowed_hosts(["a.test"]);
    let hosts = hosts.allowed_hosts(&[String::from("b.test")]);
    ask(&hosts, for_host("b.test")).assert_admitted("the second");
    ask(&hosts, for_host("a.test")).assert_refused(NOT_LISTED, "the first");
}

#[test]
fn request_is_admitted_only_by_both_guards() {
    let layer = hosts().allowed_origins(["https://example.com"]);
    for (host, origin, setting) in [
        ("example.com", "https://example.com", None),
        ("evil.test", "https://example.com", Some("allowed_hosts")),
        ("example.com", "https://evil.test", Some("allowed_origins")),
        ("evil.test", "https://evil.test", Some("allowed_hosts")),
    ] {
        let request = with(&[(HOST, host.as_bytes()), (ORIGIN, origin.as_bytes())]);
        let outcome = ask(&layer, request);
        match setting {
            None => outcome.assert_admitted(host),
            Some(setting) => outcome.assert_refused(setting, host),
        }
    }
}

#[test]
fn refusal_does_not_echo_client_input() {
    let layer = hosts().allowed_origins(["https://example.com"]);
    for value in ["sneaky", "https://sneaky.test", "<b>sneaky</b>"] {
        for headers in [
            &[(HOST, value.as_bytes())][..],
            &[(HOST, b"127.0.0.1"), (ORIGIN, value.as_bytes())],
        ] {
            let outcome = ask(&layer, to("/events?sneaky", headers));
            outcome.assert_refused("Refused", value);
            assert!(!outcome.text.contains("sneaky"), "{}", outcome.text);
        }
    }
}

#[test]
fn refused_head_request_gets_no_body() {
    let mut request = from_origin("https://evil.test");
    *request.method_mut() = Method::HEAD;
    let outcome = ask(&origins(), request);
    assert_eq!(outcome.status, StatusCode::FORBIDDEN);
    assert_eq!(outcome.headers[CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(outcome.text, "");
    // An exact 0 would become a `content-length` that GET has not.
    assert_eq!(outcome.exact_size, None);
    assert_eq!(outcome.calls, 0);
}

#[test]
fn guards_ignore_requests_that_do_not_match() {
    let layer = hosts().allowed_origins(["https://example.com"]);
    let evil = [(HOST, &b"evil.test"[..]), (ORIGIN, b"https://evil.test")];
    ask(&layer, to("/other", &evil)).assert_admitted("another path");
    let mut post = with(&evil);
    *post.method_mut() = Method::POST;
    ask(&layer, post).assert_admitted("another method");
    let mut page = with(&evil);
    page.headers_mut()
        .insert(ACCEPT, HeaderValue::from_static("text/html"));
    ask(&layer, page).assert_admitted("another type");
}

#[test]
fn accept_function_is_not_called_for_refused_requests() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let layer = origins().accept(move |_, _| {
        counter.fetch_add(1, Relaxed);
        async { Err(StatusCode::IM_A_TEAPOT) }
    });
    ask(&layer, from_origin("https://evil.test")).assert_refused(NOT_LISTED, "evil");
    assert_eq!(calls.load(Relaxed), 0);
    let outcome = ask(&layer, from_origin("https://example.com"));
    assert_eq!(outcome.status, StatusCode::IM_A_TEAPOT);
    assert_eq!(calls.load(Relaxed), 1);
}

// ===== setting up =====

#[test]
fn invalid_origin_or_host_in_a_list_is_an_error() {
    let layer = || SseLayer::new("/events");
    let assert_says = |result: Result<SseLayer, GuardError>, value: &str, why: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("{value:?} is invalid")), "{error}");
        assert!(error.contains(why), "{error}");
    };
    for (origin, why) in [
        ("https://example.com/", "without a path"),
        ("https://example.com/events", "without a path"),
        ("example.com", "no scheme"),
        ("", "no scheme"),
        ("*", "no scheme"),
        ("ht tp://example.com", "its scheme"),
        ("https://*.example.com", "a character"),
        ("https://bücher.example", "a character"),
        ("https://", "empty"),
        ("https://user@example.com", "user information"),
        ("https://example.com:0x50", "its port"),
    ] {
        let list = ["https://example.com", origin];
        assert_says(layer().try_allowed_origins(list), origin, why);
    }
    for (host, why) in [
        ("https://example.com", "neither a scheme"),
        ("example.com/", "neither a scheme"),
        ("::1", "in brackets"),
        ("[::1", "not closed"),
        ("[1.2.3.4]", "no IPv6 address"),
        ("*.example.com", "a character"),
        ("", "empty"),
        ("example..com", "empty"),
        ("example.com:", "its port"),
        ("user@example.com", "user information"),
    ] {
        let list = ["example.com", host];
        assert_says(layer().try_allowed_hosts(list), host, why);
    }
}

#[test]
fn infallible_setters_panic_on_an_invalid_value() {
    let message = |set: fn(SseLayer) -> SseLayer| {
        let set = AssertUnwindSafe(|| drop(set(SseLayer::new("/events"))));
        let panic = catch_unwind(set).unwrap_err();
        *panic.downcast::<String>().unwrap()
    };
    let origin = message(|layer| layer.allowed_origins(["https://a.test/"]));
    assert!(origin.starts_with("allowed origin \"https://a.test/\" is invalid: "));
    let host = message(|layer| layer.allowed_hosts(["http://a.test"]));
    assert!(host.starts_with("allowed host \"http://a.test\" is invalid: "));
}

// ===== over sockets =====

#[tokio::test]
async fn refusal_by_authority_or_host_keeps_the_connection() {
    async fn handle<B>(request: Request<B>) -> Result<Response<Text>, Infallible> {
        if let Some(sse) = request.extensions().get::<SseConnection>() {
            let _ = sse.send(Event::message("hello")).await;
        }
        Ok(Response::default())
    }
    let layer = SseLayer::new("/events")
        .allowed_hosts(["127.0.0.1"])
        .allowed_origins(["https://example.com"]);
    let service = layer.layer(service_fn(handle));
    let server = Server::hyper(Hyper::Auto, service).await;

    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(server.address, version).await;
        let mut evil = client.request(Method::GET, "/events");
        if version == Version::HTTP_2 {
            *evil.uri_mut() = "http://evil.test/events".parse().unwrap();
        } else {
            let host = HeaderValue::from_static("evil.test");
            evil.headers_mut().insert(HOST, host);
        }
        let mut head = evil.clone();
        *head.method_mut() = Method::HEAD;
        let mut other = evil.clone();
        *other.uri_mut() = evil
            .uri()
            .to_string()
            .replace("events", "other")
            .parse()
            .unwrap();
        let mut foreign = client.request(Method::GET, "/events");
        let origin = HeaderValue::from_static("https://evil.test");
        foreign.headers_mut().insert(ORIGIN, origin);

        for (request, setting) in [(evil, "allowed_hosts"), (foreign, "allowed_origins")] {
            let (status, headers, body) = client.whole(request).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{version:?}");
            assert_eq!(headers[CONTENT_LENGTH], body.len().to_string());
            assert!(String::from_utf8_lossy(&body).contains(setting));
        }
        let (status, headers, body) = client.whole(head).await;
        assert_eq!((status, body.len()), (StatusCode::FORBIDDEN, 0));
        assert!(!headers.contains_key(CONTENT_LENGTH), "{version:?}");
        let (status, ..) = client.whole(other).await;
        assert_eq!(status, StatusCode::OK, "{version:?}");
        assert_eq!(layer.registered().held(), 0);

        let mut events = client.open("/events").await;
        assert_eq!(events.event().await.unwrap().data, "hello");
        events.end().await.unwrap();
    }

    // HTTP/2 has room for both.
    let mut client = Client::connect(server.address, Version::HTTP_2).await;
    let mut both = client.request(Method::GET, "/events");
    let host = HeaderValue::from_static("evil.test");
    both.headers_mut().insert(HOST, host);
    let (status, _, body) = client.whole(both).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(String::from_utf8_lossy(&body).contains("differ"));
}
