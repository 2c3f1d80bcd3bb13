//! The code that the design shows, as its users would write it.

use super::paths;
use std::{convert::Infallible, error::Error, fmt, time::Duration};
use support::Held;

use axum::{Json, Router, body::Body, routing::get, routing::post};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{
    CloseReason, Connections, Event, SseConnection, SseLayer,
    event::{Decoded, EventId, EventType},
    test_util::{EventReader, ReadError},
};

type TestResult = Result<(), Box<dyn Error>>;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq)]
struct UserId(u64);

#[derive(Serialize)]
struct Order {
    number: u32,
}

fn request(path: &str) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path.parse().expect("the tests know their paths");
    request
}

async fn open(app: &Router, path: &str) -> Result<EventReader, ReadError> {
    let response = paths::open(app.clone(), request(path)).await?;
    assert_eq!(response.status(), StatusCode::OK);
    Ok(response.into_body())
}

async fn clock(sse: SseConnection) -> Result<(), tower_sse::Error> {
    loop {
        sse.send(Event::json("tick", &now())?).await?;
        tokio::time::sleep(SECOND).await;
    }
}

fn now() -> String {
    "noon".to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_clock_ticks_until_it_is_closed() -> TestResult {
    let connections = Connections::new();
    let sse = SseLayer::new("/events")
        .registry(&connections)
        .keep_alive(Duration::from_secs(15));
    let app = Router::new().route("/events", get(clock)).layer(sse);

    let mut events = open(&app, "/events").await?;
    assert_eq!(events.event().await?.event_type, "welcome");
    let start = Instant::now();
    for seconds in 0..3 {
        let tick = events.event().await?;
        assert_eq!((&*tick.event_type, &*tick.data), ("tick", "\"noon\""));
        assert_eq!(start.elapsed(), SECOND * seconds);
    }

    let sse = connections.iter().next().ok_or("it is not registered")?;
    sse.close();
    events.end().await?;
    assert_eq!(sse.closed().await, CloseReason::Closed);
    assert_eq!(connections.held(), 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn layers_sharing_a_registry_keep_their_own_heartbeats() -> TestResult {
    async fn wait(sse: SseConnection) {
        sse.start();
        sse.closed().await;
    }
    let connections = Connections::new();
    let layer = |path: &str, seconds| {
        SseLayer::new(path)
            .registry(&connections)
            .keep_alive(SECOND * seconds)
    };
    let app = Router::new()
        .route("/fast", get(wait))
        .route("/slow", get(wait))
        .layer(layer("/fast", 5))
        .layer(layer("/slow", 15));

    for (path, seconds) in [("/fast", 5), ("/slow", 15)] {
        let mut events = open(&app, path).await?.time_limit(SECOND * 60);
        let start = Instant::now();
        assert_eq!(events.event().await?.event_type, "welcome");
        assert_eq!(connections.len(), 1);

        assert_eq!(events.decoded().await?, Decoded::Comment(String::new()));
        // A heartbeat is due when nothing was sent, and up to one tick of the clock late.
        let late = start.elapsed().saturating_sub(SECOND * seconds);
        assert!(late <= Duration::from_millis(130), "{late:?}");
        assert!(start.elapsed() >= SECOND * seconds, "{:?}", start.elapsed());
    }
    Ok(())
}

#[tokio::test]
async fn a_path_pattern_captures_and_more_paths_can_be_added() -> TestResult {
    async fn room(sse: SseConnection) -> Result<(), tower_sse::Error> {
        let room = sse.param("room").unwrap_or("the hall").to_owned();
        sse.send(Event::message(room)).await?;
        Ok(())
    }
    let app = Router::new()
        .route("/rooms/{room}/events", get(room))
        .route("/events", get(room))
        .layer(SseLayer::new("/rooms/{room}/events").path("/events"));

    for (path, expected) in [("/rooms/blue/events", "blue"), ("/events", "the hall")] {
        let mut events = open(&app, path).await?;
        assert_eq!(events.event().await?.event_type, "welcome");
        assert_eq!(events.event().await?.data, expected);
    }
    Ok(())
}

#[tokio::test]
async fn any_path_layer_wraps_a_method_router() -> TestResult {
    async fn hello(sse: SseConnection) -> Result<(), tower_sse::Error> {
        sse.send(Event::message("hello")).await?;
        Ok(())
    }
    let app = Router::new()
        .route("/events", get(hello).layer(SseLayer::any_path()))
        .route("/other", get(async || "other"));

    let mut events = open(&app, "/events").await?;
    assert_eq!(events.event().await?.event_type, "welcome");
    assert_eq!(events.event().await?.data, "hello");

    let response = app.oneshot(request("/other")).await?;
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; charset=utf-8"
    );
    Ok(())
}

#[tokio::test]
async fn accept_replaces_the_inner_service() -> TestResult {
    let inner = service_fn(async |_: Request<Full<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::from("the inner service")))
    });
    let layer = SseLayer::new("/events").accept(
        async |sse: SseConnection, parts: http::request::Parts| -> Result<(), StatusCode> {
            if !parts.headers.contains_key("authorization") {
                return Err(StatusCode::UNAUTHORIZED);
            }
            let sent = sse.send(Event::message("hello")).await;
            sent.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
        },
    );
    let service = layer.layer(inner);

    let with_key = Request::get("/events").header("authorization", "a key");
    let response = paths::open(service.clone(), with_key.body(Full::default())?).await?;
    let mut events = response.into_body();
    assert_eq!(events.event().await?.event_type, "welcome");
    assert_eq!(events.event().await?.data, "hello");
    events.end().await?;

    let without_key = Request::get("/events").body(Full::default())?;
    let response = service.oneshot(without_key).await?;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn completions_stream_to_a_post_without_a_welcome() -> TestResult {
    async fn complete(
        sse: Option<SseConnection>,
        Json(prompt): Json<serde_json::Value>,
    ) -> Result<Json<serde_json::Value>, tower_sse::Error> {
        if let Some(sse) = sse.filter(|_| prompt["stream"] == true) {
            for word in ["Hello", " there"] {
                let delta = serde_json::to_string(&json!({ "text": word })).unwrap_or_default();
                sse.send(Event::message(delta)).await?;
            }
            sse.send(Event::message("[DONE]")).await?;
        }
        Ok(Json(json!({ "text": "Hello there" })))
    }
    let app = Router::new()
        .route("/v1/chat/completions", post(complete))
        .layer(SseLayer::completions("/v1/chat/completions"));
    let ask = |prompt: serde_json::Value| {
        Request::builder()
            .method(Method::POST)
            .uri("/v1/chat/completions")
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(Body::from(prompt.to_string()))
    };

    let request = ask(json!({ "stream": true }))?;
    let mut events = paths::open(app.clone(), request).await?.into_body();
    let mut wire = Vec::new();
    loop {
        match events.frame().await {
            Ok(frame) => wire.extend_from_slice(&frame),
            Err(ReadError::Ended) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let expected = "data: {\"text\":\"Hello\"}\n\ndata: {\"text\":\" there\"}\n\ndata: [DONE]\n\n";
    assert_eq!(String::from_utf8(wire)?, expected);

    let response = app.oneshot(ask(json!({ "stream": false }))?).await?;
    assert_eq!(response.headers()["content-type"], "application/json");
    Ok(())
}

#[tokio::test]
async fn a_users_streams_are_found_by_the_value_inserted_and_closed() -> TestResult {
    let connections = Connections::new();
    let layer = SseLayer::any_path().registry(&connections);
    let mut streams = Vec::new();
    for user in [7, 8, 7] {
        let (sse, events) = paths::connection_of(&layer, Request::default()).await;
        assert_eq!(sse.insert(UserId(user)), Ok(()));
        assert_eq!(sse.insert(UserId(9)), Err(UserId(9)));
        assert_eq!(connections.get(&sse.uuid()), Some(sse.clone()));
        streams.push((sse, events));
    }

    let id = UserId(7);
    let closed = connections.close_where(|c| c.get::<UserId>() == Some(&id));
    assert_eq!(closed, 2);

    for (sse, mut events) in streams {
        assert_eq!(events.event().await?.event_type, "welcome");
        let is_his = sse.get::<UserId>() == Some(&id);
        assert_eq!(sse.is_closed(), is_his);
        if is_his {
            events.end().await?;
            assert_eq!(connections.get(&sse.uuid()), None);
        } else {
            sse.send(Event::message("still here")).await?;
            assert_eq!(events.event().await?.data, "still here");
        }
    }
    Ok(())
}

#[tokio::test]
async fn send_all_error_aborts_the_stream() -> TestResult {
    let (sse, mut events) = paths::connection().await;
    let items = ["one", "two"].map(|text| Ok::<_, Infallible>(Event::message(text)));
    sse.send_all(tokio_stream::iter(items)).await?;
    drop(sse);
    assert_eq!(events.event().await?.event_type, "welcome");
    assert_eq!(events.event().await?.data, "one");
    assert_eq!(events.event().await?.data, "two");
    events.end().await?;

    let (sse, mut events) = paths::connection().await;
    let items = [Ok(Event::message("one")), Err(fmt::Error)];
    let error = sse.send_all(tokio_stream::iter(items)).await.err();
    let reason = error.map(|error| error.reason());
    assert_eq!(reason, Some(CloseReason::Failed));
    assert_eq!(events.event().await?.event_type, "welcome");
    assert_eq!(events.event().await?.data, "one");
    assert!(matches!(events.event().await, Err(ReadError::Broken(_))));
    Ok(())
}

#[test]
fn events_are_built_as_in_the_design() -> TestResult {
    const PLACED: EventType<'static> = EventType::from_static("placed");
    const FIRST: EventId<'static> = EventId::from_static("1");
    let at_run_time = String::from("placed");

    let wire = |event: Event| String::from_utf8(event.into_bytes().into());
    let order = Order { number: 7 };
    let text = "hello,\nworld";
    let cases = [
        (Event::message(text), "data: hello,\ndata: world\n\n"),
        (
            Event::new(PLACED, text)?,
            "event: placed\ndata: hello,\ndata: world\n\n",
        ),
        (Event::new(&*at_run_time, "")?, "event: placed\ndata:\n\n"),
        (
            Event::json("placed", &order)?,
            "event: placed\ndata: {\"number\":7}\n\n",
        ),
        (Event::comment("one\r\ntwo"), ": one\n: two\n"),
        (Event::message("x").id(FIRST)?, "data: x\nid: 1\n\n"),
        (Event::message("x").id("2")?, "data: x\nid: 2\n\n"),
        (
            Event::message("x").retry(SECOND * 3),
            "data: x\nretry: 3000\n\n",
        ),
        (
            Event::envelope("placed", &order)?,
            "event: event\ndata: {\"eventName\":\"placed\",\"eventPayload\":{\"number\":7}}\n\n",
        ),
    ];
    for (event, expected) in cases {
        assert_eq!(wire(event)?, expected);
    }

    assert!(Event::new("two\nlines", "").is_err());
    assert!(Event::message("").id("a\0b").is_err());
    assert!(EventType::try_from("two\rlines".to_owned()).is_err());
    Ok(())
}
