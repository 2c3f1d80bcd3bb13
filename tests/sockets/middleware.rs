//! Inside tower-http's layers, over real sockets.

use super::SERVER;
use std::time::Duration;
use support::Held;

use axum::{
    Router,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use support::{
    client::Client,
    server::{Hyper, Server},
    until,
};
use tokio::time::Instant;
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    cors::CorsLayer,
    limit::RequestBodyLimitLayer,
    timeout::{ResponseBodyTimeoutLayer, TimeoutLayer},
    trace::TraceLayer,
};
use tower_sse::{
    Connections, Event, SseConnection, SseLayer, event::Decoded, test_util::ReadError,
};

/// Of requests, and of the bodies of responses.
const TIMEOUT: Duration = Duration::from_secs(2);
const TEXT: &str = "a text that is long enough to be worth compressing, a text that is long enough";

/// Answers first; the stream goes on without a handler.
async fn answer_first(sse: SseConnection) -> Response<String> {
    tokio::spawn(async move {
        let _ = sse.send(Event::message(TEXT)).await;
        sse.closed().await;
    });
    Response::new("replaced".to_owned())
}

/// Sends first, and runs inside the body.
async fn send_first(sse: SseConnection) {
    let _ = sse.send(Event::message(TEXT)).await;
    sse.closed().await;
}

/// Reads a request body that may be too large.
async fn read_first(sse: SseConnection, body: Bytes) {
    let _ = sse.send(Event::message(body.len().to_string())).await;
}

async fn panic_first(_: SseConnection) {
    panic!("on purpose, before the start");
}

async fn panic_later(sse: SseConnection) {
    let _ = sse.send(Event::message("before")).await;
    panic!("on purpose, after the start");
}

async fn hang(_: SseConnection) {
    std::future::pending().await
}

/// An app inside all the layers that one may have, with `layer` where it belongs.
async fn serve(layer: SseLayer) -> Server {
    let app = Router::new()
        .route("/answer-first", get(answer_first))
        .route("/send-first", get(send_first))
        .route("/read-first", post(read_first))
        .route("/panic-first", get(panic_first))
        .route("/panic-later", get(panic_later))
        .route("/hang", get(hang))
        .route("/plain", get(async || TEXT));
    // The bodies of the layers inside are not axum's, nor are those of the layers outside.
    let service = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(CatchPanicLayer::new())
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            TIMEOUT,
        ))
        .layer(CompressionLayer::new())
        .layer(CorsLayer::permissive())
        .layer(RequestBodyLimitLayer::new(1000))
        .layer(layer)
        .layer(ResponseBodyTimeoutLayer::new(TIMEOUT))
        .service(app);
    Server::hyper_or(SERVER, Hyper::Auto, service).await
}

fn layer(connections: &Connections) -> SseLayer {
    SseLayer::new("/{*rest}")
        .methods([Method::GET, Method::POST])
        .registry(connections)
        .keep_alive(Duration::from_millis(64))
}

/// As a browser asks, from another origin.
fn ask(client: &Client, method: Method, path: &str) -> http::Request<http_body_util::Full<Bytes>> {
    let mut request = client.request(method, path);
    let headers = request.headers_mut();
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::ORIGIN, HeaderValue::from_static("http://other"));
    request
}

fn has_cors(headers: &HeaderMap) {
    let allowed: Vec<_> = headers
        .get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN)
        .iter()
        .collect();
    assert_eq!(allowed, ["*"]);
}

const BOTH: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

async fn outlives_the_timeouts(version: Version, path: &str) {
    let connections = Connections::new();
    let server = serve(layer(&connections)).await;
    let mut client = Client::connect(server.address, version).await;
    let started = Instant::now();
    let request = ask(&client, Method::GET, path);
    let response = client.events(request).await;
    let headers = response.headers();
    assert!(!headers.contains_key(header::CONTENT_ENCODING));
    assert!(!headers.contains_key(header::CONNECTION));
    assert!(!headers.contains_key(header::CONTENT_LENGTH));
    has_cors(headers);

    let mut events = response.into_body();
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    assert_eq!(events.event().await.unwrap().data, TEXT);
    // Heartbeats are what comes meanwhile.
    while started.elapsed() < TIMEOUT + TIMEOUT / 2 {
        let heartbeat = Decoded::Comment(String::new());
        assert_eq!(events.decoded().await.unwrap(), heartbeat);
    }
    assert_eq!(connections.close_where(|_| true), 1);
    events.end().await.unwrap();
}

