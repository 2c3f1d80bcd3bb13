//! The code that the design shows for limits, ends and shutdowns, as its users would write it.

use super::paths;
use std::{convert::Infallible, error::Error, time::Duration};
use support::Held;

use axum::{
    Extension, Json, Router,
    body::Body,
    response::sse,
    routing::{get, post},
};
use futures_util::stream::{self, Stream, StreamExt};
use http::{Request, StatusCode};
use tokio::time::Instant;
use tower::ServiceExt;
use tower_sse::{
    Broker, CloseReason, Connections, Event, SseConnection, SseLayer,
    layer::Limits,
    test_util::{EventReader, ReadError},
};

type TestResult = Result<(), Box<dyn Error>>;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct UserId(u64);

async fn open(app: &Router, path: &str) -> Result<EventReader, Box<dyn Error>> {
    let request = Request::get(path).body(Body::empty())?;
    let response = paths::open(app.clone(), request).await?;
    assert_eq!(response.status(), StatusCode::OK);
    Ok(response.into_body().time_limit(100 * SECOND))
}

/// The type of the first event.
async fn first(app: &Router, path: &str) -> Result<(EventReader, String), Box<dyn Error>> {
    let mut events = open(app, path).await?;
    let event = events.event().await?;
    Ok((events, event.event_type))
}

