//! Clients that leave, over real sockets: noticed without a write.

use super::SERVER;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use support::Held;
use support::{
    NOTICED,
    client::Client,
    raw::Raw,
    server::{Hyper, Server},
    until, within,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tower_sse::{CloseReason, Connections, Event, SseConnection, SseLayer};

type Handles = mpsc::Sender<(SseConnection, oneshot::Receiver<()>)>;

/// Hands its connection out, with what tells that this handler was dropped, and then waits inside
/// the body.
async fn wait(State(handles): State<Handles>, sse: SseConnection) {
    sse.start();
    let (is_here, dropped) = oneshot::channel();
    handles.try_send((sse, dropped)).unwrap();
    std::future::pending::<()>().await;
    drop(is_here);
}

/// Reads the request's body first.
async fn read_and_wait(State(handles): State<Handles>, sse: SseConnection, body: Bytes) {
    sse.send(Event::message(format!("read {}", body.len())))
        .await
        .unwrap();
    wait(State(handles), sse).await;
}

struct Fixture {
    server: Server,
    connections: Connections,
    handed: mpsc::Receiver<(SseConnection, oneshot::Receiver<()>)>,
}

impl Fixture {
    /// A server that never writes of its own accord.
    async fn start() -> Self {
        let connections = Connections::new();
        let (handles, handed) = mpsc::channel(100);
        let layer = SseLayer::any_path()
            .methods([Method::GET, Method::POST])
            .registry(&connections)
            .keep_alive(None);
        let app = Router::new()
            .route("/events", get(wait))
            .route("/events", post(read_and_wait))
            .with_state(handles)
            .layer(layer);
        Self {
            server: Server::hyper_or(SERVER, Hyper::Auto, app).await,
            connections,
            handed,
        }
    }

    /// Lets the client leave, and asks that the one connection that is open hears of it in time.
    async fn is_noticed(&mut self, leave: impl FnOnce()) {
        let (sse, dropped) = self.handed.recv().await.unwrap();
        assert!(!sse.is_closed());
        leave();
        let noticed = timeout(NOTICED, async {
            assert_eq!(sse.closed().await, CloseReason::ClientGone);
            assert!(dropped.await.is_err(), "the handler was not dropped");
        });
        noticed.await.expect("noticed in time");
        let connections = &self.connections;
        until("nothing to be registered", || connections.held() == 0).await;
        assert_eq!(
            sse.try_send(Event::message("late"))
                .unwrap_err()
                .to_string(),
            "event stream is closed: the client left",
        );
    }

    async fn raw(&self) -> Raw {
        let request = "GET /events HTTP/1.1\r\nhost: x\r\n";
        let mut client = Raw::request(self.server.address, request).await;
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().event_type, "welcome");
        client
    }
}

#[tokio::test]
async fn socket_close_is_detected_without_a_write() {
    let mut fixture = Fixture::start().await;
    let client = fixture.raw().await;
    fixture.is_noticed(|| drop(client)).await;
}

#[tokio::test]
async fn socket_reset_is_detected_without_a_write() {
    let mut fixture = Fixture::start().await;
    let client = fixture.raw().await;
    fixture.is_noticed(|| client.reset()).await;
}

#[tokio::test]
async fn http_2_stream_reset_is_detected_without_a_write() {
    let mut fixture = Fixture::start().await;
    let mut client = Client::connect(fixture.server.address, Version::HTTP_2).await;
    let events = client.open("/events").await;
    fixture.is_noticed(|| drop(events)).await;

    // The connection itself goes on.
    let events = client.open("/events").await;
    fixture.is_noticed(|| drop(events)).await;
}

#[tokio::test]
async fn http_2_connection_close_is_detected_on_each_stream() {
    let mut fixture = Fixture::start().await;
    let mut client = Client::connect(fixture.server.address, Version::HTTP_2).await;
    let streams = [client.open("/events").await, client.open("/events").await];
    let (first, _) = fixture.handed.recv().await.unwrap();
    fixture.is_noticed(|| drop((client, streams))).await;
    let reason = timeout(NOTICED, first.closed()).await.unwrap();
    assert_eq!(reason, CloseReason::ClientGone);
}

#[tokio::test]
async fn disconnect_of_a_post_is_detected_once_its_body_is_read() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut fixture = Fixture::start().await;
        let mut client = Client::connect(fixture.server.address, version).await;
        let mut request = client.request(Method::POST, "/events");
        *request.body_mut() = Bytes::from(vec![b'x'; 300_000]).into();
        let mut events = client.events(request).await.into_body();
        assert_eq!(events.event().await.unwrap().event_type, "welcome");
        assert_eq!(events.event().await.unwrap().data, "read 300000");
        fixture.is_noticed(|| drop((client, events))).await;
    }
}

/// As a client of a chat-completion interface does it.
#[tokio::test]
async fn completions_stream_to_a_post_accepting_json() {
    async fn complete(sse: Option<SseConnection>, body: Json<serde_json::Value>) -> String {
        let prompt = body["prompt"].as_str().unwrap_or_default().to_owned();
        let Some(sse) = sse.filter(|_| body["stream"] == true) else {
            return prompt;
        };
        for word in prompt.split(' ') {
            let _ = sse.send(Event::message(word)).await;
        }
        let _ = sse.send(Event::message("[DONE]")).await;
        String::new()
    }
    let connections = Connections::new();
    let layer = SseLayer::completions("/v1/completions").registry(&connections);
    let app = Router::new()
        .route("/v1/completions", post(complete))
        .layer(layer);
    let server = Server::chosen(SERVER, app).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    let ask = |client: &Client, body: &'static str| {
        let mut request = client.request(Method::POST, "/v1/completions");
        let json = header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, json.clone());
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        *request.body_mut() = body.into();
        request
    };

    let request = ask(&client, r#"{"prompt": "to be", "stream": true}"#);
    let response = client.send(request).await;
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "text/event-stream"
    );
    let body = http_body_util::BodyExt::collect(response.into_body());
    let body = within("the stream", body).await.unwrap().to_bytes();
    assert_eq!(&*body, b"data: to\n\ndata: be\n\ndata: [DONE]\n\n");

    let request = ask(&client, r#"{"prompt": "to be"}"#);
    let (status, headers, body) = client.whole(request).await;
    assert_eq!((status, &*body), (StatusCode::OK, &b"to be"[..]));
    assert_eq!(headers[header::CONTENT_LENGTH], "5");
    until("nothing to be registered", || connections.held() == 0).await;
}
