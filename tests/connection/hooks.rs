//! Hooks that come back to what has called them: they publish, send, close, look around, and panic.

use super::paths;
use paths::connection_of;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use support::Held;

use futures_util::FutureExt;
use http::Request;
use tower_sse::{
    Broker, CloseReason, Connections, Event, SseConnection, SseLayer, test_util::EventReader,
};

/// What a hook may do: all that could meet a lock which its caller holds.
fn do_everything(broker: &Broker, connections: &Connections, sse: &SseConnection, text: &str) {
    let event = Event::message(text);
    let published = broker.publish("lives", event).now_or_never();
    published.expect("a publisher waits for nobody").unwrap();
    assert_eq!(connections.get(&sse.uuid()).is_some(), text == "opened");
    connections.close_where(|other| other == sse && text == "nobody");
    let _ = (connections.stats(), broker.stats());
    let _ = sse.try_send(Event::message("from a hook"));
    let _ = sse.limit(&"hook", 1000);
    let _ = broker.subscribe(sse, "other").into_future().now_or_never();
}

async fn open(layer: &SseLayer) -> (SseConnection, EventReader) {
    connection_of(layer, Request::default()).await
}

async fn texts(events: &mut EventReader, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let event = events.event().await.unwrap();
        if event.event_type == "message" {
            texts.push(event.data);
        }
    }
    texts
}

#[tokio::test(start_paused = true)]
async fn hooks_may_reenter_the_library_and_panic() {
    for panics in [false, true] {
        let broker = Broker::in_memory();
        let connections = Connections::new();
        let calls = Arc::new(AtomicUsize::new(0));
        let hook = |text: &'static str| {
            let broker = broker.clone();
            let connections = connections.clone();
            let calls = Arc::clone(&calls);
            move |sse: &SseConnection| {
                do_everything(&broker, &connections, sse, text);
                calls.fetch_add(1, Ordering::SeqCst);
                assert!(!panics, "a hook panics");
            }
        };
        let (on_open, on_close) = (hook("opened"), hook("closed"));
        let watched = SseLayer::any_path()
            .registry(&connections)
            .on_open(on_open)
            .on_close(move |sse, _| on_close(sse));

        // Somebody who is told of all lives.
        let (watcher, mut lives) = open(&SseLayer::any_path()).await;
        broker.subscribe(&watcher, "lives").await.unwrap().start();

        let (sse, mut events) = open(&watched).await;
        assert_eq!(texts(&mut events, 1).await, ["from a hook"]);
        let own = broker.clone();
        let own_calls = Arc::clone(&calls);
        sse.on_close(move |_| {
            let event = Event::message("its own");
            let published = own.publish("lives", event).now_or_never();
            published.expect("a publisher waits for nobody").unwrap();
            own_calls.fetch_add(1, Ordering::SeqCst);
            assert!(!panics, "a hook panics");
        });
        drop(events);
        assert_eq!(sse.closed().await, CloseReason::ClientGone);
        assert_eq!(texts(&mut lives, 3).await, ["opened", "its own", "closed"]);
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        assert_eq!(connections.held(), 0);
        assert_eq!(connections.stats().closed(CloseReason::ClientGone), 1);
    }
}
