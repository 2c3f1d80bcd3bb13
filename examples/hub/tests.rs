use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    http::{Method, Request},
};
use tower::ServiceExt;
use tower_sse::{
    event::MessageEvent,
    test_util::{self, EventReader},
};

use super::*;

mod operation;

/// What the suites start real servers with.
#[cfg(any(feature = "nats", feature = "redis"))]
#[allow(dead_code, unreachable_pub, reason = "the suites use more of it")]
#[path = "../../tests/support"]
mod servers {
    #[cfg(feature = "nats")]
    pub mod nats;
    pub mod ports;
    #[cfg(feature = "redis")]
    pub mod redis;
    pub mod watched;
}

/// More than anything here takes, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);

type TestResult<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// A hub with its log in memory, of this much history.
fn app(history: usize) -> Router {
    super::app(hub(Options {
        history,
        ..Options::default()
    }))
}

fn hub(options: Options) -> Hub {
    let history = History::default().events(options.history);
    Hub::new(options, Broker::builder().history(history).in_memory())
}

async fn ask(
    app: &Router,
    method: Method,
    path: &str,
    body: impl Into<Body>,
) -> TestResult<(StatusCode, String)> {
    let request = Request::builder().method(method).uri(path);
    let response = app.clone().oneshot(request.body(body.into())?).await?;
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await?;
    Ok((status, String::from_utf8(body.into())?))
}

/// Publishes, and gives the event's id.
async fn publish(app: &Router, path: &str, body: &str) -> TestResult<String> {
    let (status, answer) = ask(app, Method::POST, path, body.to_owned()).await?;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["id"]
        .as_str()
        .ok_or("the answer has no id")?
        .to_owned())
}

/// Opens a stream, reads its welcome and gives the uuid in it.
async fn open(app: &Router, path: &str) -> TestResult<(EventReader, String)> {
    let request = Request::get(path).body(Body::empty())?;
    let response = test_util::open(app.clone(), request).await?;
    assert_eq!(response.status(), StatusCode::OK);
    let mut events = response.into_body().time_limit(LIMIT);
    let welcome = events.event().await?;
    assert_eq!(welcome.event_type, "welcome");
    let data: Value = serde_json::from_str(&welcome.data)?;
    let uuid = data["uuid"].as_str().ok_or("the welcome has no uuid")?;
    Ok((events, uuid.to_owned()))
}

