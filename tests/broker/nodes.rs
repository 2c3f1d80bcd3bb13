//! Several nodes on one log, and logs that are slow, that fail and come back, that are rewritten.

use super::paths;
use paths::connection_of;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use http::Request;
use tokio::{sync::watch, time::sleep};
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    backplane::{
        AppendError, AppendErrorKind, Backplane, BoxFuture, Memory, ReadError, Record,
        RecordStream, Start,
    },
    broker::{BrokerErrorKind, Outcome, Position},
    event::Decoded,
    test_util::EventReader,
};

/// A log in memory that can be out of reach, and be replaced by another.
#[derive(Clone)]
struct Remote {
    memory: Arc<Mutex<Memory>>,
    /// Whether it answers. Who reads while it does not, waits.
    answers: watch::Sender<bool>,
    /// Whether streams that are open break off.
    breaks: watch::Sender<u64>,
    /// Whether it cannot be reached: nobody waits then, all fail.
    fails: Arc<AtomicBool>,
}

impl Remote {
    fn new(memory: &Memory) -> Self {
        Self {
            memory: Arc::new(Mutex::new(memory.clone())),
            answers: watch::Sender::new(true),
            breaks: watch::Sender::new(0),
            fails: Arc::default(),
        }
    }

    async fn reached(&self) -> Result<Memory, ReadError> {
        let mut answers = self.answers.subscribe();
        answers.wait_for(|it| *it).await.unwrap();
        if self.fails.load(Ordering::SeqCst) {
            return Err(ReadError::unavailable("out of reach"));
        }
        Ok(self.memory.lock().unwrap().clone())
    }

    fn set_answers(&self, answers: bool) {
        self.answers.send_replace(answers);
    }

    fn set_fails(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
        self.breaks.send_modify(|count| *count += 1);
    }
}

impl Backplane for Remote {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(async move {
            let reached = self.reached().await;
            let memory = reached.map_err(|it| AppendError::new(AppendErrorKind::NotSent, it))?;
            memory.append(record).await
        })
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(async move {
            let memory = self.reached().await?;
            let records = memory.read(start).await?;
            let mut breaks = self.breaks.subscribe();
            let broken = async move {
                breaks.changed().await.unwrap();
            };
            let broken_off = stream::once(async { Err(ReadError::unavailable("broken off")) });
            Ok(Box::pin(records.take_until(broken).chain(broken_off)) as RecordStream)
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move { self.reached().await?.head().await })
    }
}

async fn connect(id: Option<&Position>) -> (SseConnection, EventReader) {
    let mut request = Request::get("/");
    if let Some(id) = id {
        request = request.header("last-event-id", id.to_string());
    }
    connection_of(&SseLayer::any_path(), request.body(()).unwrap()).await
}

async fn publish(broker: &Broker, text: &str) -> Position {
    broker.publish("a", Event::message(text)).await.unwrap()
}

/// The next events, but the welcome: data alone for messages.
async fn next(events: &mut EventReader, count: usize) -> Vec<String> {
    let mut got = Vec::new();
    while got.len() < count {
        let event = events.event().await.unwrap();
        match &*event.event_type {
            "welcome" => {}
            "message" => got.push(event.data),
            other => got.push(format!("{other}:{}", event.data)),
        }
    }
    got
}

