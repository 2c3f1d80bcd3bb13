//! The smallest real program: an event stream, and a page that shows it.
//!
//! `cargo run --example hello` serves the page at `/` and the stream at `/events`, on port 3000 or
//! on the one that `PORT` names.

use std::{
    env,
    error::Error,
    net::Ipv4Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::Html,
    routing::{get, post},
};
use tokio::time::interval;
use tower_sse::{
    Connections, Event, SseConnection, SseLayer,
    serve::{self, TcpListener},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let port: u16 = port
        .parse()
        .map_err(|_| format!("PORT is no number from 0 to 65535: {port}"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|error| format!("cannot listen on port {port}: {error}"))?;

    println!("Open http://{}", listener.local_addr()?);
    serve::serve(listener, app()).await?;
    Ok(())
}

fn app() -> Router {
    let connections = Connections::new();
    Router::new()
        .route("/", get(async || Html(include_str!("hello.html"))))
        .route("/events", get(events))
        .route("/close/{uuid}", post(close))
        .layer(SseLayer::new("/events").registry(&connections))
        .with_state(connections)
}

/// Straight-line code: it runs inside the response, and is dropped when the client leaves.
async fn events(sse: SseConnection) -> Result<(), tower_sse::Error> {
    sse.start(); // the welcome, with the uuid, goes out now

    let mut seconds = interval(SECOND);
    seconds.tick().await; // the first is due at once
    seconds.tick().await;
    let greeting = "Hello! The server sent this unasked.";
    sse.send(Event::new("greeting", greeting)?).await?;

    loop {
        seconds.tick().await;
        sse.send(Event::json("clock", &milliseconds())?).await?;
    }
}

/// Closes a stream with a last event, on which the page closes its `EventSource`: left alone, that
/// would come back.
///
/// Whoever knows the uuid may do this here. A program with users looks first whose stream it is.
async fn close(
    State(connections): State<Connections>,
    Path(uuid): Path<String>,
) -> Result<StatusCode, tower_sse::Error> {
    let sse = uuid.parse().ok().and_then(|uuid| connections.get(&uuid));
    let Some(sse) = sse else {
        return Ok(StatusCode::NOT_FOUND);
    };
    sse.close_with(Event::new("bye", "The server has closed this stream.")?)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The time of day, as JavaScript counts it.
fn milliseconds() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Request};
    use tokio::time::Instant;
    use tower::ServiceExt;
    use tower_sse::test_util::{self, EventReader};

    type TestResult = Result<(), Box<dyn Error>>;

    /// Opens the stream, reads its welcome and gives the uuid in it.
    async fn open(app: &Router) -> Result<(EventReader, String), Box<dyn Error>> {
        let request = Request::get("/events").body(Body::empty())?;
        let mut events = test_util::open(app.clone(), request).await?.into_body();
        let welcome = events.event().await?;
        assert_eq!(welcome.event_type, "welcome");
        let data: serde_json::Value = serde_json::from_str(&welcome.data)?;
        let uuid = data["uuid"].as_str().ok_or("the welcome has no uuid")?;
        Ok((events, uuid.to_owned()))
    }

    async fn post_close(app: &Router, uuid: &str) -> Result<StatusCode, Box<dyn Error>> {
        let request = Request::post(format!("/close/{uuid}")).body(Body::empty())?;
        Ok(app.clone().oneshot(request).await?.status())
    }

    #[tokio::test(start_paused = true)]
    async fn greeting_is_sent_after_a_second_then_the_clock() -> TestResult {
        let start = Instant::now();
        let (mut events, _) = open(&app()).await?;
        assert_eq!(start.elapsed(), Duration::ZERO);

        assert_eq!(events.event().await?.event_type, "greeting");
        assert_eq!(start.elapsed(), SECOND);

        for seconds in 2..5 {
            let clock = events.event().await?;
            assert_eq!(clock.event_type, "clock");
            assert!(clock.data.parse::<u64>().is_ok(), "{clock:?}");
            assert_eq!(start.elapsed(), SECOND * seconds);
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn close_request_ends_only_the_named_stream() -> TestResult {
        let app = app();
        let (mut closed, uuid) = open(&app).await?;
        let (mut other, _) = open(&app).await?;

        assert_eq!(post_close(&app, &uuid).await?, StatusCode::NO_CONTENT);
        assert_eq!(closed.event().await?.event_type, "bye");
        closed.end().await?;
        assert_eq!(other.event().await?.event_type, "greeting");

        assert_eq!(post_close(&app, &uuid).await?, StatusCode::NOT_FOUND);
        assert_eq!(post_close(&app, "nobody").await?, StatusCode::NOT_FOUND);
        Ok(())
    }

    #[tokio::test]
    async fn the_page_is_served_as_html() -> TestResult {
        let request = Request::get("/").body(Body::empty())?;
        let response = app().oneshot(request).await?;
        assert_eq!(response.status(), StatusCode::OK);
        let content_type = &response.headers()["content-type"];
        assert_eq!(content_type, "text/html; charset=utf-8");
        Ok(())
    }
}