/// The next event of a topic, as `name:data`.
async fn next(events: &mut EventReader) -> TestResult<String> {
    loop {
        let MessageEvent {
            event_type, data, ..
        } = events.event().await?;
        if event_type != "position" {
            return Ok(format!("{event_type}:{data}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn published_event_reaches_only_streams_of_its_topic() -> TestResult {
    let app = app(10);
    let (mut both, _) = open(&app, "/events?topic=news&topic=a%20b%2Fc").await?;
    let (mut other, _) = open(&app, "/events?topic=weather").await?;

    publish(&app, "/topics/news", "first\nsecond line").await?;
    publish(&app, "/topics/a%20b%2Fc?event=placed", "").await?;
    let id = publish(&app, "/topics/weather", "rain").await?;

    assert_eq!(next(&mut both).await?, "message:first\nsecond line");
    assert_eq!(next(&mut both).await?, "placed:");
    assert_eq!(next(&mut other).await?, "message:rain");
    assert_eq!(other.last_event_id(), id);
    Ok(())
}

#[tokio::test]
async fn invalid_publish_is_refused_with_a_reason() -> TestResult {
    let app = app(10);
    let long_topic = format!("/topics/{}", "x".repeat(257));
    let too_long = vec![b'x'; MAX_BODY + 1];
    for (path, body, status, text) in [
        (
            "/topics/a?event=welcome",
            vec![],
            400,
            r#"of the control type "welcome""#,
        ),
        (
            "/topics/a?event=gap",
            vec![],
            400,
            r#"of the control type "gap""#,
        ),
        (
            "/topics/a?event=position",
            vec![],
            400,
            r#"of the control type "position""#,
        ),
        ("/topics/a?event=two%0Alines", vec![], 400, "event type"),
        ("/topics/a?event=x&event=y", vec![], 400, "duplicate field"),
        (
            &*long_topic,
            vec![],
            400,
            "topic name has 257 bytes: the limits are 1 and 256",
        ),
        ("/topics/%FF", vec![], 400, "UTF-8"),
        ("/topics/a", b"\xFF".to_vec(), 400, "UTF-8"),
        ("/topics/a", too_long, 413, "at most 65536 bytes"),
    ] {
        let (found, answer) = ask(&app, Method::POST, path, body).await?;
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer.contains(text), "{path}: {answer}");
    }
    let (_, stats) = ask(&app, Method::GET, "/stats", "").await?;
    let stats: Value = serde_json::from_str(&stats)?;
    assert_eq!(stats["broker"]["published"], 0);

    publish(&app, "/topics/a", &"x".repeat(MAX_BODY)).await?;
    Ok(())
}

#[tokio::test]
async fn stream_without_topic_is_refused() -> TestResult {
    let app = app(10);
    for (path, text) in [
        ("/events", "at least one topic"),
        ("/events?lastEventId=x", "at least one topic"),
        ("/events?topic=", "topic name has 0 bytes"),
        ("/events?topic=a&topic=", "topic name has 0 bytes"),
    ] {
        let (status, answer) = ask(&app, Method::GET, path, "").await?;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert!(answer.contains(text), "{path}: {answer}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_topics_of_a_live_stream_can_be_changed() -> TestResult {
    let app = app(10);
    publish(&app, "/topics/b", "before").await?;
    let (mut events, uuid) = open(&app, "/events?topic=a").await?;
    let b = format!("/connections/{uuid}/topics/b");

    let (status, _) = ask(&app, Method::POST, &b, "").await?;
    assert_eq!(status, StatusCode::NO_CONTENT);
    publish(&app, "/topics/b", "1").await?;
    assert_eq!(next(&mut events).await?, "message:1");

    let (status, _) = ask(&app, Method::DELETE, &b, "").await?;
    assert_eq!(status, StatusCode::NO_CONTENT);
    publish(&app, "/topics/b", "2").await?;
    publish(&app, "/topics/a", "3").await?;
    assert_eq!(next(&mut events).await?, "message:3");

    let a = format!("/connections/{uuid}/topics/a");
    ask(&app, Method::DELETE, &a, "").await?;
    events.end().await?;

    let unknown = "/connections/7/topics/b";
    for (method, path) in [
        (Method::POST, &*b),
        (Method::DELETE, &*b),
        (Method::POST, unknown),
        (Method::DELETE, unknown),
        (Method::DELETE, "/connections/7"),
    ] {
        let (status, answer) = ask(&app, method, path, "").await?;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(answer.contains("no connection"), "{path}: {answer}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn client_resumes_without_loss_after_forced_close() -> TestResult {
    let app = app(10);
    let (mut events, uuid) = open(&app, "/events?topic=a").await?;
    publish(&app, "/topics/a", "1").await?;
    assert_eq!(next(&mut events).await?, "message:1");

    let (status, _) = ask(&app, Method::DELETE, &format!("/connections/{uuid}"), "").await?;
    assert_eq!(status, StatusCode::NO_CONTENT);
    events.end().await?;
    publish(&app, "/topics/a", "2").await?;

    let path = format!("/events?topic=a&lastEventId={}", events.last_event_id());
    let (mut events, _) = open(&app, &path).await?;
    publish(&app, "/topics/a", "3").await?;
    assert_eq!(next(&mut events).await?, "message:2");
    assert_eq!(next(&mut events).await?, "message:3");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn client_behind_the_history_gets_a_gap() -> TestResult {
    let app = app(2);
    let id = publish(&app, "/topics/a", "1").await?;
    for text in ["2", "3", "4"] {
        publish(&app, "/topics/a", text).await?;
    }
    let (mut events, _) = open(&app, &format!("/events?topic=a&lastEventId={id}")).await?;
    let gap = next(&mut events).await?;
    assert_eq!(gap, r#"gap:{"reason":"evicted","missed":null}"#);
    Ok(())
}

#[tokio::test]
async fn page_and_script_are_served_with_their_content_types() -> TestResult {
    for (path, expected) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
    ] {
        let request = Request::get(path).body(Body::empty())?;
        let response = app(1).oneshot(request).await?;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], expected);
    }
    Ok(())
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn hubs_on_one_redis_log_share_events() -> TestResult {
    let redis = servers::redis::RedisServer::start().await;
    are_one(["--redis".to_owned(), redis.url()]).await
}

#[cfg(feature = "nats")]
#[tokio::test]
async fn hubs_on_one_nats_log_share_events() -> TestResult {
    let nats = servers::nats::NatsServer::start().await;
    are_one(["--nats".to_owned(), nats.url()]).await
}

#[cfg(any(feature = "nats", feature = "redis"))]
async fn are_one(args: [String; 2]) -> TestResult {
    let options = Options::parse(args.into_iter())?;
    let mut hubs = Vec::new();
    for _ in 0..2 {
        let broker = broker(&options).await?;
        hubs.push(super::app(Hub::new(options.clone(), broker)));
    }
    let (mut here, _) = open(&hubs[0], "/events?topic=news").await?;
    let (mut there, _) = open(&hubs[1], "/events?topic=news").await?;
    for events in [&mut here, &mut there] {
        while events.last_event_id().is_empty() {
            events.event().await?;
        }
    }
    let first = publish(&hubs[0], "/topics/news", "1").await?;
    publish(&hubs[1], "/topics/news", "2").await?;
    for events in [&mut here, &mut there] {
        assert_eq!(next(events).await?, "message:1");
        assert_eq!(next(events).await?, "message:2");
    }
    // A client moves to the other hub.
    let path = format!("/events?topic=news&lastEventId={first}");
    let (mut back, _) = open(&hubs[1], &path).await?;
    assert_eq!(next(&mut back).await?, "message:2");
    Ok(())
}

#[cfg(not(any(feature = "nats", feature = "redis")))]
#[test]
fn option_of_a_missing_feature_names_it() {
    for (option, feature) in [("--redis", "redis"), ("--nats", "nats")] {
        let args = [option.to_owned(), "redis://127.0.0.1".to_owned()];
        let error = Options::parse(args.into_iter()).unwrap_err();
        assert_eq!(
            error,
            format!("{option} needs a hub built with `--features {feature}`")
        );
    }
}
