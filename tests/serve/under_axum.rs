//! The crate's listener under `axum::serve`.

use std::{future::IntoFuture, time::Duration};

use support::{
    SLACK,
    raw::{End, Raw},
    streams::Streams,
    within,
};
use tokio::{net::TcpSocket, time::Instant};
use tower_sse::{CloseReason, Event, SseLayer, serve::TcpListener};

const DEADLINE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn stalled_client_is_closed_at_the_write_deadline() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(1).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = TcpListener::from(socket.listen(128).unwrap()).write_deadline(Some(DEADLINE));
    let address = listener.local_addr().unwrap();
    let layer = SseLayer::new("/events").keep_alive(None);
    let mut streams = Streams::new(layer.stall_timeout(None));
    let server = axum::serve(listener, streams.router.clone());
    let server = tokio::spawn(server.into_future());

    let mut client = Raw::connect_small(address).await;
    let sse = streams.open(&mut client).await;
    sse.send(Event::message("read")).await.unwrap();
    assert_eq!(client.event().await.unwrap().data, "read");

    let sent = Instant::now();
    sse.send(Event::message("x".repeat(1_000_000)))
        .await
        .unwrap();
    assert_eq!(
        within("the end", sse.closed()).await,
        CloseReason::ClientGone
    );
    let took = sent.elapsed();
    assert!(took >= DEADLINE && took < DEADLINE + SLACK, "{took:?}");
    streams.gone().await;
    while client.chunk().await.is_ok() {}
    assert_eq!(client.chunk().await, Err(End::Cut));
    server.abort();
}
