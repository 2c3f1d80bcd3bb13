//! What protects a server, on streams that are direct: as on those that hyper drives.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::StatusCode;
use support::{
    raw::{End, Raw},
    server::Server,
    streams::{GET, Streams},
    until, within,
};
use tokio::time::Instant;
use tower_sse::{
    Broker, CloseReason, Event, SseConnection, SseLayer,
    broker::{History, SlowConsumer},
    connection::Refusal,
    layer::Limits,
};

const SHORT: Duration = Duration::from_millis(200);

fn quiet() -> SseLayer {
    SseLayer::new("/events").keep_alive(None)
}

/// A stream on a server with small buffers, and whether it is as wanted.
async fn open(layer: SseLayer, is_direct: bool) -> (Streams, Server, Raw, SseConnection) {
    let mut streams = Streams::new(layer);
    let server =
        Server::ours_small(streams.router.clone(), move |serve| serve.direct(is_direct)).await;
    let mut client = Raw::connect_small(server.address).await;
    let sse = streams.open(&mut client).await;
    assert_eq!(is_direct, streams.direct() == 1);
    (streams, server, client, sse)
}

/// The stream has ended cleanly for this reason, and its socket is used again.
async fn has_ended(streams: &mut Streams, client: &mut Raw, sse: &SseConnection, why: CloseReason) {
    assert_eq!(client.event().await, Err(End::LastChunk));
    assert_eq!(within("the end", sse.closed()).await, why);
    assert_eq!(streams.connections.stats().closed(why), 1);
    streams.gone().await;
    client.send("GET /plain HTTP/1.1\r\nhost: a\r\n").await;
    assert_eq!(client.head().await.status, StatusCode::OK);
    assert_eq!(client.take(5).await, b"plain");
}

#[tokio::test]
async fn heartbeats_are_sent_in_silence() {
    for is_direct in [true, false] {
        let start = Instant::now();
        let (streams, _server, mut client, sse) = open(quiet().keep_alive(SHORT), is_direct).await;
        for _ in 0..3 {
            assert_eq!(client.chunk().await.unwrap(), b":\n");
        }
        assert!(start.elapsed() > SHORT * 5 / 2, "{:?}", start.elapsed());
        sse.send(Event::message("1")).await.unwrap();
        assert_eq!(client.event().await.unwrap().data, "1");
        assert_eq!(
            streams.connections.stats().events_sent,
            2,
            "heartbeats are none"
        );
    }
}

#[tokio::test]
async fn stream_ends_at_its_lifetime_or_close_at() {
    for is_direct in [true, false] {
        let (mut streams, _server, mut client, sse) =
            open(quiet().max_lifetime(SHORT), is_direct).await;
        has_ended(&mut streams, &mut client, &sse, CloseReason::Lifetime).await;

        let (mut streams, _server, mut client, sse) = open(quiet(), is_direct).await;
        let time = Instant::now() + SHORT;
        sse.close_at(time);
        has_ended(&mut streams, &mut client, &sse, CloseReason::Lifetime).await;
        assert!(Instant::now() >= time);
    }
}

#[tokio::test]
async fn drained_stream_gets_a_last_event() {
    for is_direct in [true, false] {
        let (mut streams, _server, mut client, sse) = open(quiet(), is_direct).await;
        sse.try_send(Event::message("queued")).unwrap();
        let drained = streams.connections.drain().over(Duration::ZERO).await;
        assert_eq!((drained.ended, drained.aborted), (1, 0));
        assert_eq!(client.event().await.unwrap().data, "queued");
        assert_eq!(client.event().await.unwrap().event_type, "reconnect");
        has_ended(&mut streams, &mut client, &sse, CloseReason::Drained).await;
    }
}

