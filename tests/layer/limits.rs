//! Bounds on how many connections there are, in all and for each key.

use super::{paths, rules};
use http::Request;
use rules::{Stream, Text, call, call_sse, forever, get, open, plain, sse_of};
use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};
use tokio_test::block_on;
use tower_sse::{CloseReason, Connections, Event, SseConnection, SseLayer, layer::Limits};

fn layer() -> SseLayer {
    paths::without_welcome(SseLayer::new("/events"))
}

fn with_header(name: &str, value: &str) -> Request<Text> {
    let mut request = get("/events");
    let name: http::HeaderName = name.parse().unwrap();
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

fn header(name: &'static str) -> impl Fn(&http::request::Parts) -> Option<String> {
    move |parts| {
        let value = parts.headers.get(name)?;
        Some(value.to_str().ok()?.to_owned())
    }
}

/// A stream with the one handle on it, or the whole refusal.
fn try_open(layer: &SseLayer, request: Request<Text>) -> Result<(SseConnection, Stream), String> {
    try_limited(layer, request, |_| ())
}

/// As above, with what the handler does first.
fn try_limited(
    layer: &SseLayer,
    request: Request<Text>,
    handler: impl FnOnce(&SseConnection) + 'static,
) -> Result<(SseConnection, Stream), String> {
    let place = Rc::new(RefCell::new(None));
    let kept = Rc::clone(&place);
    let mut stream = call(layer, request, async move |request| {
        let sse = sse_of(&request);
        handler(&sse);
        kept.replace(Some(sse));
        plain()
    })
    .stream();
    match place.take().filter(|sse| !sse.is_closed()) {
        Some(sse) => Ok((sse, stream)),
        None => {
            let (text, rest) = stream.rest();
            rest.assert_ended();
            Err(text)
        }
    }
}

#[track_caller]
fn assert_refused(opened: Result<(SseConnection, Stream), String>, reason: &str) {
    let text = opened.err().expect("it is one too many");
    assert!(text.contains("event: reconnect\n"), "{text}");
    let data = format!("data: {{\"reason\":\"{reason}\"}}\n");
    assert!(text.contains(&data), "{text}");
}

// ===== in all =====

#[test]
fn max_connections_is_exact() {
    for most in [0, 1, 2, 10] {
        let layer = layer().max_connections(most);
        let mut opened: Vec<_> = (0..most).map(|_| open(&layer)).collect();
        for refused in 1..=3 {
            assert_refused(try_open(&layer, get("/events")), "full");
            assert_eq!(layer.registered().len(), most);
            assert_eq!(layer.registered().stats().refused, refused);
        }
        // Those that were there are, and are not ended to make room.
        for (sse, stream) in &mut opened {
            sse.try_send(Event::message("on")).unwrap();
            assert_eq!(stream.text(), "data: on\n\n");
            stream.assert_waits();
        }
        if opened.pop().is_some() {
            let _again = open(&layer);
            assert_refused(try_open(&layer, get("/events")), "full");
        }
    }
}

#[test]
fn a_connection_counts_before_its_handler_has_answered() {
    let layer = layer().max_connections(1);
    let mut waiting = call_sse(&layer, async |_| {
        forever().await;
        plain()
    });
    assert_refused(try_open(&layer, get("/events")), "full");
    assert!(waiting.poll().is_pending());
    assert_refused(try_open(&layer, get("/events")), "full");
    drop(waiting);
    assert!(try_open(&layer, get("/events")).is_ok());
}

#[test]
fn a_connection_counts_until_its_body_has_ended() {
    let layer = layer().max_connections(1);
    let (sse, mut stream) = open(&layer);
    sse.try_send(Event::message("last")).unwrap();
    sse.close();
    assert_refused(try_open(&layer, get("/events")), "full");
    stream.frame();
    // With its last frame, although the server still has the body.
    let opened = try_open(&layer, get("/events"));
    assert!(opened.is_ok());
    let (text, rest) = stream.rest();
    assert_eq!(text, "");
    rest.assert_ended();
}

#[test]
fn connections_of_other_layers_in_the_registry_count() {
    let connections = Connections::new();
    let bounded = layer().registry(&connections).max_connections(2);
    let unbounded = layer().registry(&connections);
    let _first = open(&unbounded);
    let _second = open(&bounded);
    assert_refused(try_open(&bounded, get("/events")), "full");
    let _third = open(&unbounded);
    assert!(try_open(&layer().max_connections(1), get("/events")).is_ok());
}

// ===== by key =====

#[test]
fn max_connections_per_key_is_exact() {
    let layer = layer().limits(Limits::new().connections_per(2, header("user")));
    let of = |user| try_open(&layer, with_header("user", user));
    let first = of("ann").unwrap();
    let second = of("ann").unwrap();
    assert_refused(of("ann"), "key_full");
    let _other = of("bob").unwrap();
    // Without a key there is no bound.
    let _without: Vec<_> = (0..5).map(|_| open(&layer)).collect();
    drop(first);
    let _third = of("ann").unwrap();
    assert_refused(of("ann"), "key_full");
    assert_eq!(layer.registered().stats().refused, 2);
    drop(second);
}

#[test]
fn refusal_by_one_limit_releases_the_other_limits() {
    let layer = layer()
        .limits(Limits::new().connections_per(2, header("user")))
        .limits(
            Limits::new().connections_per(1, |parts| header("room")(parts).map(Arc::<str>::from)),
        );
    let of = |room| {
        let mut request = with_header("user", "ann");
        let room = http::HeaderValue::from_static(room);
        request.headers_mut().insert("room", room);
        try_open(&layer, request)
    };
    let _first = of("blue").unwrap();
    for _ in 0..5 {
        assert_refused(of("blue"), "key_full");
    }
    let _second = of("red").unwrap();
    assert_refused(of("green"), "key_full");
    drop(_first);
    assert!(of("green").is_ok());
}

#[test]
fn tighter_of_two_limits_with_one_key_applies() {
    for (first, second) in [(1, 2), (2, 1)] {
        let layer = layer()
            .limits(Limits::new().connections_per(first, |_| Some("all")))
            .limits(Limits::new().connections_per(second, |_| Some("all")));
        for _ in 0..2 {
            let opened = try_open(&layer, get("/events"));
            assert_eq!(opened.as_ref().err(), None);
            assert_refused(try_open(&layer, get("/events")), "key_full");
        }
    }
}

#[test]
fn values_of_different_types_are_different_keys() {
    let layer = layer()
        .limits(Limits::new().connections_per(1, |_| Some(1_u8)))
        .limits(Limits::new().connections_per(1, |_| Some(1_u16)));
    let (sse, _stream) = open(&layer);
    for limited in [
        sse.limit(&1_u32, 1),
        sse.limit(&1_u64, 1),
        sse.limit(&(1_u8,), 1),
        sse.limit(&"1", 1),
        sse.limit(&String::from("1"), 1),
        sse.limit(&Some(1_u8), 1),
    ] {
        limited.unwrap();
    }
    assert!(!sse.is_closed());
}

// ===== limit =====

#[test]
fn handler_can_limit_a_key_of_its_own() {
    let layer = layer();
    let of = |user: &'static str| {
        try_limited(&layer, get("/events"), move |sse| {
            let _ = sse.limit(&user, 2);
        })
    };
    let first = of("ann").unwrap();
    let _second = of("ann").unwrap();
    let _other = of("bob").unwrap();
    assert_refused(of("ann"), "key_full");
    assert_eq!(layer.registered().len(), 3);
    drop(first);
    let _third = of("ann").unwrap();
    assert_refused(of("ann"), "key_full");
    let stats = layer.registered().stats();
    assert_eq!((stats.refused, stats.closed(CloseReason::Refused)), (2, 2));
}

