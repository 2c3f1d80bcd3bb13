//! Slow and stalled clients over TLS, whose library holds back what a socket does not take at once.

use std::time::Duration;
use support::tls;

use support::{
    SLACK,
    raw::{End, Raw},
    server::Server,
    streams::Streams,
    within,
};
use tls::Tls;
use tokio::{
    net::TcpSocket,
    time::{Instant, interval},
};
use tower_sse::{
    CloseReason, Event, SseLayer,
    serve::{TcpListener, serve, with_handshake},
};

const DEADLINE: Duration = Duration::from_secs(3);

fn streams() -> Streams {
    let layer = SseLayer::new("/events");
    Streams::new(layer.keep_alive(None).stall_timeout(None))
}

/// A server with a write deadline, and kernel buffers as small as they get.
async fn small(streams: &Streams, tls: &Tls, is_direct: bool) -> Server {
    let (router, acceptor) = (streams.router.clone(), tls.acceptor.clone());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(1).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Server::start_on(socket.listen(128).unwrap(), move |listener, stopped| {
        let listener = TcpListener::from(listener);
        let listener = with_handshake(listener, move |socket| acceptor.accept(socket));
        let serve = serve(listener, router)
            .direct(is_direct)
            .write_deadline(Some(DEADLINE))
            .with_graceful_shutdown(stopped);
        async { serve.await.unwrap() }
    })
}

/// What TLS holds takes such a client many times the deadline; it takes something all along.
#[tokio::test]
async fn slowly_reading_client_is_not_closed() {
    tokio::join!(is_not_given_up(true), is_not_given_up(false));
}

async fn is_not_given_up(is_direct: bool) {
    let mut streams = streams();
    let tls = Tls::new();
    let server = small(&streams, &tls, is_direct).await;
    let mut client = Raw::over(tls.connect_small(server.address).await);
    let sse = streams.open(&mut client).await;
    assert_eq!(is_direct, streams.direct() == 1);
    // TLS takes it as a whole, and holds it while it goes out.
    sse.send(Event::message("x".repeat(60_000))).await.unwrap();
    let start = Instant::now();
    let mut ticks = interval(Duration::from_millis(130));
    for _ in 0..58 {
        ticks.tick().await;
        assert!(client.sip(1000).await && !sse.is_closed());
    }
    assert!(start.elapsed() > 2 * DEADLINE);
    assert_eq!(client.event().await.unwrap().data.len(), 60_000);
    assert!(!sse.is_closed());
}

#[tokio::test]
async fn stalled_client_is_closed_at_the_write_deadline() {
    for is_direct in [true, false] {
        let mut streams = streams();
        let tls = Tls::new();
        let server = small(&streams, &tls, is_direct).await;
        let mut client = Raw::over(tls.connect_small(server.address).await);
        let sse = streams.open(&mut client).await;
        let sent = Instant::now();
        sse.send(Event::message("x".repeat(1_000_000)))
            .await
            .unwrap();
        let reason = within("the end", sse.closed()).await;
        let took = sent.elapsed();
        assert_eq!(reason, CloseReason::ClientGone);
        assert!(took >= DEADLINE && took < DEADLINE + SLACK, "{took:?}");
        streams.gone().await;
        assert_eq!(client.chunk().await, Err(End::Cut));
    }
}