#[tokio::test]
async fn stream_counts_towards_the_limit_until_it_ends() {
    for is_direct in [true, false] {
        let layer = quiet()
            .max_connections(1)
            .limits(Limits::new().refusal(Refusal::Unavailable));
        let (mut streams, server, mut client, sse) = open(layer, is_direct).await;
        let mut second = Raw::request(server.address, GET).await;
        assert_eq!(second.head().await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(streams.connections.stats().refused, 1);
        sse.close();
        has_ended(&mut streams, &mut client, &sse, CloseReason::Closed).await;
        streams.open(&mut Raw::connect(server.address).await).await;
    }
}

#[tokio::test]
async fn stalled_stream_is_closed_and_its_queue_is_freed() {
    for is_direct in [true, false] {
        let layer = quiet().stall_timeout(SHORT);
        let (streams, server, mut client, sse) = open(layer, is_direct).await;
        let start = Instant::now();
        sse.send(Event::message("x".repeat(500_000))).await.unwrap();
        sse.send(Event::message("never")).await.unwrap();
        let reason = within("the end", sse.closed()).await;
        assert_eq!(reason, CloseReason::SlowConsumer);
        assert!(start.elapsed() >= SHORT);
        let stats = streams.connections.stats();
        assert_eq!((stats.open, stats.queued_bytes), (0, 0));
        assert_eq!(stats.closed(CloseReason::SlowConsumer), 1);
        if is_direct {
            // Its socket is closed, though the client has not read a byte more.
            streams.gone().await;
        }
        // A client that reads after all finds it broken off.
        while let Ok(event) = client.event().await {
            assert_ne!(event.data, "never");
        }
        streams.gone().await;
        drop(server);
    }
}

#[tokio::test]
async fn subscriber_behind_its_history_is_disconnected() {
    for is_direct in [true, false] {
        let builder = Broker::builder().history(History::default().events(2));
        let broker = builder.slow_consumer(SlowConsumer::Disconnect).in_memory();
        let (streams, _server, mut client, sse) = open(quiet(), is_direct).await;
        broker.subscribe(&sse, "a").await.unwrap().start();
        for _ in 0..20 {
            let event = Event::message("x".repeat(200_000));
            broker.publish("a", event).await.unwrap();
        }
        let reason = within("the end", async {
            loop {
                // It is found when one more is published that it cannot have.
                if sse.is_closed() {
                    break sse.closed().await;
                }
                broker.publish("a", Event::message("more")).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(reason, CloseReason::SlowConsumer);
        while client.event().await.is_ok() {}
        streams.gone().await;
    }
}

#[tokio::test]
async fn hooks_run_once_and_stats_match_the_stream() {
    for is_direct in [true, false] {
        let hooks = Arc::new(Mutex::new(Vec::new()));
        let opened = Arc::new(AtomicUsize::new(0));
        let (layers, counter) = (Arc::clone(&hooks), Arc::clone(&opened));
        let layer = quiet()
            .on_open(move |_| {
                counter.fetch_add(1, SeqCst);
            })
            .on_close(move |_, reason| layers.lock().unwrap().push(("layer", reason)));
        let (streams, _server, mut client, sse) = open(layer, is_direct).await;
        let own = Arc::clone(&hooks);
        sse.on_close(move |reason| own.lock().unwrap().push(("own", reason)));
        for number in 0..10 {
            sse.send(Event::message(number.to_string())).await.unwrap();
            client.event().await.unwrap();
        }
        let stats = streams.connections.stats();
        assert_eq!((stats.open, stats.opened, stats.events_sent), (1, 1, 11));
        assert_eq!(stats.bytes_sent, 13 + 10 * 9);
        drop(client);
        let reason = within("the end", sse.closed()).await;
        assert_eq!(reason, CloseReason::ClientGone);
        streams.gone().await;
        until("both hooks", || hooks.lock().unwrap().len() >= 2).await;
        let mut ran = hooks.lock().unwrap().clone();
        ran.sort_by_key(|(name, _)| *name);
        let expected = ["layer", "own"].map(|name| (name, CloseReason::ClientGone));
        assert_eq!(ran, expected);
        assert_eq!(opened.load(SeqCst), 1);
        let after = streams.connections.stats();
        assert_eq!(
            (after.open, after.events_sent, after.bytes_sent),
            (0, 11, 103)
        );
    }
}
