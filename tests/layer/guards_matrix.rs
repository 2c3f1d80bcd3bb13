//! Which origins and hosts are admitted, and which refused.

use guarded::{INVALID, NOT_LISTED, ask, for_host, from_origin, hosts, origins, to, with};
use http::header::{HOST, ORIGIN};
use support::guarded;
use tower_sse::SseLayer;

// ===== origins =====

#[test]
fn listed_origin_is_admitted_in_any_spelling() {
    for origin in [
        "https://example.com",
        "HTTPS://EXAMPLE.com",
        "https://example.com:443",
        "https://example.com:0443",
        "https://example.com.",
        "https://example.com.:443",
        "http://localhost:3000",
        "http://[::1]:8080",
        "http://[0:0:0:0:0:0:0:1]:8080",
        "http://[::0001]:8080",
        "http://[::0.0.0.1]:8080",
        "https://dotted.example:8443",
        "http://plain.example",
        "tauri://localhost",
        "chrome-extension://abcdefghijklmnop",
    ] {
        ask(&origins(), from_origin(origin)).assert_admitted(origin);
    }
}

#[test]
fn a_request_without_an_origin_is_admitted() {
    ask(&origins(), with(&[])).assert_admitted("none");
    ask(&origins(), for_host("evil.test")).assert_admitted("a host");
}

#[test]
fn an_origin_that_differs_in_scheme_host_or_port_is_refused() {
    for origin in [
        "http://example.com",
        "https://example.com:444",
        "https://example.com:80",
        "http://example.com:443",
        "https://www.example.com",
        "https://com",
        "https://example.com.evil.test",
        "https://evil-example.com",
        "http://localhost",
        "https://localhost:3000",
        "http://[::1]",
        "http://[::2]:8080",
        "http://[::ffff:0.0.0.1]:8080",
        "https://dotted.example",
        "https://plain.example:80",
        "tauri://localhost:80",
        "chrome-extension://ponmlkjihgfedcba",
        "null",
    ] {
        let outcome = ask(&origins(), from_origin(origin));
        outcome.assert_refused(NOT_LISTED, origin);
        assert!(outcome.text.contains("allowed_origins"));
    }
}

#[test]
fn invalid_or_repeated_origin_is_refused() {
    for origin in [
        "",
        "NULL",
        "*",
        "example.com",
        "//example.com",
        "://example.com",
        "h_t://example.com",
        "1https://example.com",
        "https://",
        "https://.",
        "https://example.com/",
        "https://example.com/events",
        "https://example.com?a",
        "https://example.com#a",
        "https://user@example.com",
        "https://user:password@example.com",
        "https://example.com:",
        "https://example.com:+443",
        "https://example.com:65979",
        "https://example.com:443:443",
        "https://example..com",
        "https://example.com..",
        "https://exam%70le.com",
        "https://[example.com]",
        "http://::1:8080",
        "http://[::1",
        "http://[::1]8080",
        "http://[::1].:8080",
        "https://example.com https://example.com",
        "https://example.com, https://example.com",
    ] {
        let outcome = ask(&origins(), from_origin(origin));
        outcome.assert_refused(INVALID, origin);
        assert!(outcome.text.contains("allowed_origins"));
    }
    let not_text = with(&[(ORIGIN, b"https://ex\xc3\xa4mple.com")]);
    ask(&origins(), not_text).assert_refused(INVALID, "not ASCII");
    let twice = with(&[
        (ORIGIN, b"https://example.com"),
        (ORIGIN, b"https://example.com"),
    ]);
    ask(&origins(), twice).assert_refused("several Origin", "twice");
}

#[test]
fn null_origin_is_admitted_only_if_listed() {
    let layer = SseLayer::new("/events").allowed_origins(["null", "https://example.com"]);
    ask(&layer, from_origin("null")).assert_admitted("null");
    ask(&layer, from_origin("https://example.com")).assert_admitted("the other");
    ask(&layer, from_origin("https://null")).assert_refused(NOT_LISTED, "a host of that name");
}

// ===== hosts =====