#[tokio::test]
async fn a_stream_outlives_the_timeouts_and_is_never_compressed() {
    tokio::join!(
        outlives_the_timeouts(Version::HTTP_11, "/answer-first"),
        outlives_the_timeouts(Version::HTTP_11, "/send-first"),
        outlives_the_timeouts(Version::HTTP_2, "/answer-first"),
        outlives_the_timeouts(Version::HTTP_2, "/send-first"),
    );
}

#[tokio::test]
async fn other_responses_are_still_compressed() {
    for version in BOTH {
        let connections = Connections::new();
        let server = serve(layer(&connections)).await;
        let mut client = Client::connect(server.address, version).await;
        let request = ask(&client, Method::GET, "/plain");
        let (status, headers, body) = client.whole(request).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
        assert!(body.starts_with(&[0x1f, 0x8b]), "a gzip file");
        has_cors(&headers);
        until("nothing to be registered", || connections.held() == 0).await;
    }
}

#[tokio::test]
async fn responses_of_outer_layers_are_unchanged() {
    let connections = Connections::new();
    let server = serve(layer(&connections)).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;

    let request = ask(&client, Method::GET, "/panic-first");
    let (status, ..) = client.whole(request).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);

    let request = ask(&client, Method::GET, "/hang");
    let (status, ..) = client.whole(request).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);

    let mut request = ask(&client, Method::POST, "/read-first");
    *request.body_mut() = Bytes::from(vec![b'x'; 1001]).into();
    let (status, ..) = client.whole(request).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);

    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    let mut request = ask(&client, Method::OPTIONS, "/send-first");
    let get = HeaderValue::from_static("GET");
    let headers = request.headers_mut();
    headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, get);
    let (status, headers, _) = client.whole(request).await;
    assert_eq!(status, StatusCode::OK);
    has_cors(&headers);

    until("nothing to be registered", || connections.held() == 0).await;
}

#[tokio::test]
async fn a_post_within_the_limit_streams() {
    let connections = Connections::new();
    let server = serve(layer(&connections)).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    let mut request = ask(&client, Method::POST, "/read-first");
    *request.body_mut() = Bytes::from(vec![b'x'; 1000]).into();
    let mut events = client.events(request).await.into_body();
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    assert_eq!(events.event().await.unwrap().data, "1000");
    events.end().await.unwrap();
}

#[tokio::test]
async fn panic_inside_the_body_aborts_only_its_stream() {
    for version in BOTH {
        let connections = Connections::new();
        let server = serve(layer(&connections)).await;
        let mut client = Client::connect(server.address, version).await;
        let mut events = client.open("/panic-later").await;
        assert_eq!(events.event().await.unwrap().data, "before");
        let end = events.event().await;
        assert!(matches!(end, Err(ReadError::Broken(_))), "{end:?}");
        until("nothing to be registered", || connections.held() == 0).await;

        if version == Version::HTTP_11 {
            client = Client::connect(server.address, version).await;
        }
        assert_eq!(client.get("/plain").await.0, StatusCode::OK);
    }
}

/// axum's own way to put layers on, with the same ones.
#[tokio::test]
async fn layer_stack_applies_to_an_axum_router() {
    let connections = Connections::new();
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(CatchPanicLayer::new())
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            TIMEOUT,
        ))
        .layer(CompressionLayer::new())
        .layer(CorsLayer::permissive())
        .layer(RequestBodyLimitLayer::new(1000))
        .layer(layer(&connections))
        .layer(ResponseBodyTimeoutLayer::new(TIMEOUT));
    let app = Router::new()
        .route("/send-first", get(send_first))
        .layer(stack);
    let server = Server::chosen(SERVER, app).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    let mut events = client.open("/send-first").await;
    assert_eq!(events.event().await.unwrap().data, TEXT);
    assert_eq!(connections.close_where(|_| true), 1);
    events.end().await.unwrap();
}