#[test]
fn repeated_limit_of_one_key_counts_once() {
    let layer = layer().limits(Limits::new().connections_per(2, |_| Some("ann")));
    let (first, one) = open(&layer);
    for _ in 0..5 {
        first.limit(&"ann", 1).unwrap();
        first.limit(&"other", 1).unwrap();
    }
    let (second, _two) = open(&layer);
    assert_eq!(second.limit(&"other", 1).unwrap_err().to_string(), {
        "connection limit of 1 reached for this key"
    });
    assert_refused(try_open(&layer, get("/events")), "key_full");
    drop(one);
    let (third, _three) = open(&layer);
    third.limit(&"other", 1).unwrap();
}

#[test]
fn started_stream_over_the_limit_is_closed() {
    let layer = layer();
    let (first, mut one) = open(&layer);
    first.limit(&7, 1).unwrap();
    let (second, mut two) = open(&layer);
    second.try_send(Event::message("queued")).unwrap();
    second.limit(&7, 1).unwrap_err();
    assert!(second.is_closed());
    second.limit(&7, 1).unwrap_err();
    let error = second.try_send(Event::message("late")).unwrap_err();
    assert!(error.to_string().contains("one too many"), "{error}");

    let (text, rest) = two.rest();
    rest.assert_ended();
    let last = "data: queued\n\nevent: reconnect\ndata: {\"reason\":\"key_full\"}\nretry: ";
    assert!(text.starts_with(last), "{text}");
    assert_eq!(text.matches("\n\n").count(), 2);
    assert_eq!(block_on(second.closed()), CloseReason::Refused);
    let stats = layer.registered().stats();
    assert_eq!((stats.refused, stats.closed(CloseReason::Refused)), (1, 1));

    first.try_send(Event::message("on")).unwrap();
    assert_eq!(one.text(), "data: on\n\n");
}

