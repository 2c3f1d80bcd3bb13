//! Under axum, over real sockets: where the layer can stand, and how a server is shut down.

use super::SERVER;
use std::convert::Infallible;
use support::Held;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::{MethodRouter, get},
};
use http::{Method, StatusCode, Version, header};
use support::{
    client::Client,
    raw::{End, Raw},
    server::{Hyper, Server},
    until,
};
use tokio::{net::TcpStream, sync::mpsc};
use tower_sse::{Connections, Event, SseConnection, SseLayer};

/// Sends the path that it sees, and lets the stream end.
async fn path(sse: SseConnection, request: Request) -> Result<(), tower_sse::Error> {
    sse.send(Event::message(request.uri().path())).await?;
    Ok(())
}

/// Gets a path from the app, which answers with a welcome, the path that its handler saw, and a
/// clean end.
async fn seen_path(app: Router, path: &str) -> String {
    let server = Server::chosen(SERVER, app).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    let mut events = client.open(path).await;
    let event = events.event().await.unwrap();
    events.end().await.unwrap();
    event.data
}

async fn status(app: Router, path: &str) -> StatusCode {
    let server = Server::chosen(SERVER, app).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    client.get(path).await.0
}

#[tokio::test]
async fn a_layer_of_a_router_makes_streams() {
    let app = Router::new()
        .route("/events", get(path))
        .layer(SseLayer::new("/events"));
    assert_eq!(seen_path(app, "/events").await, "/events");
}

