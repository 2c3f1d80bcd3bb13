//! Under hyper without a framework, over real sockets: what a stream looks like in HTTP/1.0,
//! HTTP/1.1 and HTTP/2.

use super::SERVER;
use std::{convert::Infallible, time::Duration};
use support::Held;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::Incoming;
use support::{
    client::Client,
    raw::{End, Raw},
    server::{Hyper, Server},
    until,
};
use tower::ServiceBuilder;
use tower_sse::{
    Connections, Event, SseConnection, SseLayer,
    event::Decoded,
    test_util::{EventReader, ReadError},
};

type Answer = Result<Response<Full<Bytes>>, Infallible>;

/// Sends two events, then answers: with what no stream may have in HTTP/2, too.
async fn handle(request: Request<Incoming>) -> Answer {
    if let Some(sse) = request.extensions().get::<SseConnection>() {
        let _ = sse.send(Event::message("one")).await;
        let _ = sse.send(Event::message("two")).await;
    }
    Ok(Response::new(Full::from("not a stream")))
}

/// Answers first, with headers that are not for a stream, and closes the stream later.
async fn answer_first(request: Request<Incoming>) -> Answer {
    let sse = request.extensions().get::<SseConnection>().unwrap().clone();
    tokio::spawn(async move {
        let _ = sse.send(Event::message("later")).await;
    });
    let response = Response::builder()
        .header(header::CONNECTION, "keep-alive")
        .header("keep-alive", "timeout=5")
        .header(header::CONTENT_LENGTH, 4)
        .header("x-handler", "kept")
        .body(Full::from("gone"));
    Ok(response.unwrap())
}

async fn read_to_end(events: &mut EventReader) -> Vec<String> {
    let mut data = Vec::new();
    loop {
        match events.event().await {
            Ok(event) => data.push(event.data),
            Err(ReadError::Ended) => return data,
            Err(error) => panic!("{error}: {error:?}"),
        }
    }
}

/// Each server with each version that it speaks.
const SERVED: [(Hyper, Version); 4] = [
    (Hyper::Http1, Version::HTTP_11),
    (Hyper::Http2, Version::HTTP_2),
    (Hyper::Auto, Version::HTTP_11),
    (Hyper::Auto, Version::HTTP_2),
];

#[tokio::test]
async fn every_server_of_hyper_streams_and_ends_cleanly() {
    for (which, version) in SERVED {
        let connections = Connections::new();
        let service = ServiceBuilder::new()
            .layer(SseLayer::new("/events").registry(&connections))
            .service_fn(handle);
        let server = Server::hyper_or(SERVER, which, service).await;
        let mut client = Client::connect(server.address, version).await;

        // Twice over one connection: the first stream must leave it usable.
        for _ in 0..2 {
            let mut events = client.open("/events").await;
            assert_eq!(read_to_end(&mut events).await, ["one", "two"]);
            until("nothing to be registered", || connections.held() == 0).await;
        }
        let (status, _, body) = client.get("/other").await;
        assert_eq!((status, &*body), (StatusCode::OK, &b"not a stream"[..]));
    }
}

