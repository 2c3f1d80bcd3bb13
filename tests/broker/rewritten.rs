//! A log that forgets records it has acknowledged, and writes others at their offsets, within one
//! epoch: as a replica does that lacked the last ones when it took over.

use super::paths;
use paths::connection_of;
use std::sync::{Arc, Mutex};

use futures_util::stream;
use http::Request;
use tokio::sync::watch;
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    backplane::{AppendError, Backplane, BoxFuture, Read, ReadError, Record, RecordStream, Start},
    broker::{Epoch, Outcome, Position},
    test_util::EventReader,
};

const EPOCH: Epoch = Epoch::new(7);

/// A log whose end can be cut off.
#[derive(Clone, Default)]
struct Forgetful {
    records: Arc<Mutex<Vec<(Position, Record)>>>,
    /// How often it has changed.
    changes: watch::Sender<u64>,
    /// How often it has forgotten something. Streams from before break off.
    failovers: Arc<Mutex<u32>>,
}

impl Forgetful {
    /// Forgets all after this offset.
    fn forget(&self, offset: usize) {
        self.records.lock().unwrap().truncate(offset);
        *self.failovers.lock().unwrap() += 1;
        self.changes.send_modify(|count| *count += 1);
    }

    fn at(&self, offset: u64) -> Option<(Position, Record)> {
        let at = usize::try_from(offset - 1).unwrap();
        self.records.lock().unwrap().get(at).cloned()
    }
}

impl Backplane for Forgetful {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        let mut records = self.records.lock().unwrap();
        // Another tag for each life of an offset.
        let tag = 100 * (*self.failovers.lock().unwrap() + 1) + records.len() as u32;
        let position = Position::new(EPOCH, records.len() as u64 + 1, tag);
        records.push((position, record));
        drop(records);
        self.changes.send_modify(|count| *count += 1);
        Box::pin(async move { Ok(position) })
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        let log = self.clone();
        Box::pin(async move {
            let offset = match start {
                Start::Window => 0,
                Start::After(place) if place.offset() == 0 => 0,
                Start::After(place) => match log.at(place.offset()) {
                    Some((known, _)) if known == place => place.offset(),
                    _ => return Err(ReadError::rewritten()),
                },
                _ => unreachable!(),
            };
            let changes = log.changes.subscribe();
            let life = *log.failovers.lock().unwrap();
            let state = (log, changes, offset, life);
            let next = |(log, mut changes, offset, life): (Self, watch::Receiver<u64>, _, _)| async move {
                loop {
                    if *log.failovers.lock().unwrap() != life {
                        let error = ReadError::unavailable("failed over");
                        return Some((Err(error), (log, changes, offset, life)));
                    }
                    if let Some((position, record)) = log.at(offset + 1) {
                        let read = Read::Record(position, record);
                        return Some((Ok(read), (log, changes, offset + 1, life)));
                    }
                    changes.changed().await.ok()?;
                }
            };
            Ok(Box::pin(stream::unfold(state, next)) as RecordStream)
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        let records = self.records.lock().unwrap();
        let last = records.last().map(|(position, _)| *position);
        Box::pin(async move { Ok(last.unwrap_or(Position::new(EPOCH, 0, 0))) })
    }
}

async fn connect(id: Option<&str>) -> (SseConnection, EventReader) {
    let mut request = Request::get("/");
    if let Some(id) = id {
        request = request.header("last-event-id", id);
    }
    connection_of(&SseLayer::any_path(), request.body(()).unwrap()).await
}

async fn publish(broker: &Broker, topic: &str, text: &str) -> Position {
    broker.publish(topic, Event::message(text)).await.unwrap()
}

/// The next events but the welcome, with the place that the client has after each.
async fn next(events: &mut EventReader, count: usize) -> Vec<(String, String)> {
    let mut got = Vec::new();
    while got.len() < count {
        let event = events.event().await.unwrap();
        if event.event_type != "welcome" {
            let text = match &*event.event_type {
                "message" => event.data,
                other => format!("{other}:{}", event.data),
            };
            got.push((text, event.last_event_id));
        }
    }
    got
}

#[tokio::test(start_paused = true)]
async fn client_of_forgotten_records_gets_a_gap_on_any_node() {
    let log = Forgetful::default();
    let broker = Broker::new(log.clone());
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    let kept = publish(&broker, "a", "kept").await;
    publish(&broker, "a", "forgotten").await;
    let seen = next(&mut events, 3).await[2].1.clone();
    log.forget(1);
    let written = Broker::new(log.clone());
    let second = publish(&written, "a", "written over").await;
    assert_eq!(second.offset(), 2);

    let gap = r#"gap:{"reason":"lost","missed":null}"#;
    assert_eq!(next(&mut events, 1).await[0].0, gap);
    let nodes = [broker, written, Broker::new(log)];
    for node in &nodes {
        let (sse, mut events) = connect(Some(&seen)).await;
        let subscription = node.subscribe(&sse, "a").await.unwrap();
        assert_eq!(subscription.resolved().await, Outcome::Gap);
        subscription.start();
        let gap = r#"gap:{"reason":"unknown_position","missed":null}"#;
        assert_eq!(next(&mut events, 1).await[0].0, gap);
        // Whoever saw no more than what was kept, goes on.
        let (sse, mut events) = connect(Some(&kept.to_string())).await;
        let subscription = node.subscribe(&sse, "a").await.unwrap();
        assert_eq!(subscription.resolved().await, Outcome::Exact);
        subscription.start();
        let expected = ("written over".to_owned(), second.to_string());
        assert_eq!(next(&mut events, 1).await, [expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn live_connection_gets_ids_of_the_rewritten_log() {
    let log = Forgetful::default();
    let broker = Broker::new(log.clone());
    let start = publish(&broker, "b", "1").await;
    publish(&broker, "b", "2").await;
    publish(&broker, "b", "3").await;
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    let place = next(&mut events, 1).await.remove(0).1;
    // Replayed: without ids of their own.
    broker
        .subscribe(&sse, "b")
        .from(&start)
        .await
        .unwrap()
        .start();
    let replayed = ["2", "3"].map(|text| (text.to_owned(), place.clone()));
    assert_eq!(next(&mut events, 2).await, replayed);

    log.forget(0);
    let gap = r#"gap:{"reason":"lost","missed":null}"#;
    assert_eq!(next(&mut events, 1).await[0].0, gap);
    let first = publish(&broker, "b", "first of the new").await;
    assert!(first.offset() < start.offset() + 2);
    let expected = ("first of the new".to_owned(), first.to_string());
    assert_eq!(next(&mut events, 1).await, [expected]);
}
