//! A log that cannot be reached: what subscribers and brokers that leave take along.

use super::paths;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::timeout;
use tower_sse::{
    Broker,
    backplane::{
        AppendError, Backplane, BoxFuture, Memory, ReadError, Record, RecordStream, Start,
    },
    broker::Position,
};

/// A log that does not answer readers.
struct Unreachable {
    memory: Memory,
    _life: Arc<()>,
}

impl Unreachable {
    fn new() -> (Self, Weak<()>) {
        let life = Arc::new(());
        let alive = Arc::downgrade(&life);
        let memory = Memory::new();
        (
            Self {
                memory,
                _life: life,
            },
            alive,
        )
    }
}

impl Backplane for Unreachable {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        self.memory.append(record)
    }

    fn read(&self, _: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(std::future::pending())
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(std::future::pending())
    }
}

/// Subscribes, and disconnects.
async fn come_and_go(broker: &Broker) {
    let (sse, events) = paths::connection().await;
    let subscribing = broker.subscribe(&sse, ["orders", "alerts"]);
    if let Ok(subscription) = timeout(Duration::from_secs(5), subscribing).await {
        subscription.unwrap().start();
    }
    drop((sse, events));
}

#[tokio::test(start_paused = true)]
async fn broker_is_freed_after_its_subscribers_left() {
    let (log, alive) = Unreachable::new();
    let broker = Broker::new(log);
    for _ in 0..3 {
        come_and_go(&broker).await;
    }
    assert_eq!(broker.subscriber_count("orders").unwrap(), 0);
    assert_eq!(broker.topic_count(), 0);
    drop(broker);
    // Its task ends at its next poll.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(alive.strong_count(), 0, "the log is still held");
}

#[tokio::test(start_paused = true)]
async fn broker_lives_while_a_subscriber_waits() {
    let (log, alive) = Unreachable::new();
    let broker = Broker::new(log);
    let (sse, events) = paths::connection().await;
    let subscribing = broker.subscribe(&sse, "orders");
    if let Ok(subscription) = timeout(Duration::from_secs(5), subscribing).await {
        subscription.unwrap().start();
    }
    drop(broker);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(alive.strong_count(), 1, "the subscriber has lost its log");
    drop((sse, events));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(alive.strong_count(), 0, "the log is still held");
}
