//! HTTP/2 and TLS: how a server finds out what a client speaks.

use std::time::Duration;
use support::tls;

use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    LIMIT, SLACK,
    client::Client,
    raw::{End, Raw},
    server::Server,
    streams::Streams,
    until, within,
};
use tls::Tls;
use tokio::{io::AsyncReadExt, net::TcpStream, time::Instant};
use tower_sse::{
    CloseReason, Event, SseLayer,
    serve::{TcpListener, serve, with_handshake},
    test_util::EventReader,
};

fn streams() -> Streams {
    Streams::new(SseLayer::new("/events"))
}

/// A server with TLS, which gives a head this much time.
async fn serve_tls(streams: &Streams, tls: &Tls, header_read_timeout: Duration) -> Server {
    let (router, acceptor) = (streams.router.clone(), tls.acceptor.clone());
    Server::start(move |listener, stopped| async move {
        let listener = TcpListener::from(listener);
        let listener = with_handshake(listener, move |socket| acceptor.accept(socket));
        let serve = serve(listener, router)
            .header_read_timeout(header_read_timeout)
            .with_graceful_shutdown(stopped);
        serve.await.unwrap();
    })
    .await
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served() {
    let mut streams = streams();
    let server = Server::ours(streams.router.clone(), true).await;
    let mut client = Client::connect(server.address, Version::HTTP_2).await;
    let request = client.request(Method::GET, "/events");
    let response = client.events(request).await;
    assert_eq!(response.version(), Version::HTTP_2);
    let mut events = response.into_body();
    let sse = streams.next().await;
    assert_eq!(events.event().await.unwrap().data, "hello");
    sse.send(Event::message("1")).await.unwrap();
    assert_eq!(events.event().await.unwrap().data, "1");
    // Another request on the same connection, beside the stream.
    let (_, _, body) = client.get("/plain").await;
    assert_eq!(body, "plain");
    sse.close();
    events.end().await.unwrap();
}

#[tokio::test]
async fn an_http2_connection_carries_more_than_200_streams() {
    let mut streams = streams();
    let server = Server::ours(streams.router.clone(), true).await;
    let mut client = Client::connect(server.address, Version::HTTP_2).await;
    let mut readers = Vec::new();
    let mut open = Vec::new();
    for _ in 0..1000 {
        let request = client.request(Method::GET, "/events");
        readers.push(client.events(request).await.into_body());
        open.push(streams.next().await);
    }
    for sse in &open {
        sse.send(Event::message("1")).await.unwrap();
    }
    for reader in &mut readers {
        assert_eq!(reader.event().await.unwrap().data, "hello");
        assert_eq!(reader.event().await.unwrap().data, "1");
    }
    assert_eq!(streams.connections.len(), 1000);
    drop(client);
    drop(readers);
    for sse in &open {
        let reason = within("the end", sse.closed()).await;
        assert_eq!(reason, CloseReason::ClientGone);
    }
    streams.gone().await;
}

#[tokio::test]
async fn tls_with_alpn_gives_http2() {
    let mut streams = streams();
    let tls = Tls::new();
    let server = serve_tls(&streams, &tls, LIMIT).await;
    let socket = tls.connect(server.address, &[b"h2", b"http/1.1"]).await;
    assert_eq!(socket.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let socket = TokioIo::new(socket);
    let handshake = http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), socket);
    let (mut sender, driver) = handshake.await.unwrap();
    let driver = tokio::spawn(driver);
    let request = Request::get("https://localhost/events");
    let request = request.body(Empty::new()).unwrap();
    let response = within("an answer", sender.send_request(request))
        .await
        .unwrap();
    let mut events = EventReader::new(response.into_body()).time_limit(LIMIT);
    let sse = streams.next().await;
    assert_eq!(events.event().await.unwrap().data, "hello");
    sse.send(Event::message("1")).await.unwrap();
    assert_eq!(events.event().await.unwrap().data, "1");
    drop((events, sender));
    within("the client to end", driver).await.unwrap().unwrap();
    let reason = within("the end", sse.closed()).await;
    assert_eq!(reason, CloseReason::ClientGone);
}

#[tokio::test]
async fn http1_over_tls_is_direct_and_reuses_its_socket() {
    let mut streams = streams();
    let tls = Tls::new();
    let server = serve_tls(&streams, &tls, LIMIT).await;
    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let before = streams.direct();
        let mut client = Raw::over(tls.connect(server.address, alpn).await);
        for round in 1..=2 {
            let sse = streams.open(&mut client).await;
            // More than a record of TLS, and than the buffers.
            for size in [1, 20_000, 8_000_000] {
                sse.send(Event::message("x".repeat(size))).await.unwrap();
                assert_eq!(client.event().await.unwrap().data.len(), size);
            }
            sse.close();
            assert_eq!(client.chunk().await, Err(End::LastChunk));
            assert_eq!(streams.direct(), before + round);
            client.send("GET /plain HTTP/1.1\r\nhost: a\r\n").await;
            assert_eq!(client.head().await.headers["content-length"], "5");
            assert_eq!(client.take(5).await, b"plain");
        }
        let sse = streams.open(&mut client).await;
        drop(client);
        let reason = within("the end", sse.closed()).await;
        assert_eq!(reason, CloseReason::ClientGone);
        streams.gone().await;
    }
}

#[tokio::test]
async fn hanging_handshake_times_out_without_delaying_others() {
    // Long enough for a handshake that is not delayed, also on a busy machine.
    let time = Duration::from_secs(5);
    let mut streams = streams();
    let tls = Tls::new();
    let server = serve_tls(&streams, &tls, time).await;
    let start = Instant::now();
    let mut hanging = Vec::new();
    for _ in 0..20 {
        hanging.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut client = Raw::over(tls.connect(server.address, &[]).await);
    let sse = streams.open(&mut client).await;
    assert!(start.elapsed() < time, "{:?}", start.elapsed());
    for socket in &mut hanging {
        let end = within("the end", socket.read(&mut [0; 8])).await;
        assert!(matches!(end, Ok(0) | Err(_)));
    }
    let took = start.elapsed();
    assert!(took >= time && took < time + SLACK, "{took:?}");
    // Those that are served are not bounded by it.
    sse.send(Event::message("1")).await.unwrap();
    assert_eq!(client.event().await.unwrap().data, "1");
    until("one connection to be left", || {
        streams.connections.len() == 1
    })
    .await;
}
