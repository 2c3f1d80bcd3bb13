//! What a stream has to be, to be driven straight on its socket; and what becomes of the others.

use std::{convert::Infallible, pin::pin, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    middleware::map_response,
    response::{
        Response,
        sse::{Event as AxumEvent, Sse},
    },
    routing::any,
};
use bytes::Bytes;
use http::{Method, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use support::{
    raw::{End, Raw},
    server::Server,
    streams::{GET, Streams},
    within,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower_http::{
    compression::CompressionLayer, set_header::SetResponseHeaderLayer,
    timeout::ResponseBodyTimeoutLayer,
};
use tower_sse::{CloseReason, Connections, Event, SseConnection, SseLayer, test_util::DirectProbe};

const PLAIN: &str = "GET /plain HTTP/1.1\r\nhost: a\r\n";

fn layer() -> SseLayer {
    SseLayer::new("/events").methods([Method::GET, Method::POST])
}

fn streams() -> Streams {
    Streams::new(layer())
}

async fn serve(streams: &Streams) -> Server {
    Server::ours(streams.router.clone(), true).await
}

/// Sends an event down an open stream, ends it, and uses the socket again. Returns whether one of
/// the server's streams was direct.
async fn is_direct(streams: &Streams, client: &mut Raw, sse: SseConnection) -> bool {
    sse.send(Event::message("1")).await.unwrap();
    assert_eq!(client.event().await.unwrap().data, "1");
    let is_direct = streams.direct() > 0;
    assert_eq!(streams.alive(), 1, "what wraps the body stays for as long");
    sse.close();
    drop(sse);
    assert_eq!(client.chunk().await, Err(End::LastChunk));
    streams.gone().await;
    client.send(PLAIN).await;
    assert_eq!(client.head().await.headers["content-length"], "5");
    assert_eq!(client.take(5).await, b"plain");
    is_direct
}

// ===== the response =====

#[tokio::test]
async fn layers_that_keep_the_body_keep_it_direct() {
    let mut streams = streams();
    streams.router = streams
        .router
        .layer(SetResponseHeaderLayer::overriding(
            http::header::SERVER,
            http::HeaderValue::from_static("test"),
        ))
        // It leaves event streams as they are.
        .layer(CompressionLayer::new().gzip(true));
    let server = serve(&streams).await;
    let request = format!("{GET}accept-encoding: gzip\r\n");
    let mut client = Raw::request(server.address, &request).await;
    let sse = streams.next().await;
    let head = client.stream_head().await;
    assert_eq!(head.headers["server"], "test");
    assert_eq!(client.event().await.unwrap().data, "hello");
    assert!(is_direct(&streams, &mut client, sse).await);
}

#[tokio::test]
async fn body_timeout_of_an_outer_layer_ends_a_stream() {
    let mut streams = streams();
    let time = Duration::from_millis(20);
    streams.router = streams.router.layer(ResponseBodyTimeoutLayer::new(time));
    let server = serve(&streams).await;
    let mut client = Raw::connect(server.address).await;
    let sse = streams.open(&mut client).await;
    assert_eq!(client.event().await, Err(End::Cut));
    let reason = within("the end", sse.closed()).await;
    assert_eq!(reason, CloseReason::ClientGone);
    assert_eq!(streams.direct(), 1, "it was direct");
}

#[tokio::test]
async fn compressed_stream_is_direct() {
    let mut streams = streams();
    let always = |_: StatusCode, _: Version, _: &http::HeaderMap, _: &http::Extensions| true;
    let compressing = CompressionLayer::new().gzip(true).compress_when(always);
    streams.router = streams.router.layer(compressing);
    let server = serve(&streams).await;
    let request = format!("{GET}accept-encoding: gzip\r\n");
    let mut client = Raw::request(server.address, &request).await;
    let sse = streams.next().await;
    let head = client.stream_head().await;
    assert_eq!(head.headers["content-encoding"], "gzip");
    sse.close();
    drop(sse);
    let first = client.chunk().await.unwrap();
    assert!(first.starts_with(&[0x1f, 0x8b]), "gzip, not the events");
    streams.gone().await;
    assert_eq!(streams.direct(), 1);
}

#[tokio::test]
async fn replaced_body_is_sent_instead_of_the_stream() {
    let mut streams = streams();
    let replace = async |response: Response| response.map(|_| Body::from("data: other\n\n"));
    streams.router = streams.router.layer(map_response(replace));
    let server = serve(&streams).await;
    let mut client = Raw::request(server.address, GET).await;
    let sse = streams.next().await;
    client.stream_head().await;
    assert_eq!(client.take(13).await, b"data: other\n\n");
    let reason = within("the end", sse.closed()).await;
    assert_eq!(reason, CloseReason::ClientGone);
    streams.gone().await;
    assert_eq!(streams.polls(), 0);
}

#[tokio::test]
async fn stream_turned_into_a_304_is_not_sent() {
    let mut streams = streams();
    let unchanged = async |mut response: Response| {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    };
    streams.router = streams.router.layer(map_response(unchanged));
    let server = serve(&streams).await;
    let mut client = Raw::request(server.address, GET).await;
    let sse = streams.next().await;
    assert_eq!(client.head().await.status, StatusCode::NOT_MODIFIED);
    let reason = within("the end", sse.closed()).await;
    assert_eq!(reason, CloseReason::ClientGone);
    // The next answer follows at once: there was no body.
    client.send(PLAIN).await;
    assert_eq!(client.head().await.status, StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn version_of_the_inner_response_is_ignored() {
    let (sender, mut opened) = mpsc::channel(1);
    let handler = async move |sse: SseConnection| {
        sender.try_send(sse).unwrap();
        // As one that was fetched elsewhere.
        let response = Response::builder().version(Version::HTTP_10);
        response.body(Body::empty()).unwrap()
    };
    let router = Router::new()
        .route("/events", any(handler))
        .layer(SseLayer::new("/events"));
    let server = Server::ours(router, true).await;
    let mut client = Raw::request(server.address, GET).await;
    let sse = within("a request", opened.recv()).await.unwrap();
    let head = client.stream_head().await;
    assert_eq!(head.headers["transfer-encoding"], "chunked");
    assert_eq!(client.event().await.unwrap().event_type, "welcome");
    sse.send(Event::message("1")).await.unwrap();
    assert_eq!(client.event().await.unwrap().data, "1");
}

#[tokio::test]
async fn http10_version_set_by_a_layer_disables_chunks() {
    let mut streams = streams();
    let old = async |mut response: Response| {
        *response.version_mut() = Version::HTTP_10;
        response
    };
    streams.router = streams.router.layer(map_response(old));
    let server = serve(&streams).await;
    let mut client = Raw::request(server.address, GET).await;
    let sse = streams.next().await;
    let head = client.stream_head().await;
    assert!(!head.headers.contains_key("transfer-encoding"));
    sse.send(Event::message("1")).await.unwrap();
    sse.close();
    drop(sse);
    assert_eq!(client.rest().await, b"data: hello\n\ndata: 1\n\n");
    streams.gone().await;
    assert_eq!(streams.direct(), 0);
}

#[tokio::test]
async fn connection_close_set_by_a_layer_closes_the_socket() {
    let mut streams = streams();
    let close = SetResponseHeaderLayer::overriding(
        http::header::CONNECTION,
        http::HeaderValue::from_static("close"),
    );
    streams.router = streams.router.layer(close);
    let server = serve(&streams).await;
    let mut client = Raw::connect(server.address).await;
    let sse = streams.open(&mut client).await;
    sse.close();
    drop(sse);
    assert_eq!(client.chunk().await, Err(End::LastChunk));
    assert_eq!(client.rest().await, b"");
    assert_eq!(streams.direct(), 1, "it was direct");
}

/// A layer may poll the body in a task of its own, and hand its frames on as they are. That task goes
/// on polling when the stream has left.
#[tokio::test]
async fn body_polled_by_another_task_keeps_the_stream_intact() {
    for is_eager in [false, true] {
        let mut streams = streams();
        let (go_on, gate) = tokio::sync::watch::channel(is_eager);
        let (over, mut pumped) = mpsc::channel::<()>(1);
        let forward = move |response: Response| {
            let (mut gate, over) = (gate.clone(), over.clone());
            async move {
                response.map(|body| {
                    let (sender, frames) = mpsc::channel(1);
                    tokio::spawn(async move {
                        let mut body = pin!(body);
                        while let Some(frame) = body.frame().await {
                            if sender.send(frame).await.is_err() {
                                return;
                            }
                            gate.wait_for(|may| *may).await.unwrap();
                        }
                        let _ = over.send(()).await;
                    });
                    Body::new(StreamBody::new(ReceiverStream::new(frames)))
                })
            }
        };
        streams.router = streams.router.layer(map_response(forward));
        let server = serve(&streams).await;
        let mut client = Raw::connect(server.address).await;
        let sse = streams.open(&mut client).await;
        go_on.send(true).unwrap();
        for number in 0..100 {
            sse.send(Event::message(number.to_string())).await.unwrap();
            assert_eq!(client.event().await.unwrap().data, number.to_string());
        }
        sse.close();
        drop(sse);
        assert_eq!(client.chunk().await, Err(End::LastChunk));
        // The body has ended for that task, too.
        within("the end of the body", pumped.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn adopted_stream_is_direct() {
    let mut streams = streams();
    let (sender, mut probes) = mpsc::channel(1);
    let inner = async move |request: Request| {
        let probe = DirectProbe::of(request.extensions()).unwrap();
        sender.try_send(probe).unwrap();
        let events = tokio_stream::iter(["1", "2"].map(|it| AxumEvent::default().data(it)));
        Sse::new(tokio_stream::StreamExt::map(events, Ok::<_, Infallible>))
    };
    let connections = Connections::new();
    let adopting = SseLayer::new("/adopted").adopt(true).registry(&connections);
    let adopted = Router::new().route("/adopted", any(inner)).layer(adopting);
    streams.router = adopted.merge(streams.router);
    let server = serve(&streams).await;
    let mut client = Raw::request(server.address, "GET /adopted HTTP/1.1\r\nhost: a\r\n").await;
    client.stream_head().await;
    for data in ["1", "2"] {
        assert_eq!(client.event().await.unwrap().data, data);
    }
    assert_eq!(client.chunk().await, Err(End::LastChunk));
    assert_eq!(connections.stats().closed(CloseReason::Closed), 1);
    assert!(probes.try_recv().unwrap().is_direct());
    // And so is the next one on the same socket.
    let sse = streams.open(&mut client).await;
    assert!(is_direct(&streams, &mut client, sse).await);
}

// ===== the request =====

#[tokio::test]
async fn upgrade_request_stays_with_hyper() {
    let mut streams = streams();
    let server = serve(&streams).await;
    let request = format!("{GET}connection: upgrade\r\nupgrade: websocket\r\n");
    let mut client = Raw::request(server.address, &request).await;
    let sse = streams.next().await;
    client.stream_head().await;
    assert_eq!(client.event().await.unwrap().data, "hello");
    assert!(!is_direct(&streams, &mut client, sse).await);
}

#[tokio::test]
async fn unread_request_body_is_not_parsed_as_a_request() {
    let mut streams = streams();
    let server = serve(&streams).await;
    let request = "POST /events HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n";
    let mut client = Raw::request(server.address, request).await;
    let sse = streams.next().await;
    client.stream_head().await;
    assert_eq!(client.event().await.unwrap().data, "hello");
    // Were the socket used again behind the stream, this would be read as a request.
    let smuggled = format!("{PLAIN}\r\n").repeat(50);
    client.send_bytes(smuggled.as_bytes()).await;
    sse.send(Event::message("1")).await.unwrap();
    assert_eq!(client.event().await.unwrap().data, "1");
    assert_eq!(streams.direct(), 0);
    sse.close();
    drop(sse);
    assert_eq!(client.chunk().await, Err(End::LastChunk));
    let rest = client.rest().await;
    assert_eq!(String::from_utf8_lossy(&rest), "", "an answer to the body");
}

#[tokio::test]
async fn reading_the_body_answers_expect_100_continue() {
    for reads in [true, false] {
        let (sender, mut opened) = mpsc::channel(1);
        let handler = async move |sse: SseConnection, request: Request| {
            let body = if reads {
                to_bytes(request.into_body(), 100).await.unwrap()
            } else {
                Bytes::new()
            };
            sender.try_send((sse, body)).unwrap();
        };
        let router = Router::new()
            .route("/events", any(handler))
            .layer(layer().keep_alive(None));
        let server = Server::ours(router, true).await;
        let request =
            "POST /events HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n";
        let mut client = Raw::request(server.address, request).await;
        if reads {
            assert_eq!(client.head().await.status, StatusCode::CONTINUE);
            client.send_bytes(b"body").await;
        }
        let (sse, body) = within("a request", opened.recv()).await.unwrap();
        assert_eq!(&body[..], if reads { &b"body"[..] } else { b"" });
        client.stream_head().await;
        assert_eq!(client.event().await.unwrap().event_type, "welcome");
        sse.send(Event::message("1")).await.unwrap();
        assert_eq!(client.event().await.unwrap().data, "1");
        sse.close();
        drop(sse);
        assert_eq!(client.chunk().await, Err(End::LastChunk));
    }
}

// ===== the socket afterwards =====

#[tokio::test]
async fn requests_pipelined_behind_a_stream_are_answered() {
    let mut streams = streams();
    let server = serve(&streams).await;
    let mut client = Raw::connect(server.address).await;
    // With the stream's own request, and more of them than are kept.
    let many = 2_000;
    let pipelined = format!("{GET}\r\n") + &format!("{PLAIN}\r\n").repeat(many);
    assert!(pipelined.len() > 3 * 16 * 1024);
    client.send_bytes(pipelined.as_bytes()).await;
    let sse = streams.next().await;
    client.stream_head().await;
    assert_eq!(client.event().await.unwrap().data, "hello");
    sse.send(Event::message("1")).await.unwrap();
    assert_eq!(client.event().await.unwrap().data, "1");
    assert_eq!(streams.direct(), 1, "it is direct");
    sse.close();
    drop(sse);
    assert_eq!(client.chunk().await, Err(End::LastChunk));
    for _ in 0..many {
        assert_eq!(client.head().await.headers["content-length"], "5");
        assert_eq!(client.take(5).await, b"plain");
    }
}

/// One that shuts its side of the connection has left, whatever it has sent before: a direct stream
/// sees that behind up to 16 KiB.
#[tokio::test]
async fn half_close_after_a_pipelined_request_is_a_disconnect() {
    let mut streams = streams();
    let server = serve(&streams).await;
    let mut client = Raw::connect(server.address).await;
    client
        .send_bytes(format!("{GET}\r\n{PLAIN}\r\n").as_bytes())
        .await;
    let sse = streams.next().await;
    client.stream_head().await;
    assert_eq!(client.event().await.unwrap().data, "hello");
    client.half_close().await;
    let reason = within("the end", sse.closed()).await;
    assert_eq!(reason, CloseReason::ClientGone);
    assert_eq!(client.chunk().await, Err(End::Cut));
    streams.gone().await;
}

#[tokio::test]
async fn a_socket_does_not_change_to_http2_behind_a_stream() {
    let mut streams = streams();
    let server = serve(&streams).await;
    let mut client = Raw::connect(server.address).await;
    let sse = streams.open(&mut client).await;
    sse.close();
    drop(sse);
    assert_eq!(client.chunk().await, Err(End::LastChunk));
    assert_eq!(streams.direct(), 1, "it was direct");
    client.send_bytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // Closed: no settings frame, with which HTTP/2 would begin.
    assert_eq!(client.rest().await, b"");
}
