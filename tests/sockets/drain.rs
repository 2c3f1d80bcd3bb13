//! Drains over real sockets: servers shut down although streams are open.

use super::SERVER;
use axum::{Router, extract::State, routing::get};
use http::{Version, header};
use std::time::Duration;
use support::Held;
use support::{
    LIMIT, SLACK,
    client::Client,
    raw::{End, Raw},
    server::{Hyper, Server},
};
use tokio::{task::JoinSet, time::Instant};
use tower_sse::{
    CloseReason, Connections, Event, SseConnection, SseLayer,
    event::Decoded,
    test_util::{EventReader, ReadError},
};

/// How many streams are open. With their sockets' other ends they take twice as many files; where
/// the limit (`ulimit -n`) is below 3,000, fewer have to do.
fn streams() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.current.unwrap_or(u64::MAX);
    if files < 3_000 { 100 } else { 1_000 }
}

const OVER: Duration = Duration::from_secs(2);

/// Answers at once, or runs inside the body until it is told of the end.
async fn events(State(runs): State<bool>, sse: SseConnection) {
    sse.start();
    if runs {
        sse.ending().await;
        let _ = sse.send(Event::message("finished")).await;
    }
}

fn app(connections: &Connections) -> Router {
    let layer = SseLayer::any_path().registry(connections).hold_open(true);
    let route = |runs: bool| get(events).with_state(runs);
    Router::new()
        .route("/idle", route(false))
        .route("/running", route(true))
        .layer(layer)
}

/// Reads to the end: the last event, and the reconnection times.
async fn read(mut events: EventReader) -> (String, Vec<Duration>) {
    let (mut last, mut times) = (String::new(), Vec::new());
    loop {
        match events.decoded().await {
            Ok(Decoded::Event(event)) => last = event.data,
            Ok(Decoded::Retry(time)) => times.push(time),
            Ok(_) => {}
            Err(ReadError::Ended) => return (last, times),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Opens the streams, shuts the server down with a drain, and sees that both are over in time.
async fn shut_down(mut server: Server, connections: &Connections, version: Version) {
    let count = streams();
    // Over HTTP/2 many streams share a connection.
    let per_connection = if version == Version::HTTP_2 { 50 } else { 1 };
    let (mut clients, mut readers) = (Vec::new(), JoinSet::new());
    for number in 0..count / per_connection {
        let mut client = Client::connect(server.address, version).await;
        let path = if number % 2 == 0 { "/idle" } else { "/running" };
        for _ in 0..per_connection {
            readers.spawn(read(client.open(path).await));
        }
        clients.push(client);
    }
    assert_eq!(connections.len(), count);

    let began = Instant::now();
    server.begin_stop();
    let drained = connections.drain().over(OVER).deadline(LIMIT).await;
    assert_eq!((drained.ended, drained.aborted), (count, 0));
    server.finished().await;
    let time = began.elapsed();
    println!("{count} streams in {time:?}");
    assert!(time < OVER + SLACK, "{time:?}");
    assert_eq!(connections.held(), 0);
    let stats = connections.stats();
    assert_eq!(stats.closed(CloseReason::Drained), count as u64);

    while let Some(reading) = readers.join_next().await {
        let (last, times) = reading.unwrap();
        assert_eq!(last, r#"{"reason":"drained"}"#);
        let [drained] = times[..] else {
            panic!("{times:?}");
        };
        let range = Duration::from_secs(1)..=Duration::from_secs(5);
        assert!(range.contains(&drained), "{drained:?}");
    }
}

#[tokio::test]
async fn axum_graceful_shutdown_completes() {
    let connections = Connections::new();
    let server = Server::chosen(SERVER, app(&connections)).await;
    shut_down(server, &connections, Version::HTTP_11).await;
}

#[tokio::test]
async fn axum_graceful_shutdown_completes_over_http_2() {
    let connections = Connections::new();
    let server = Server::chosen(SERVER, app(&connections)).await;
    shut_down(server, &connections, Version::HTTP_2).await;
}

#[tokio::test]
async fn hyper_graceful_shutdown_completes() {
    let connections = Connections::new();
    let server = Server::hyper_or(SERVER, Hyper::Http1, app(&connections)).await;
    shut_down(server, &connections, Version::HTTP_11).await;
}

#[tokio::test]
async fn hyper_graceful_shutdown_completes_over_http_2() {
    for which in [Hyper::Http2, Hyper::Auto] {
        let connections = Connections::new();
        let server = Server::hyper_or(SERVER, which, app(&connections)).await;
        shut_down(server, &connections, Version::HTTP_2).await;
    }
}

#[tokio::test]
async fn unfinished_handler_is_aborted_visibly_to_its_client() {
    let connections = Connections::new();
    let layer = SseLayer::any_path().registry(&connections);
    let handler = async |sse: SseConnection| {
        sse.start();
        std::future::pending::<()>().await;
    };
    let app = Router::new().route("/", get(handler)).layer(layer);
    let mut server = Server::chosen(SERVER, app).await;
    let mut first = Raw::request(server.address, "GET / HTTP/1.1\r\nhost: x\r\n").await;
    first.stream_head().await;
    let mut second = Client::connect(server.address, Version::HTTP_2).await;
    let mut events = second.open("/").await;

    server.begin_stop();
    let drain = connections.drain().over(Duration::ZERO);
    let drained = drain.deadline(Duration::from_secs(2)).await;
    assert_eq!((drained.ended, drained.aborted), (0, 2));
    assert_eq!(first.event().await.unwrap().event_type, "welcome");
    assert_eq!(first.event().await.unwrap().event_type, "reconnect");
    assert_eq!(first.event().await, Err(End::Cut));
    assert_eq!(events.event().await.unwrap().event_type, "reconnect");
    assert!(matches!(events.event().await, Err(ReadError::Broken(_))));
    server.finished().await;
}

#[tokio::test]
async fn a_refusal_in_a_drain_closes_the_socket() {
    let connections = Connections::new();
    let server = Server::chosen(SERVER, app(&connections)).await;
    connections.drain().await;
    let mut client = Raw::request(server.address, "GET /idle HTTP/1.1\r\nhost: x\r\n").await;
    let head = client.stream_head().await;
    assert_eq!(head.headers[header::CONNECTION], "close");
    let rest = String::from_utf8(client.rest().await).unwrap();
    assert!(rest.contains("event: reconnect\n"), "{rest}");
}
