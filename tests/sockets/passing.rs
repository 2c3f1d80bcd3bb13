//! Under a wildcard path, over real sockets: answers that are no stream of ours come through byte
//! for byte.

use super::SERVER;
use std::{convert::Infallible, sync::Arc};
use support::Held;

use axum::{
    Json, Router,
    extract::State,
    http::header,
    response::{Html, IntoResponse, Sse, sse},
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use http::Version;
use support::{client::Client, raw::Raw, server::Server, until};
use tokio::sync::Notify;
use tower_sse::{Connections, SseConnection, SseLayer, event::Decoded};

/// Asked for a stream it would be one; this request did not ask.
async fn json(_: Option<SseConnection>) -> impl IntoResponse {
    let etag = [(header::ETAG, "\"1\"")];
    (
        etag,
        Json(serde_json::json!({"answer": 42, "words": ["a", "b"]})),
    )
}

async fn index() -> Html<&'static str> {
    Html("<!doctype html>\n<title>Index</title>\n")
}

/// axum's own event stream, though it keeps its connection as one that wants a stream would.
async fn own_sse(
    kept: Option<SseConnection>,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let events = (0..20).map(move |number| {
        let _kept = &kept;
        let event = sse::Event::default().event("own").id(number.to_string());
        Ok(event.data(format!("{number}\nsecond line")))
    });
    Sse::new(stream::iter(events))
}

async fn large() -> Vec<u8> {
    (0..2_000_000).map(|at| (at % 251) as u8).collect()
}

fn plain_app() -> Router {
    Router::new()
        .route("/json", get(json))
        .route("/index.html", get(index))
        .route("/own", get(own_sse))
        .route("/large", get(large))
        .route("/empty", get(async || ()))
        .route("/none", get(async || http::StatusCode::NO_CONTENT))
        .route(
            "/moved",
            get(async || axum::response::Redirect::to("/json")),
        )
        .route("/post", post(json))
}

/// All that the server sends in answer to a request, but for the date.
async fn bytes_of(server: &Server, method: &str, path: &str) -> Vec<u8> {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    let mut client = Raw::request(server.address, &request).await;
    let bytes = client.rest().await;
    let date = bytes.windows(8).position(|window| window == b"\r\ndate: ");
    let date = date.expect("a date");
    let after = date
        + 2
        + bytes[date + 2..]
            .iter()
            .position(|byte| *byte == b'\r')
            .unwrap();
    [&bytes[..date], &bytes[after..]].concat()
}

#[tokio::test]
async fn other_responses_pass_a_wildcard_path_byte_for_byte() {
    let connections = Connections::new();
    let layer = SseLayer::new("/{*rest}").registry(&connections);
    let plain = Server::chosen(SERVER, plain_app()).await;
    let layered = Server::chosen(SERVER, plain_app().layer(layer)).await;

    let requests = [
        ("GET", "/json"),
        ("GET", "/index.html"),
        ("GET", "/own"),
        ("GET", "/large"),
        ("GET", "/empty"),
        ("GET", "/none"),
        ("GET", "/moved"),
        ("GET", "/unknown"),
        ("HEAD", "/json"),
        ("HEAD", "/index.html"),
        ("HEAD", "/own"),
        ("POST", "/post"),
        ("POST", "/json"),
        ("OPTIONS", "/json"),
    ];
    for (method, path) in requests {
        let answer = bytes_of(&layered, method, path).await;
        let expected = bytes_of(&plain, method, path).await;
        let is_same = answer == expected;
        assert!(
            is_same,
            "{method} {path}:\n{}\ninstead of\n{}",
            answer.escape_ascii(),
            expected.escape_ascii(),
        );
        assert!(answer.starts_with(b"HTTP/1.1 "), "{method} {path}");
        until("nothing to be registered", || connections.held() == 0).await;
    }
}

#[tokio::test]
async fn event_stream_of_the_handler_passes_unregistered() {
    async fn slow(
        State(next): State<Arc<Notify>>,
        kept: SseConnection,
    ) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
        let events = stream::iter(0..3).then(move |number| {
            assert!(kept.is_closed());
            let next = Arc::clone(&next);
            async move {
                next.notified().await;
                Ok(sse::Event::default().data(number.to_string()))
            }
        });
        Sse::new(events)
    }
    let connections = Connections::new();
    let next = Arc::new(Notify::new());
    let app = Router::new()
        .route("/own", get(slow))
        .with_state(Arc::clone(&next))
        .layer(SseLayer::new("/{*rest}").registry(&connections));
    let server = Server::chosen(SERVER, app).await;

    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    let request = client.request(http::Method::GET, "/own");
    let mut events = client.events(request).await.into_body();
    for number in 0..3 {
        assert_eq!(connections.held(), 0);
        next.notify_one();
        let Decoded::Event(event) = events.decoded().await.unwrap() else {
            panic!("something that the handler did not send");
        };
        assert_eq!(event.data, number.to_string());
    }
    events.end().await.unwrap();
}