#[tokio::test(start_paused = true)]
async fn handler_limits_the_streams_of_each_user() -> TestResult {
    async fn events(
        Extension(user): Extension<UserId>,
        Extension(broker): Extension<Broker>,
        sse: SseConnection,
    ) -> Result<(), tower_sse::Error> {
        sse.limit(&user, 2)?;
        let topic = format!("user:{}", user.0);
        broker.subscribe(&sse, topic).await?.start();
        Ok(())
    }
    let layer = SseLayer::new("/events");
    let figures = layer.registered().clone();
    let app = |user: u64, broker: &Broker| {
        Router::new()
            .route("/events", get(events))
            .layer(layer.clone())
            .layer(Extension(UserId(user)))
            .layer(Extension(broker.clone()))
    };
    let broker = Broker::in_memory();
    let (one, other) = (app(1, &broker), app(2, &broker));

    let mut kept = Vec::new();
    for app in [&one, &one, &other] {
        let (events, welcome) = first(app, "/events").await?;
        assert_eq!(welcome, "welcome");
        kept.push(events);
    }
    let (mut refused, reconnect) = first(&one, "/events").await?;
    assert_eq!(reconnect, "reconnect");
    refused.end().await?;
    assert_eq!(figures.stats().closed(CloseReason::Refused), 1);

    kept.remove(0);
    let (_events, welcome) = first(&one, "/events").await?;
    assert_eq!(welcome, "welcome");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn key_limit_from_the_request_needs_no_handler() -> TestResult {
    let layer = SseLayer::new("/events")
        .max_connections(3)
        .limits(
            Limits::new().connections_per(1, |request| request.extensions.get::<UserId>().cloned()),
        )
        .hold_open(true);
    let app = |user: u64| {
        Router::new()
            .route("/events", get(async || ()))
            .layer(layer.clone())
            .layer(Extension(UserId(user)))
    };
    let mut kept = Vec::new();
    for (user, expected) in [
        (1, "welcome"),
        (1, "reconnect"),
        (2, "welcome"),
        (3, "welcome"),
        (4, "reconnect"),
    ] {
        let (events, found) = first(&app(user), "/events").await?;
        assert_eq!(found, expected, "user {user}");
        kept.push(events);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_the_token_that_opened_it_expires() -> TestResult {
    let expiry = Instant::now() + 30 * SECOND;
    let events = async move |sse: SseConnection| sse.close_at(expiry);
    let layer = SseLayer::new("/events").hold_open(true);
    let app = Router::new().route("/events", get(events)).layer(layer);
    let (mut events, _) = first(&app, "/events").await?;
    events.end().await?;
    let late = Instant::now() - expiry;
    assert!(late <= Duration::from_millis(130), "{late:?}");
    Ok(())
}

/// Counts until the end of the stream has come, and says goodbye.
async fn count(sse: SseConnection) -> Result<(), tower_sse::Error> {
    for number in 1.. {
        sse.send(Event::json("count", &number)?).await?;
        tokio::select! {
            () = tokio::time::sleep(SECOND) => {}
            reason = sse.ending() => {
                sse.send(Event::new("goodbye", reason.as_str())?).await?;
                break;
            }
        }
    }
    Ok(())
}

/// Never looks whether its time has come.
async fn forever(sse: SseConnection) -> Result<(), tower_sse::Error> {
    loop {
        sse.send(Event::message("on")).await?;
        tokio::time::sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_handlers_and_aborts_at_its_deadline() -> TestResult {
    let connections = Connections::new();
    let layer = SseLayer::new("/count").path("/forever");
    let app = Router::new()
        .route("/count", get(count))
        .route("/forever", get(forever))
        .layer(layer.registry(&connections));
    let (mut counting, _) = first(&app, "/count").await?;
    let (mut unending, _) = first(&app, "/forever").await?;

    assert!(!connections.is_draining());
    let began = Instant::now();
    let drain = connections.drain().over(5 * SECOND).deadline(10 * SECOND);
    let drain = tokio::spawn(drain.into_future());
    let counted = async {
        let mut last = Vec::new();
        while let Ok(event) = counting.event().await {
            last.push(format!("{}:{}", event.event_type, event.data));
        }
        last.split_off(last.len() - 2)
    };
    let cut = async {
        loop {
            match unending.event().await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    };
    let (last, error) = tokio::join!(counted, cut);
    let expected = ["goodbye:drained", r#"reconnect:{"reason":"drained"}"#];
    assert_eq!(last, expected);
    assert!(matches!(error, ReadError::Broken(_)), "{error}");

    let drained = drain.await?;
    assert_eq!((drained.ended, drained.aborted), (1, 1));
    assert!(began.elapsed() <= 11 * SECOND, "{:?}", began.elapsed());
    assert!(connections.is_draining() && connections.held() == 0);
    let (mut refused, reconnect) = first(&app, "/count").await?;
    assert_eq!(reconnect, "reconnect");
    refused.end().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_applications_own_stream_is_adopted_and_drained() -> TestResult {
    async fn ticks() -> sse::Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
        let ticks = stream::iter(["1", "2"]).chain(stream::pending());
        sse::Sse::new(ticks.map(|tick| Ok(sse::Event::default().data(tick))))
    }
    let connections = Connections::new();
    let layer = SseLayer::new("/ticks").adopt(true).registry(&connections);
    let app = Router::new().route("/ticks", get(ticks)).layer(layer);
    let mut events = open(&app, "/ticks").await?;
    assert_eq!(events.event().await?.data, "1");
    assert_eq!(events.event().await?.data, "2");
    assert_eq!(connections.len(), 1);

    let drain = tokio::spawn(connections.drain().into_future());
    assert_eq!(events.event().await?.event_type, "reconnect");
    events.end().await?;
    assert_eq!(drain.await?.ended, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn non_get_request_is_refused_with_a_status() -> TestResult {
    async fn complete(sse: SseConnection, Json(_): Json<String>) -> Result<(), tower_sse::Error> {
        sse.send(Event::message("[DONE]")).await?;
        Ok(())
    }
    let layer = SseLayer::completions("/complete").max_connections(0);
    let app = Router::new()
        .route("/complete", post(complete))
        .layer(layer);
    let request = Request::post("/complete").header("content-type", "application/json");
    let response = app.oneshot(request.body(Body::from("\"a\""))?).await?;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let retry: u64 = response.headers()["retry-after"].to_str()?.parse()?;
    assert!((5..=15).contains(&retry), "{retry}");
    Ok(())
}
