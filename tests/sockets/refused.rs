//! A refusal over a real socket: an event stream that ends, so that a client comes back by itself.

use super::SERVER;
use axum::{Router, routing::get};
use eventsource_client::{Client as _, ClientBuilder, ReconnectOptions, SSE};
use futures_util::StreamExt;
use http::Version;
use launchdarkly_sdk_transport::HyperTransport;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use support::{client::Client, server::Server, until, within};
use tokio::time::Instant;
use tower_sse::{Connections, SseConnection, SseLayer, layer::Limits};

/// A client that we did not write is refused, and comes back by itself until there is room.
#[tokio::test]
async fn refused_client_reconnects_and_gets_its_stream() {
    let connections = Connections::new();
    let least = Duration::from_millis(200);
    let layer = SseLayer::any_path()
        .registry(&connections)
        .max_connections(1)
        .limits(Limits::new().refusal_retry(least..=least * 2));
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let handler = async move |sse: SseConnection| {
        counter.fetch_add(1, Relaxed);
        sse.start();
        sse.closed().await;
    };
    let app = Router::new().route("/", get(handler)).layer(layer);
    let server = Server::chosen(SERVER, app).await;
    let mut first = Client::connect(server.address, Version::HTTP_11).await;
    let open = first.open("/").await;

    let transport = HyperTransport::builder().disable_proxy().build_http();
    let again = ReconnectOptions::reconnect(true).delay(Duration::from_secs(600));
    let client = ClientBuilder::for_url(&server.url("/"))
        .unwrap()
        .reconnect(again.build())
        .build_with_transport(transport.unwrap());
    let events = client.stream().filter_map(async |item| match item {
        Ok(SSE::Event(event)) => Some((event.event_type, event.data)),
        _ => None,
    });
    let mut events = events.boxed();
    let mut next = async || within("an event", events.next()).await.unwrap();
    let refused = ("reconnect".to_owned(), r#"{"reason":"full"}"#.to_owned());
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(next().await, refused);
    }
    // It has waited twice for that (by a clock of its own), and not for what it was set to.
    assert!(began.elapsed() > least, "{:?}", began.elapsed());
    drop(open);
    let welcome = loop {
        let event = next().await;
        if event != refused {
            break event;
        }
    };
    assert_eq!(welcome.0, "welcome");
    until("the one connection to be the client's", || {
        connections.len() == 1
    })
    .await;
    assert_eq!(
        calls.load(Relaxed),
        2,
        "the handler was called for streams alone"
    );
    assert!(connections.stats().refused >= 3);
}
