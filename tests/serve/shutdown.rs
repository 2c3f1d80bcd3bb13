//! How a server ends, with direct streams and with those that hyper drives.

use std::{future::IntoFuture, net::SocketAddr, sync::Arc, time::Duration};

use axum::routing::get;
use http::{StatusCode, Version};
use support::{
    SLACK,
    client::Client,
    raw::{End, Raw},
    server::Server,
    streams::{GET, Streams},
    until, within,
};
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{Instant, timeout},
};
use tower_sse::{
    CloseReason, Event, SseLayer,
    serve::{TcpListener, serve},
};

const PLAIN: &str = "GET /plain HTTP/1.1\r\nhost: a\r\n";
const SLOW: &str = "GET /slow HTTP/1.1\r\nhost: a\r\n";

fn streams() -> Streams {
    Streams::new(SseLayer::new("/events").keep_alive(None))
}

async fn is_refused(address: SocketAddr) {
    until("the listener to be closed", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_completes_requests() {
    for is_direct in [true, false] {
        let mut streams = streams();
        let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = {
            let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
            move || {
                let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
                async move {
                    reached.notify_one();
                    go_on.notified().await;
                    "slow"
                }
            }
        };
        let router = streams.router.clone().route("/slow", get(slow));
        let drain = streams.connections.drain().over(Duration::ZERO);
        let mut server = Server::ours_with(router, move |serve| {
            serve
                .direct(is_direct)
                .drain(drain.retry(Duration::ZERO..=Duration::ZERO))
        })
        .await;
        let mut fresh = Raw::connect(server.address).await;
        let mut used = Raw::request(server.address, PLAIN).await;
        used.head().await;
        assert_eq!(used.take(5).await, b"plain");
        // One that a direct stream has left.
        let mut left = Raw::connect(server.address).await;
        streams.open(&mut left).await.close();
        assert_eq!(left.chunk().await, Err(End::LastChunk));
        let mut half = Raw::connect(server.address).await;
        half.send_bytes(b"GET /pl").await;
        let mut http2 = Client::connect(server.address, Version::HTTP_2).await;
        http2.get("/plain").await;
        let mut running = Raw::request(server.address, SLOW).await;
        within("the handler", reached.notified()).await;
        let mut streaming = Raw::connect(server.address).await;
        let sse = streams.open(&mut streaming).await;
        let polls = streams.polls();

        server.begin_stop();
        is_refused(server.address).await;
        for idle in [&mut fresh, &mut used, &mut left] {
            assert_eq!(idle.rest().await, b"", "direct {is_direct}");
        }
        // Drained: the last event, and a clean end.
        let event = streaming.event().await.unwrap();
        assert_eq!(event.event_type, "reconnect");
        assert_eq!(streaming.chunk().await, Err(End::LastChunk));
        assert_eq!(streaming.rest().await, b"");
        assert_eq!(sse.closed().await, CloseReason::Drained);
        assert!(!server.is_finished(), "a request still runs");
        go_on.notify_one();
        let head = running.head().await;
        assert_eq!(head.headers["connection"], "close");
        assert_eq!(running.take(4).await, b"slow");
        assert_eq!(running.rest().await, b"");
        drop(half);
        server.finished().await;
        streams.gone().await;
        assert!(polls >= 1);
    }
}

#[tokio::test]
async fn undrained_streams_run_until_the_shutdown_deadline() {
    // Long enough for what the clients do before it, also on a busy machine.
    let time = Duration::from_secs(4);
    for is_direct in [true, false] {
        let mut streams = streams();
        let mut server = Server::ours_with(streams.router.clone(), move |serve| {
            serve.direct(is_direct).shutdown_deadline(time)
        })
        .await;
        let mut staying = Raw::connect(server.address).await;
        let stays = streams.open(&mut staying).await;
        let mut ending = Raw::connect(server.address).await;
        let ends = streams.open(&mut ending).await;
        let start = Instant::now();
        server.begin_stop();
        is_refused(server.address).await;
        for sse in [&stays, &ends] {
            sse.send(Event::message("1")).await.unwrap();
        }
        assert_eq!(staying.event().await.unwrap().data, "1");
        assert_eq!(ending.event().await.unwrap().data, "1");
        ends.close();
        assert_eq!(ending.chunk().await, Err(End::LastChunk));
        assert_eq!(ending.rest().await, b"", "its socket is not used again");
        assert_eq!(staying.chunk().await, Err(End::Cut));
        server.finished().await;
        let took = start.elapsed();
        assert!(took >= time && took < time + SLACK, "{took:?}");
        assert_eq!(stays.closed().await, CloseReason::ClientGone);
        streams.gone().await;
    }
}

#[tokio::test]
async fn stalled_client_delays_shutdown_only_to_its_deadline() {
    let time = Duration::from_secs(1);
    for is_direct in [true, false] {
        let mut streams = streams();
        let drain = streams.connections.drain().over(Duration::ZERO);
        let mut server = Server::ours_small(streams.router.clone(), move |serve| {
            let drain = drain.deadline(Duration::from_secs(60));
            serve.direct(is_direct).drain(drain).shutdown_deadline(time)
        })
        .await;
        let mut client = Raw::connect_small(server.address).await;
        let sse = streams.open(&mut client).await;
        sse.send(Event::message("x".repeat(1_000_000)))
            .await
            .unwrap();
        sse.send(Event::message("last")).await.unwrap();
        let start = Instant::now();
        server.begin_stop();
        server.finished().await;
        let took = start.elapsed();
        assert!(took >= time && took < time + SLACK, "{took:?}");
        streams.gone().await;
        assert_eq!(client.chunk().await, Err(End::Cut));
    }
}

#[tokio::test]
async fn a_server_that_is_dropped_ends_its_connections() {
    let mut streams = streams();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let drain = streams.connections.drain();
    let server = serve(listener, streams.router.clone()).drain(drain);
    let server = tokio::spawn(server.into_future());
    let mut streaming = Raw::connect(address).await;
    let sse = streams.open(&mut streaming).await;
    let mut idle = Raw::request(address, PLAIN).await;
    assert_eq!(idle.head().await.status, StatusCode::OK);
    assert_eq!(idle.take(5).await, b"plain");
    let mut http2 = Client::connect(address, Version::HTTP_2).await;
    let request = http2.request(http::Method::GET, "/events");
    let mut events = http2.events(request).await.into_body();
    let second = streams.next().await;
    assert_eq!(events.event().await.unwrap().data, "hello");

    server.abort();
    assert!(within("the end", server).await.unwrap_err().is_cancelled());
    assert_eq!(streaming.chunk().await, Err(End::Cut));
    assert_eq!(idle.rest().await, b"");
    assert!(events.event().await.is_err());
    for sse in [sse, second] {
        let reason = within("the end", sse.closed()).await;
        assert_eq!(reason, CloseReason::ClientGone);
    }
    assert!(TcpStream::connect(address).await.is_err());
    streams.gone().await;
    assert!(!streams.connections.is_draining(), "it was not asked to");
}

#[tokio::test]
async fn request_behind_a_drained_stream_is_not_served() {
    for is_direct in [true, false] {
        let mut streams = streams();
        let drain = streams.connections.drain().over(Duration::ZERO);
        let mut server = Server::ours_with(streams.router.clone(), move |serve| {
            serve.direct(is_direct).drain(drain)
        })
        .await;
        let mut client = Raw::connect(server.address).await;
        let sse = streams.open(&mut client).await;
        // The next request is there before the stream is drained.
        client.send(GET).await;
        server.begin_stop();
        assert_eq!(client.event().await.unwrap().event_type, "reconnect");
        assert_eq!(client.chunk().await, Err(End::LastChunk));
        assert_eq!(client.rest().await, b"", "it is for the next server");
        assert_eq!(sse.closed().await, CloseReason::Drained);
        server.finished().await;
        let next = timeout(Duration::ZERO, streams.next()).await;
        assert!(next.is_err(), "it has reached the handler");
    }
}
