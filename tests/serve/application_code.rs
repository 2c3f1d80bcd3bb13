//! Handlers that run in direct streams beside 255 others, which go on.

use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use axum::{Router, extract::State, routing::get};
use support::{
    raw::{End, Raw},
    server::Server,
    until,
};
use tokio::sync::{Notify, mpsc};
use tower_sse::{Broker, Connections, Event, SseConnection, SseLayer};

const OTHERS: usize = 255;

/// An application with a stream of its own kind, and others that a broker feeds.
struct App {
    broker: Broker,
    server: Server,
    clients: Vec<Raw>,
    others: Connections,
    begin: Arc<Notify>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Shared {
    broker: Broker,
    /// Makes the running handler go round.
    begin: Arc<Notify>,
    /// Makes the running handler return.
    stop: Arc<AtomicBool>,
    /// The loops that the running handler has made.
    rounds: Arc<AtomicUsize>,
}

async fn others(State(shared): State<Shared>, sse: SseConnection) {
    let subscription = shared.broker.subscribe(&sse, "topic").await.unwrap();
    subscription.start();
}

/// Never yields: it blocks its worker thread until it is stopped.
async fn blocks(State(shared): State<Shared>, sse: SseConnection) {
    sse.send(Event::message("begins")).await.unwrap();
    // What was sent has to reach the socket first.
    shared.begin.notified().await;
    while !shared.stop.load(SeqCst) {
        shared.rounds.fetch_add(1, SeqCst);
        hint::spin_loop();
    }
}

/// Drains a channel that is never empty: only tokio's budget makes it yield.
async fn drains(State(shared): State<Shared>, sse: SseConnection) {
    sse.send(Event::message("begins")).await.unwrap();
    let (sender, mut receiver) = mpsc::channel(2);
    while !shared.stop.load(SeqCst) {
        sender.try_send(()).unwrap();
        receiver.recv().await.unwrap();
        shared.rounds.fetch_add(1, SeqCst);
    }
}

impl App {
    async fn open() -> Self {
        let shared = Shared {
            broker: Broker::in_memory(),
            begin: Arc::default(),
            stop: Arc::default(),
            rounds: Arc::default(),
        };
        let connections = Connections::new();
        let layer = SseLayer::new("/others").registry(&connections);
        let router = Router::new()
            .route("/others", get(others).layer(layer))
            .route("/blocks", get(blocks).layer(SseLayer::new("/blocks")))
            .route("/drains", get(drains).layer(SseLayer::new("/drains")))
            .with_state(shared.clone());
        let server = Server::ours(router, true).await;
        let mut clients = Vec::new();
        for _ in 0..OTHERS {
            clients.push(Raw::request(server.address, "GET /others HTTP/1.1\r\nhost: a\r\n").await);
        }
        for client in &mut clients {
            client.stream_head().await;
            assert_eq!(client.event().await.unwrap().event_type, "welcome");
        }
        Self {
            broker: shared.broker,
            server,
            clients,
            others: connections,
            begin: shared.begin,
            stop: shared.stop,
            rounds: shared.rounds,
        }
    }

    /// Runs a handler beside the others, which get their events meanwhile.
    async fn run_beside(mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n");
        let mut running = Raw::request(self.server.address, &request).await;
        running.stream_head().await;
        assert_eq!(running.event().await.unwrap().event_type, "welcome");
        assert_eq!(running.event().await.unwrap().data, "begins");
        self.begin.notify_one();
        until("the handler to run", || self.rounds.load(SeqCst) > 3).await;
        for number in 0..5 {
            let text = number.to_string();
            let before = self.rounds.load(SeqCst);
            self.broker
                .publish("topic", Event::message(&text))
                .await
                .unwrap();
            for client in &mut self.clients {
                assert_eq!(client.event().await.unwrap().data, text);
            }
            let rounds = &self.rounds;
            until("the handler to go on", || rounds.load(SeqCst) > before).await;
        }
        assert_eq!(self.others.len(), OTHERS);
        self.stop.store(true, SeqCst);
        assert_eq!(running.chunk().await, Err(End::LastChunk));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handler_that_never_yields_does_not_stop_other_streams() {
    App::open().await.run_beside("/blocks").await;
}

/// On one thread, which the handler shares with all other streams.
#[tokio::test]
async fn handler_that_never_waits_does_not_stop_other_streams() {
    App::open().await.run_beside("/drains").await;
}