#[test]
fn ended_connection_is_not_counted() {
    let layer = layer();
    let (ended, stream) = open(&layer);
    drop(stream);
    ended.limit(&7, 1).unwrap();
    let (sse, _stream) = open(&layer);
    sse.limit(&7, 1).unwrap();
}

#[test]
fn registries_count_independently() {
    let (first, second) = (layer(), layer());
    let (one, _one) = open(&first);
    let (two, _two) = open(&second);
    one.limit(&7, 1).unwrap();
    two.limit(&7, 1).unwrap();
}

// ===== several threads =====

#[test]
fn concurrent_threads_never_exceed_a_limit() {
    const THREADS: usize = 6;
    let layer = layer()
        .max_connections(4)
        .limits(Limits::new().connections_per(2, header("user")));
    let of_user = [const { AtomicUsize::new(0) }; 3];
    let in_all = AtomicUsize::new(0);
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (layer, of_user, in_all, refused) = (&layer, &of_user, &in_all, &refused);
            scope.spawn(move || {
                for round in 0..400 {
                    let user = (number + round) % 3;
                    let request = with_header("user", &user.to_string());
                    let Ok((sse, stream)) = try_open(layer, request) else {
                        refused.fetch_add(1, SeqCst);
                        continue;
                    };
                    assert!(of_user[user].fetch_add(1, SeqCst) < 2);
                    assert!(in_all.fetch_add(1, SeqCst) < 4);
                    thread::yield_now();
                    // Before its place is given up: what is counted here has one.
                    of_user[user].fetch_sub(1, SeqCst);
                    in_all.fetch_sub(1, SeqCst);
                    match round % 3 {
                        0 => drop((stream, sse)),
                        1 => drop((sse, stream)),
                        _ => {
                            let mut stream = stream;
                            sse.close();
                            stream.rest().1.assert_ended();
                        }
                    }
                }
            });
        }
    });
    let stats = layer.registered().stats();
    assert_eq!(stats.refused, refused.load(SeqCst) as u64);
    assert_eq!(stats.opened + stats.refused, (THREADS * 400) as u64);
    assert_eq!(stats.open, 0);
    // Nothing is left of any key.
    let mut opened = Vec::new();
    for user in ["0", "1"] {
        for _ in 0..2 {
            opened.push(try_open(&layer, with_header("user", user)).ok().unwrap());
        }
        let reason = if user == "0" { "key_full" } else { "full" };
        assert_refused(try_open(&layer, with_header("user", user)), reason);
    }
    assert_refused(try_open(&layer, get("/events")), "full");
}

#[test]
fn concurrent_limits_of_one_key_count_once() {
    for _ in 0..200 {
        let layer = layer();
        let (sse, stream) = open(&layer);
        let barrier = Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let sse = sse.clone();
                    barrier.wait();
                    sse.limit(&7, 3).unwrap();
                });
            }
        });
        let (other, _other) = open(&layer);
        other.limit(&7, 2).unwrap();
        drop(stream);
        let (next, _next) = open(&layer);
        next.limit(&7, 2).unwrap();
        let (last, _last) = open(&layer);
        last.limit(&7, 2).unwrap_err();
    }
}