#[tokio::test]
async fn route_layer_makes_streams_and_ignores_unknown_paths() {
    let app = || {
        Router::new()
            .route("/events", get(path))
            .route_layer(SseLayer::new("/{*rest}"))
    };
    assert_eq!(seen_path(app(), "/events").await, "/events");
    assert_eq!(status(app(), "/nowhere").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_layer_of_a_method_router_makes_streams_at_any_path() {
    let events: MethodRouter<(), Infallible> = get(path).layer(SseLayer::any_path());
    let app = Router::new()
        .route("/events", events)
        .route("/plain", get(async || "plain"));
    assert_eq!(seen_path(app, "/events").await, "/events");
}

#[tokio::test]
async fn a_layer_of_a_nested_router_sees_the_path_without_its_prefix() {
    let app = || {
        let inner = Router::new()
            .route("/events", get(path))
            .layer(SseLayer::new("/events"));
        Router::new().nest("/api", inner)
    };
    assert_eq!(seen_path(app(), "/api/events").await, "/events");
}

#[tokio::test]
async fn a_layer_around_a_nest_sees_the_whole_path() {
    let app = |pattern| {
        let inner = Router::new().route("/events", get(path));
        Router::new()
            .nest("/api", inner)
            .layer(SseLayer::new(pattern))
    };
    assert_eq!(
        seen_path(app("/api/events"), "/api/events").await,
        "/events"
    );
    // Not the layer's own: the extractor says so.
    let missed = status(app("/events"), "/api/events").await;
    assert_eq!(missed, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn path_parameters_arrive_decoded() {
    async fn room(sse: SseConnection) -> Result<(), tower_sse::Error> {
        let room = sse.param("room").unwrap_or_default();
        sse.send(Event::message(room)).await?;
        Ok(())
    }
    let app = Router::new()
        .route("/rooms/{id}/events", get(room))
        .layer(SseLayer::new("/rooms/{room}/events"));
    assert_eq!(
        seen_path(app, "/rooms/caf%C3%A9%201/events").await,
        "café 1"
    );
}

/// Hands its connection out, and keeps the stream open until that is closed.
async fn hand_out(State(handles): State<mpsc::Sender<SseConnection>>, sse: SseConnection) {
    sse.start();
    handles.try_send(sse.clone()).unwrap();
    sse.closed().await;
}

#[tokio::test]
async fn two_layers_share_a_registry() {
    let connections = Connections::new();
    let (handles, mut handed) = mpsc::channel(100);
    let app = Router::new()
        .route("/a", get(hand_out))
        .route("/b", get(hand_out))
        .with_state(handles)
        .layer(SseLayer::new("/a").registry(&connections))
        .layer(SseLayer::new("/b").registry(&connections));
    let server = Server::chosen(SERVER, app).await;
    let mut first = Client::connect(server.address, Version::HTTP_11).await;
    let mut second = Client::connect(server.address, Version::HTTP_11).await;

    let mut a = first.open("/a").await;
    let mut b = second.open("/b").await;
    assert_eq!(connections.len(), 2);
    for connection in connections.iter() {
        connection.try_send(Event::message("to all")).unwrap();
    }
    assert_eq!(a.event().await.unwrap().data, "to all");
    assert_eq!(b.event().await.unwrap().data, "to all");

    let to_close = handed.recv().await.unwrap().uuid();
    let closed = connections.close_where(|sse| sse.uuid() == to_close);
    assert_eq!(closed, 1);
    a.end().await.unwrap();
    until("one to be left", || connections.len() == 1).await;
    handed.recv().await.unwrap().close();
    b.end().await.unwrap();
    until("none to be left", || connections.held() == 0).await;
}

#[tokio::test]
async fn graceful_shutdown_waits_until_streams_are_closed() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let connections = Connections::new();
        let (handles, mut handed) = mpsc::channel(100);
        let app = Router::new()
            .route("/events", get(hand_out))
            .with_state(handles)
            .layer(SseLayer::new("/events").registry(&connections));
        let mut server = if version == Version::HTTP_2 {
            Server::hyper_or(SERVER, Hyper::Auto, app).await
        } else {
            Server::chosen(SERVER, app).await
        };
        let mut client = Client::connect(server.address, version).await;
        let mut events = client.open("/events").await;
        let sse = handed.recv().await.unwrap();

        server.begin_stop();
        support::within("the listener to close", async {
            while TcpStream::connect(server.address).await.is_ok() {}
        })
        .await;
        sse.send(Event::message("still here")).await.unwrap();
        assert_eq!(events.event().await.unwrap().data, "still here");
        assert!(!server.is_finished());

        assert_eq!(connections.close_where(|_| true), 1);
        events.end().await.unwrap();
        server.finished().await;
        assert_eq!(connections.held(), 0);
    }
}

#[tokio::test]
async fn head_request_gets_the_stream_head_and_keeps_the_socket() {
    let connections = Connections::new();
    let answer = async |_: SseConnection| Response::new("a body of its own".to_owned());
    let layer = SseLayer::new("/{*rest}")
        .registry(&connections)
        .hold_open(true);
    let app = Router::new()
        .route("/early", get(path))
        .route("/late", get(answer))
        .layer(layer);
    let server = Server::chosen(SERVER, app).await;

    for route in ["early", "late"] {
        let mut head_client = Raw::connect(server.address).await;
        head_client
            .send(&format!("HEAD /{route} HTTP/1.1\r\nhost: x\r\n"))
            .await;
        let mut of_head = head_client.stream_head().await.headers;
        until("nothing to be registered", || connections.held() == 0).await;
        head_client
            .send(&format!("GET /{route} HTTP/1.1\r\nhost: x\r\n"))
            .await;
        let mut of_get = head_client.stream_head().await.headers;
        assert_eq!(head_client.event().await.unwrap().event_type, "welcome");
        connections.close_where(|_| true);

        assert!(!of_head.contains_key(header::CONTENT_LENGTH), "{of_head:?}");
        for headers in [&mut of_head, &mut of_get] {
            headers.remove(header::DATE);
        }
        // hyper leaves it out, as it may: a HEAD's answer has no body to be chunked.
        let chunked = of_get.remove(header::TRANSFER_ENCODING).unwrap();
        assert_eq!(chunked, "chunked");
        assert_eq!(of_head, of_get);
    }
}

#[tokio::test]
async fn closed_stream_keeps_the_socket_for_the_next_request() {
    let (handles, mut handed) = mpsc::channel(100);
    let app = Router::new()
        .route("/events", get(hand_out))
        .route("/plain", get(async || "plain"))
        .with_state(handles)
        .layer(SseLayer::new("/events"));
    let server = Server::chosen(SERVER, app).await;
    let mut client = Raw::connect(server.address).await;

    for _ in 0..3 {
        client.send("GET /events HTTP/1.1\r\nhost: x\r\n").await;
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().event_type, "welcome");
        let sse = handed.recv().await.unwrap();
        sse.send(Event::message("last")).await.unwrap();
        sse.close();
        assert_eq!(client.event().await.unwrap().data, "last");
        assert_eq!(client.event().await, Err(End::LastChunk));
    }
    client.send("GET /plain HTTP/1.1\r\nhost: x\r\n").await;
    let head = client.head().await;
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(head.headers[header::CONTENT_LENGTH], "5");
}

#[tokio::test]
async fn a_client_that_excludes_event_streams_gets_a_406() {
    let app = Router::new()
        .route("/events", get(path))
        .layer(SseLayer::new("/events"));
    let server = Server::chosen(SERVER, app).await;
    let mut client = Client::connect(server.address, Version::HTTP_11).await;
    let mut request = client.request(Method::GET, "/events");
    let json = header::HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::ACCEPT, json);
    let (status, headers, _) = client.whole(request).await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE);
    assert_eq!(headers[header::VARY], "accept");
}