#[tokio::test]
async fn stream_keeps_only_end_to_end_headers_of_the_handler() {
    for (which, version) in SERVED {
        let service = ServiceBuilder::new()
            .layer(SseLayer::new("/events"))
            .service_fn(answer_first);
        let server = Server::hyper_or(SERVER, which, service).await;
        let mut client = Client::connect(server.address, version).await;
        let request = client.request(Method::GET, "/events");
        let response = client.events(request).await;

        assert_eq!(response.version(), version);
        let headers = response.headers();
        assert_eq!(headers["x-handler"], "kept");
        assert_eq!(headers[header::CACHE_CONTROL], "no-store, no-transform");
        assert_eq!(headers["x-accel-buffering"], "no");
        for name in ["connection", "keep-alive", "content-length"] {
            assert!(!headers.contains_key(name), "{name} in {version:?}");
        }
        let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
        assert_eq!(is_chunked, version == Version::HTTP_11);
        let mut events = response.into_body();
        assert_eq!(events.event().await.unwrap().event_type, "welcome");
        assert_eq!(read_to_end(&mut events).await, ["later"]);
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_the_stream_without_chunks() {
    let service = ServiceBuilder::new()
        .layer(SseLayer::new("/events").welcome(None))
        .service_fn(handle);
    let server = Server::hyper_or(SERVER, Hyper::Auto, service).await;
    let mut client = Raw::request(server.address, "GET /events HTTP/1.0\r\n").await;

    let head = client.stream_head().await;
    assert!(!head.headers.contains_key(header::TRANSFER_ENCODING));
    assert!(!head.headers.contains_key(header::CONTENT_LENGTH));
    let body = client.rest().await;
    assert_eq!(body, b"data: one\n\ndata: two\n\n");
}

#[tokio::test]
async fn idle_stream_carries_empty_comments_as_heartbeats() {
    let hold = async |_: Request<Incoming>| Answer::Ok(Response::default());
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let layer = SseLayer::new("/events")
            .hold_open(true)
            .keep_alive(Duration::from_millis(64));
        let service = ServiceBuilder::new().layer(layer).service_fn(hold);
        let server = Server::hyper_or(SERVER, Hyper::Auto, service).await;

        let mut client = Client::connect(server.address, version).await;
        let mut events = client.open("/events").await;
        for _ in 0..3 {
            let heartbeat = Decoded::Comment(String::new());
            assert_eq!(events.decoded().await.unwrap(), heartbeat);
        }
        if version == Version::HTTP_11 {
            let request = "GET /events HTTP/1.1\r\nhost: x\r\n";
            let mut raw = Raw::request(server.address, request).await;
            raw.stream_head().await;
            assert!(raw.chunk().await.unwrap().starts_with(b"event: welcome\n"));
            assert_eq!(raw.chunk().await.unwrap(), b":\n");
            assert_eq!(raw.chunk().await.unwrap(), b":\n");
        }
    }
}

/// Many on one connection: the streams of HTTP/2 must not wait for each other.
#[tokio::test]
async fn streams_of_one_http_2_connection_are_independent() {
    let connections = Connections::new();
    let layer = SseLayer::new("/events")
        .registry(&connections)
        .hold_open(true);
    let hold = async |_: Request<Incoming>| Answer::Ok(Response::default());
    let service = ServiceBuilder::new().layer(layer).service_fn(hold);
    let server = Server::hyper_or(SERVER, Hyper::Http2, service).await;
    let mut client = Client::connect(server.address, Version::HTTP_2).await;

    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(client.open("/events").await);
    }
    assert_eq!(connections.len(), 50);
    for connection in connections.iter() {
        connection.try_send(Event::message("hello")).unwrap();
    }
    for events in streams.iter_mut().rev() {
        assert_eq!(events.event().await.unwrap().data, "hello");
    }
    drop(streams.split_off(25));
    until("half of them to be noticed", || connections.len() == 25).await;
    assert_eq!(connections.close_where(|_| true), 25);
    for events in &mut streams {
        events.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_pipelined_request_is_answered_after_the_stream() {
    let service = ServiceBuilder::new()
        .layer(SseLayer::new("/events").welcome(None))
        .service_fn(handle);
    let server = Server::hyper_or(SERVER, Hyper::Http1, service).await;
    let both = "GET /events HTTP/1.1\r\nhost: x\r\n\r\nGET /other HTTP/1.1\r\nhost: x\r\n";
    let mut client = Raw::request(server.address, both).await;

    client.stream_head().await;
    assert_eq!(client.event().await.unwrap().data, "one");
    assert_eq!(client.event().await.unwrap().data, "two");
    assert_eq!(client.event().await, Err(End::LastChunk));
    assert_eq!(client.head().await.headers[header::CONTENT_LENGTH], "12");
}
