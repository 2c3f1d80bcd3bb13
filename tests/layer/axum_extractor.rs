//! Feature "axum": the connection as an extractor, and the crate's errors as responses.

use super::paths;
use axum::{
    Router,
    body::{Body, to_bytes},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_sse::{
    Error, Event, SseConnection, SseLayer, axum::SseRejection, connection::TrySendError,
    layer::OutboxLimits, test_util,
};

async fn hello(sse: SseConnection) -> Result<(), Error> {
    sse.send(Event::message("hello")).await?;
    Ok(())
}

fn app() -> Router {
    Router::new()
        .route("/events", get(hello).post(hello))
        .route("/elsewhere", post(hello))
        .layer(SseLayer::new("/events"))
}

fn request(method: &str, path: &str, accept: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    request
        .header("accept", accept)
        .body(Body::empty())
        .unwrap()
}

async fn text_of(response: Response) -> String {
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.into()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn handler_extracts_the_connection() {
    let request = request("GET", "/events", "text/event-stream");
    let response = paths::open(app(), request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut events = response.into_body();
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    assert_eq!(events.event().await.unwrap().data, "hello");
    events.end().await.unwrap();
}

#[tokio::test]
async fn excluding_event_streams_gets_406_with_vary_accept() {
    let request = request("GET", "/events", "application/json");
    let response = app().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE);
    assert_eq!(response.headers()["vary"], "accept");
    let text = text_of(response).await;
    assert!(text.contains("text/event-stream"), "{text}");
}

#[tokio::test]
async fn route_without_layer_gets_500_with_advice() {
    let expected = "no SseLayer in front of this route: check its path, its method, and that \
                    `.layer` comes after `.route`";
    for (method, path) in [("POST", "/events"), ("POST", "/elsewhere")] {
        let response = app().oneshot(request(method, path, "*/*")).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(text_of(response).await, expected);
    }
    let layer_first = Router::<()>::new()
        .layer(SseLayer::new("/events"))
        .route("/events", get(hello));
    let request = request("GET", "/events", "text/event-stream");
    let response = layer_first.oneshot(request).await.unwrap();
    assert_eq!(text_of(response).await, expected);
    assert_eq!(SseRejection::NoLayer.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn optional_extractor_also_serves_plain_requests() {
    async fn both(sse: Option<SseConnection>) -> Result<&'static str, Error> {
        if let Some(sse) = sse {
            sse.send(Event::message("an event")).await?;
        }
        Ok("a page")
    }

    let app = Router::new()
        .route("/", get(both))
        .layer(SseLayer::any_path());
    let page = request("GET", "/", "text/html");
    let response = app.clone().oneshot(page).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-length"], "6");
    assert_eq!(text_of(response).await, "a page");

    let stream = request("GET", "/", "text/event-stream");
    let response = paths::open(app, stream).await.unwrap();
    assert!(!response.headers().contains_key("content-length"));
    let mut events = response.into_body();
    events.event().await.unwrap();
    assert_eq!(events.event().await.unwrap().data, "an event");
    events.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn axum_and_layer_capture_equal_path_parameters() {
    use axum::extract::Path;

    async fn room(Path(room): Path<String>, sse: SseConnection) -> Result<(), Error> {
        assert_eq!(sse.param("room"), Some(&*room));
        sse.send(Event::message(room)).await?;
        Ok(())
    }

    let app = Router::new()
        .route("/rooms/{room}/events", get(room))
        .layer(SseLayer::new("/rooms/{room}/events").welcome(None));
    let request = request("GET", "/rooms/a%20b%2Fc/events", "*/*");
    let mut events = paths::open(app, request).await.unwrap().into_body();
    assert_eq!(events.event().await.unwrap().data, "a b/c");
}

#[tokio::test(start_paused = true)]
async fn nested_layer_sees_stripped_path_outer_layer_full_path() {
    let inner = Router::new().route("/events", get(hello));
    let inside = inner.clone().layer(SseLayer::new("/events"));
    let inside = Router::new().nest("/api", inside);
    let outside = Router::new().nest("/api", inner);
    let outside = outside.layer(SseLayer::new("/api/events"));
    for app in [inside, outside] {
        let request = request("GET", "/api/events", "*/*");
        let response = paths::open(app, request).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut events = response.into_body();
        assert_eq!(events.event().await.unwrap().event_type, "welcome");
    }
}

#[tokio::test(start_paused = true)]
async fn handler_error_after_start_aborts_the_stream() {
    async fn fails(sse: SseConnection) -> Result<(), Error> {
        sse.send(Event::message("a")).await?;
        sse.send(Event::new("two\nlines", "b")?).await?;
        Ok(())
    }

    let app = Router::new().route("/events", get(fails));
    let app = app.layer(SseLayer::new("/events").welcome(None));
    let request = request("GET", "/events", "*/*");
    let mut events = paths::open(app, request).await.unwrap().into_body();
    assert_eq!(events.event().await.unwrap().data, "a");
    let error = events.event().await.unwrap_err();
    assert!(matches!(error, test_util::ReadError::Broken(_)), "{error}");
}

#[tokio::test]
async fn invalid_event_gets_500_without_details() {
    async fn fails(sse: SseConnection) -> Result<(), Error> {
        sse.send(Event::new("secret\ntype", "a")?).await?;
        Ok(())
    }

    let app = Router::new().route("/events", get(fails));
    let app = app.layer(SseLayer::new("/events"));
    let request = request("GET", "/events", "*/*");
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!text_of(response).await.contains("type"));
}

#[tokio::test(start_paused = true)]
async fn errors_of_sending_are_503() {
    let layer = SseLayer::any_path().outbox(OutboxLimits::new().events(1).bytes(1));
    let (sse, mut events) = paths::connection_of(&layer, Request::default()).await;
    sse.try_send(Event::message("a")).unwrap();
    let full = sse.try_send(Event::message("b")).unwrap_err();
    assert!(matches!(full, TrySendError::Full(_)));
    let full = Error::from(full);
    sse.close();
    let refused = sse.send(Event::message("c")).await.unwrap_err();
    let more = tokio_stream::iter([Ok::<_, Error>(Event::message("d"))]);
    let closed = sse.send_all(more).await.unwrap_err();
    events.event().await.unwrap();

    for response in [
        full.into_response(),
        refused.into_response(),
        closed.into_response(),
        Error::from(closed).into_response(),
    ] {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(!text_of(response).await.is_empty());
    }
}