#[test]
fn listed_host_is_admitted_in_any_spelling() {
    for host in [
        "example.com",
        "EXAMPLE.COM",
        "example.com.",
        "example.com:80",
        "example.com.:12345",
        "localhost:8080",
        "LocalHost.:8080",
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]:8080",
        "[2001:db8:0::1]",
        "[2001:db8::0.0.0.1]:9",
        // HTTP/1 does not tell the scheme.
        "secure.example",
        "secure.example:443",
        "plain.example",
        "plain.example:80",
    ] {
        ask(&hosts(), for_host(host)).assert_admitted(host);
    }
}

#[test]
fn a_host_that_differs_in_name_or_port_is_refused() {
    for host in [
        "evil.test",
        "www.example.com",
        "com",
        "example.com.evil.test",
        "localhost",
        "localhost:80",
        "localhost:8081",
        "127.0.0.2",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "[::1]:80",
        "[2001:db8::2]",
        "secure.example:80",
        "plain.example:443",
    ] {
        let outcome = ask(&hosts(), for_host(host));
        outcome.assert_refused(NOT_LISTED, host);
        assert!(outcome.text.contains("allowed_hosts"));
    }
}

#[test]
fn invalid_missing_or_repeated_host_is_refused() {
    for host in [
        "",
        ".",
        "*",
        ":80",
        "user@example.com",
        "user:password@example.com",
        "example.com:",
        "example.com:http",
        "example.com:-1",
        "example.com:+80",
        "example.com:65536",
        "example..com",
        "example.com/",
        "http://example.com",
        "exam ple.com",
        "example.com, example.com",
        "::1",
        "[::1",
        "[::1]:",
        "[::1]x",
        "[::1%25lo]:8080",
        "[127.0.0.1]",
        "[]",
    ] {
        let outcome = ask(&hosts(), for_host(host));
        outcome.assert_refused(INVALID, host);
        assert!(outcome.text.contains("allowed_hosts"));
    }
    ask(&hosts(), with(&[(HOST, b"example.com\xff")])).assert_refused(INVALID, "not text");
    let twice = [(HOST, &b"example.com"[..]), (HOST, b"example.com")];
    ask(&hosts(), with(&twice)).assert_refused("several Host", "twice");
    let thrice = to("http://example.com/events", &twice);
    ask(&hosts(), thrice).assert_refused("several Host", "beside a target");
    ask(&hosts(), with(&[])).assert_refused("does not say which host", "none");
}

#[test]
fn target_host_is_checked_and_must_match_the_header() {
    for (target, host) in [
        ("http://example.com/events", None),
        ("http://EXAMPLE.com.:99/events", None),
        ("http://example.com/events", Some("Example.COM.")),
        ("http://example.com/events", Some("example.com:80")),
        ("https://example.com:443/events", Some("example.com")),
        ("http://[::1]:8080/events", Some("[0::1]:8080")),
        ("https://secure.example/events", None),
        ("http://plain.example/events", None),
    ] {
        let host = host.map(|host| (HOST, host.as_bytes()));
        ask(&hosts(), to(target, host.as_slice())).assert_admitted(target);
    }
    for (target, host, why) in [
        ("http://evil.test/events", None, NOT_LISTED),
        ("http://secure.example/events", None, NOT_LISTED),
        ("https://plain.example/events", None, NOT_LISTED),
        ("ftp://plain.example/events", None, NOT_LISTED),
        ("http://user@example.com/events", None, INVALID),
        ("http://user:pw@example.com/events", None, INVALID),
        ("http://evil.test/events", Some("example.com"), "differ"),
        ("http://example.com/events", Some("evil.test"), "differ"),
        ("http://example.com/events", Some("127.0.0.1"), "differ"),
        (
            "http://example.com/events",
            Some("example.com:81"),
            "differ",
        ),
        (
            "https://example.com/events",
            Some("example.com:80"),
            "differ",
        ),
        ("http://example.com/events", Some(""), INVALID),
    ] {
        let host = host.map(|host| (HOST, host.as_bytes()));
        ask(&hosts(), to(target, host.as_slice())).assert_refused(why, target);
    }
}