#[tokio::test(start_paused = true)]
async fn event_published_on_one_node_reaches_another() {
    let log = Memory::new();
    let (here, there) = (Broker::new(log.clone()), Broker::new(log));
    let (sse, mut events) = connect(None).await;
    here.subscribe(&sse, "a").await.unwrap().start();
    assert_eq!(next(&mut events, 1).await, ["position:{}"]);
    let reading = tokio::spawn(async move { next(&mut events, 3).await });
    tokio::task::yield_now().await;
    publish(&there, "1").await;
    publish(&here, "2").await;
    publish(&there, "3").await;
    assert_eq!(reading.await.unwrap(), ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn client_resumes_on_another_node_without_loss() {
    let log = Memory::new();
    let nodes = [Broker::new(log.clone()), Broker::new(log.clone())];
    let mut place = publish(&nodes[0], "0").await;
    for number in 1..10 {
        let last = publish(&nodes[number % 2], &number.to_string()).await;
        // A third node begins by reading what is retained.
        let new = Broker::new(log.clone());
        for node in nodes.iter().chain([&new]) {
            let (sse, mut events) = connect(Some(&place)).await;
            let subscription = node.subscribe(&sse, "a").await.unwrap();
            assert_eq!(subscription.resolved().await, Outcome::Exact);
            subscription.start();
            assert_eq!(next(&mut events, 1).await, [number.to_string()]);
            assert!(events.event().now_or_never().is_none());
        }
        place = last;
    }
}

#[tokio::test(start_paused = true)]
async fn client_ahead_of_lagging_node_waits_for_catch_up() {
    let log = Memory::new();
    let remote = Remote::new(&log);
    let (ahead, behind) = (Broker::new(log), Broker::new(remote.clone()));
    publish(&ahead, "1").await;
    let (sse, _events) = connect(None).await;
    behind.subscribe(&sse, "a").await.unwrap().resolved().await;
    // Out of reach while more is published.
    remote.set_fails(true);
    tokio::task::yield_now().await;
    let place = publish(&ahead, "2").await;
    publish(&ahead, "3").await;
    remote.set_fails(false);
    let (sse, mut events) = connect(Some(&place)).await;
    let subscription = behind.subscribe(&sse, "a").await.unwrap();
    assert_eq!(subscription.outcome(), Outcome::Exact);
    subscription.start();
    assert_eq!(next(&mut events, 1).await, ["3"]);
}

#[tokio::test(start_paused = true)]
async fn streams_open_before_the_log_is_read() {
    let log = Memory::new();
    let other = Broker::new(log.clone());
    let place = publish(&other, "1").await;
    publish(&other, "2").await;
    let unknown = Position::new(place.epoch(), 77, 7);
    let remote = Remote::new(&log);
    remote.set_answers(false);
    let broker = Broker::new(remote.clone());
    let gap = r#"gap:{"reason":"unknown_position","missed":null}"#;
    let cases = [
        (None, Outcome::Fresh, vec!["position:{}", "3"]),
        (Some(&place), Outcome::Exact, vec!["2", "3"]),
        (Some(&unknown), Outcome::Gap, vec![gap, "position:{}", "3"]),
    ];
    let mut clients = Vec::new();
    for (id, outcome, expected) in cases {
        let (sse, events) = connect(id).await;
        let mut events = events.time_limit(Duration::from_secs(60));
        let subscription = broker.subscribe(&sse, "a").await.unwrap();
        assert_eq!(subscription.outcome(), Outcome::Pending);
        let resolved = tokio::spawn(async move {
            let outcome = subscription.resolved().await;
            subscription.start();
            outcome
        });
        assert_eq!(events.event().await.unwrap().event_type, "welcome");
        assert!(
            matches!(events.decoded().await, Ok(Decoded::Comment(_))),
            "a heartbeat"
        );
        clients.push((sse, events, resolved, outcome, expected));
    }
    remote.set_answers(true);
    for (_, _, resolved, outcome, _) in &mut clients {
        assert_eq!(resolved.await.unwrap(), *outcome);
    }
    publish(&broker, "3").await;
    for (_, events, _, _, expected) in &mut clients {
        assert_eq!(next(events, expected.len()).await, *expected);
    }
}

#[tokio::test(start_paused = true)]
async fn live_pending_subscription_resumes_once_log_is_read() {
    let log = Memory::new();
    let place = publish(&Broker::new(log.clone()), "1").await;
    let remote = Remote::new(&log);
    remote.set_answers(false);
    let broker = Broker::new(remote.clone());
    let (sse, mut events) = connect(Some(&place)).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    let reading = tokio::spawn(async move { next(&mut events, 1).await });
    sleep(Duration::from_secs(3)).await;
    remote.set_answers(true);
    publish(&Broker::new(log), "2").await;
    assert_eq!(reading.await.unwrap(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn live_pending_subscription_gets_its_position() {
    let remote = Remote::new(&Memory::new());
    remote.set_answers(false);
    let broker = Broker::new(remote.clone());
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    remote.set_answers(true);
    assert_eq!(next(&mut events, 1).await, ["position:{}"]);
    assert!(Position::parse(events.last_event_id().as_bytes()).is_some());
}

#[tokio::test(start_paused = true)]
async fn log_outage_causes_no_gap_and_no_duplicate() {
    let log = Memory::new();
    let remote = Remote::new(&log);
    let broker = Broker::new(remote.clone());
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    publish(&broker, "1").await;
    assert_eq!(next(&mut events, 2).await, ["position:{}", "1"]);
    remote.set_fails(true);
    tokio::task::yield_now().await;
    let refused = broker
        .publish("a", Event::message("never"))
        .await
        .unwrap_err();
    assert_eq!(
        refused.kind(),
        BrokerErrorKind::Append(AppendErrorKind::NotSent)
    );
    publish(&Broker::new(log), "2").await;
    sleep(Duration::from_secs(60)).await;
    remote.set_fails(false);
    publish(&broker, "3").await;
    assert_eq!(next(&mut events, 2).await, ["2", "3"]);
    assert!(events.event().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn replaced_log_gives_every_live_subscriber_a_gap() {
    let remote = Remote::new(&Memory::new());
    let broker = Broker::new(remote.clone());
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    let (quiet, mut quiet_events) = connect(None).await;
    broker.subscribe(&quiet, "quiet").await.unwrap().start();
    for text in ["1", "2", "3"] {
        publish(&broker, text).await;
    }
    next(&mut events, 4).await;
    next(&mut quiet_events, 1).await;
    let old = Position::parse(events.last_event_id().as_bytes()).unwrap();

    *remote.memory.lock().unwrap() = Memory::new();
    remote.set_fails(false); // its streams break off
    let gap = r#"gap:{"reason":"lost","missed":null}"#;
    assert_eq!(next(&mut events, 1).await, [gap]);
    assert_eq!(next(&mut quiet_events, 1).await, [gap]);
    let new = publish(&broker, "new").await;
    assert_eq!(next(&mut events, 1).await, ["new"]);
    assert_eq!(events.last_event_id(), new.to_string());
    // And to those who come back.
    let (sse, mut events) = connect(Some(&old)).await;
    let subscription = broker.subscribe(&sse, "a").await.unwrap();
    assert_eq!(subscription.resolved().await, Outcome::Gap);
    subscription.start();
    let gap = r#"gap:{"reason":"other_log","missed":null}"#;
    assert_eq!(next(&mut events, 2).await, [gap, "position:{}"]);
}

#[tokio::test(start_paused = true)]
async fn slow_append_does_not_delay_events_of_others() {
    let log = Memory::new();
    let remote = Remote::new(&log);
    let broker = Broker::new(remote.clone());
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    assert_eq!(next(&mut events, 1).await, ["position:{}"]);
    remote.set_answers(false);
    let slow = broker.clone();
    let publishing = tokio::spawn(async move { publish(&slow, "slow").await });
    tokio::task::yield_now().await;
    publish(&Broker::new(log), "1").await;
    assert_eq!(next(&mut events, 1).await, ["1"]);
    remote.set_answers(true);
    publishing.await.unwrap();
    assert_eq!(next(&mut events, 1).await, ["slow"]);
}
