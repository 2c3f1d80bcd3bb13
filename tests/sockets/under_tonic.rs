//! Under tonic, over real sockets: gRPC and event streams on one port.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use support::Held;

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version, header};
use http_body_util::BodyExt;
use support::{client::Client, server::Server, until, within};
use tonic::{
    Code, Status,
    service::{Routes, RoutesBuilder, interceptor::InterceptedService},
    transport::{Channel, server::TcpIncoming},
};
use tonic_health::{
    pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
        health_server::HealthServer,
    },
    server::{HealthReporter, HealthService},
};
use tower_sse::{Connections, Event, SseConnection, SseLayer};

fn health() -> HealthServer<HealthService> {
    HealthServer::new(HealthService::from_health_reporter(HealthReporter::new()))
}

/// The health service behind an interceptor that lets nobody in.
fn closed_health() -> Routes {
    Routes::new(InterceptedService::new(health(), |_| {
        Err(Status::unauthenticated("no token"))
    }))
}

async fn serve(layer: SseLayer, routes: Routes) -> Server {
    Server::start(|listener, stopped| async {
        tonic::transport::Server::builder()
            .accept_http1(true)
            .layer(layer)
            .add_routes(routes)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped)
            .await
            .unwrap();
    })
    .await
}

async fn channel(server: &Server) -> Channel {
    let endpoint = Channel::from_shared(server.url("")).unwrap();
    within("tonic to connect", endpoint.connect())
        .await
        .unwrap()
}

async fn is_serving(server: &Server) -> bool {
    let mut client = HealthClient::new(channel(server).await);
    let answer = client.check(HealthCheckRequest::default()).await.unwrap();
    answer.into_inner().status() == ServingStatus::Serving
}

#[tokio::test]
async fn grpc_and_an_accepted_stream_share_a_port() {
    let connections = Connections::new();
    let layer = SseLayer::new("/events")
        .registry(&connections)
        .accept(async |sse, parts| {
            if parts.uri.query() == Some("no") {
                return Err(StatusCode::FORBIDDEN);
            }
            let _ = sse.send(Event::message("hello")).await;
            sse.closed().await;
            Ok(())
        });
    let server = serve(layer, Routes::new(health())).await;

    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(server.address, version).await;
        assert_eq!(client.get("/events?no").await.0, StatusCode::FORBIDDEN);
        let mut events = client.open("/events").await;
        assert_eq!(events.event().await.unwrap().data, "hello");
        assert!(is_serving(&server).await);
        assert_eq!(connections.close_where(|_| true), 1);
        events.end().await.unwrap();
        until("nothing to be registered", || connections.held() == 0).await;
    }
}

#[tokio::test]
async fn grpc_and_a_handler_of_axum_share_a_port() {
    async fn events(sse: SseConnection) -> Result<(), tower_sse::Error> {
        sse.send(Event::message("hello")).await?;
        Ok(())
    }
    let mut routes = RoutesBuilder::from(Router::new().route("/events", get(events)));
    routes.add_service(health());
    let server = serve(SseLayer::new("/events"), routes.routes()).await;

    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(server.address, version).await;
        let mut events = client.open("/events").await;
        assert_eq!(events.event().await.unwrap().data, "hello");
        events.end().await.unwrap();
    }
    assert!(is_serving(&server).await);
}

#[tokio::test]
async fn streaming_call_passes_beside_event_streams() {
    let layer = SseLayer::new("/{*rest}").any_accept();
    let server = serve(layer, Routes::new(health())).await;
    let mut client = HealthClient::new(channel(&server).await);
    let watch = client.watch(HealthCheckRequest::default()).await.unwrap();
    let first = within("an answer", watch.into_inner().message()).await;
    let status = first.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::Serving);
}

/// A layer that takes every request for its own, and counts the streams that it starts.
fn greedy(connections: &Connections) -> (SseLayer, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&opened);
    let layer = SseLayer::new("/{*rest}")
        .methods([Method::GET, Method::POST])
        .any_accept()
        .hold_open(true)
        .registry(connections)
        .on_open(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
    (layer, opened)
}

#[tokio::test]
async fn grpc_responses_pass_a_wildcard_path() {
    let connections = Connections::new();
    let (layer, opened) = greedy(&connections);
    let server = serve(layer.clone(), Routes::new(health())).await;
    assert!(is_serving(&server).await);

    let refusing = serve(layer, closed_health()).await;
    let mut client = HealthClient::new(channel(&refusing).await);
    let refused = client.check(HealthCheckRequest::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message(), "no token");

    until("nothing to be registered", || connections.held() == 0).await;
    assert_eq!(opened.load(Ordering::SeqCst), 0);
}

/// All of an answer to a call of the health service.
async fn call(server: &Server, path: &str) -> (StatusCode, HeaderMap, Bytes, Option<HeaderMap>) {
    let mut client = Client::connect(server.address, Version::HTTP_2).await;
    let mut request = client.request(Method::POST, path);
    let grpc = header::HeaderValue::from_static("application/grpc");
    request.headers_mut().insert(header::CONTENT_TYPE, grpc);
    // An empty message: not compressed, no bytes.
    *request.body_mut() = Bytes::from_static(&[0; 5]).into();
    let (mut head, body) = client.send(request).await.into_parts();
    head.headers.remove(header::DATE);
    let body = within("the body", body.collect()).await.unwrap();
    let trailers = body.trailers().cloned();
    (head.status, head.headers, body.to_bytes(), trailers)
}

#[tokio::test]
async fn grpc_errors_pass_a_wildcard_path_unchanged() {
    let connections = Connections::new();
    let (layer, opened) = greedy(&connections);
    // (path, `grpc-status` in the head of the answer)
    let cases = [
        ("/grpc.health.v1.Health/Check", Some("16")),
        ("/no.Such/Call", Some("12")),
    ];
    for (path, grpc_status) in cases {
        let plain = serve(SseLayer::new("/unused"), closed_health()).await;
        let layered = serve(layer.clone(), closed_health()).await;
        let answer = call(&layered, path).await;
        assert_eq!(answer, call(&plain, path).await);

        let (status, headers, ..) = answer;
        assert_eq!(status, StatusCode::OK);
        let found = headers
            .get("grpc-status")
            .map(|value| value.to_str().unwrap());
        assert_eq!(found, grpc_status);
        until("nothing to be registered", || connections.held() == 0).await;
    }
    assert_eq!(opened.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn grpc_trailers_pass_a_wildcard_path() {
    let connections = Connections::new();
    let (layer, opened) = greedy(&connections);
    let server = serve(layer, Routes::new(health())).await;
    let (status, headers, body, trailers) = call(&server, "/grpc.health.v1.Health/Check").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[header::CONTENT_TYPE], "application/grpc");
    assert!(!body.is_empty());
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
    assert_eq!(opened.load(Ordering::SeqCst), 0);
}
