//! What a broker makes of what a log gives: records that clients must not get, and logs that turn
//! into others.

use super::paths;
use paths::connection_of;
use std::sync::{Arc, Mutex};

use http::Request;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tower_sse::{
    Broker, SseConnection, SseLayer,
    backplane::{
        AppendError, AppendErrorKind, Backplane, BoxFuture, Read, ReadError, Record, RecordStream,
        Start,
    },
    broker::{Epoch, Outcome, Position, TopicName},
    test_util::EventReader,
};

const EPOCH: Epoch = Epoch::new(7);

type Reads = mpsc::Sender<Result<Read, ReadError>>;

/// A log that gives what the test says.
#[derive(Clone)]
struct Script {
    head: Arc<Mutex<Position>>,
    opened: mpsc::Sender<(Start, Reads)>,
}

impl Backplane for Script {
    fn append(&self, _: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(async { Err(AppendErrorKind::Rejected.into()) })
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(async move {
            let (reads, stream) = mpsc::channel(100);
            self.opened.send((start, reads)).await.unwrap();
            Ok(Box::pin(ReceiverStream::new(stream)) as RecordStream)
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async { Ok(*self.head.lock().unwrap()) })
    }
}

/// A broker on such a log, which is empty, and what its reader waits for.
async fn broker() -> (Broker, Script, mpsc::Receiver<(Start, Reads)>, Reads) {
    let (opened, mut openings) = mpsc::channel(10);
    let head = Arc::new(Mutex::new(Position::new(EPOCH, 0, 0)));
    let script = Script { head, opened };
    let broker = Broker::new(script.clone());
    let (sse, _events) = connect(None).await;
    let subscription = broker.subscribe(&sse, "nothing").await.unwrap();
    let (_, reads) = openings.recv().await.unwrap();
    assert_eq!(subscription.resolved().await, Outcome::Fresh);
    (broker, script, openings, reads)
}

async fn connect(id: Option<Position>) -> (SseConnection, EventReader) {
    let mut request = Request::get("/");
    if let Some(id) = id {
        request = request.header("last-event-id", id.to_string());
    }
    connection_of(&SseLayer::any_path(), request.body(()).unwrap()).await
}

async fn subscribed(broker: &Broker, topic: &str) -> (SseConnection, EventReader) {
    let (sse, mut events) = connect(None).await;
    broker.subscribe(&sse, topic).await.unwrap().start();
    assert_eq!(next(&mut events, 1).await, ["position:{}"]);
    (sse, events)
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

fn place(offset: u64) -> Position {
    Position::new(EPOCH, offset, offset as u32)
}

fn topic(name: &str) -> TopicName {
    name.try_into().unwrap()
}

fn record(offset: u64, name: &str, lines: &[u8]) -> Result<Read, ReadError> {
    let record = Record::new(topic(name), lines.to_vec());
    Ok(Read::Record(place(offset), record))
}

fn gap(reason: &str, missed: &str) -> String {
    format!(r#"gap:{{"reason":"{reason}","missed":{missed}}}"#)
}

#[tokio::test(start_paused = true)]
async fn invalid_lines_are_replaced_by_a_gap() {
    let (broker, _script, _openings, reads) = broker().await;
    let (_a, mut a) = subscribed(&broker, "a").await;
    let (_b, mut b) = subscribed(&broker, "b").await;
    let bad: [&[u8]; 8] = [
        b"data: \xff\n",
        b"data: x\n\ndata: injected\n",
        b"data: x\rid: 1\n",
        b"data: x\nid: 5\n",
        b"event: gap\ndata: x\n",
        b"event: welcome\ndata: {}\n",
        b": no data\n",
        b"",
    ];
    let mut offset = 0;
    for lines in bad {
        for (name, lines) in [
            ("a", &b"data: before\n"[..]),
            ("a", lines),
            ("a", b"data: after\n"),
        ] {
            offset += 1;
            reads.send(record(offset, name, lines)).await.unwrap();
        }
        let got = next(&mut a, 3).await;
        assert_eq!(
            got,
            [
                "before".to_owned(),
                gap("unreadable", "1"),
                "after".to_owned()
            ]
        );
        assert_eq!(a.last_event_id(), place(offset).to_string());
    }
    reads
        .send(record(offset + 1, "b", b"data: b\n"))
        .await
        .unwrap();
    assert_eq!(next(&mut b, 1).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn unreadable_record_is_a_gap_for_its_topic_only() {
    let (broker, _script, _openings, reads) = broker().await;
    let (_a, mut a) = subscribed(&broker, "a").await;
    let (_b, mut b) = subscribed(&broker, "b").await;
    for name in ["a", "b"] {
        let offset = if name == "a" { 1 } else { 2 };
        reads
            .send(record(offset, name, b"data: x\n"))
            .await
            .unwrap();
    }
    let unreadable = Read::Unreadable(place(3), Some(topic("a")));
    reads.send(Ok(unreadable)).await.unwrap();
    reads.send(record(4, "b", b"data: y\n")).await.unwrap();
    assert_eq!(
        next(&mut a, 2).await,
        ["x".to_owned(), gap("unreadable", "1")]
    );
    assert_eq!(next(&mut b, 2).await, ["x", "y"]);
    // So are those who come back from before it, and those alone.
    for (name, from, expected) in [
        ("a", 2, Outcome::Gap),
        ("a", 3, Outcome::Exact),
        ("b", 2, Outcome::Exact),
    ] {
        let (sse, _events) = connect(Some(place(from))).await;
        let subscription = broker.subscribe(&sse, name).await.unwrap();
        assert_eq!(subscription.outcome(), expected, "{name} from {from}");
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_record_without_topic_is_a_gap_for_all() {
    let (broker, _script, _openings, reads) = broker().await;
    let (_a, mut a) = subscribed(&broker, "a").await;
    reads.send(record(1, "a", b"data: x\n")).await.unwrap();
    assert_eq!(next(&mut a, 1).await, ["x"]);
    reads
        .send(Ok(Read::Unreadable(place(2), None)))
        .await
        .unwrap();
    assert_eq!(next(&mut a, 1).await, [gap("lost", "null")]);
    for (from, expected) in [(1, Outcome::Gap), (2, Outcome::Exact)] {
        let (sse, _events) = connect(Some(place(from))).await;
        let subscription = broker.subscribe(&sse, "quiet").await.unwrap();
        assert_eq!(subscription.outcome(), expected, "from {from}");
    }
}

/// Records 1 to 3, for a client that is live, which gets them.
async fn three_records(reads: &Reads, events: &mut EventReader) {
    for offset in 1..=3 {
        let lines = format!("data: {offset}\n");
        reads
            .send(record(offset, "a", lines.as_bytes()))
            .await
            .unwrap();
    }
    assert_eq!(next(events, 3).await, ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn rewritten_log_is_a_gap_and_is_not_replayed_to_live() {
    let (broker, script, mut openings, reads) = broker().await;
    let (_a, mut a) = subscribed(&broker, "a").await;
    three_records(&reads, &mut a).await;
    // Another third record, and two more.
    let other = |offset| {
        let position = Position::new(EPOCH, offset, 99);
        let lines = format!("data: other {offset}\n");
        Ok(Read::Record(
            position,
            Record::new(topic("a"), lines.into_bytes()),
        ))
    };
    *script.head.lock().unwrap() = Position::new(EPOCH, 5, 99);
    reads.send(Err(ReadError::rewritten())).await.unwrap();
    let (start, reads) = openings.recv().await.unwrap();
    assert_eq!(start, Start::Window);
    assert_eq!(next(&mut a, 1).await, [gap("lost", "null")]);
    for offset in [1, 2] {
        let lines = format!("data: {offset}\n");
        reads
            .send(record(offset, "a", lines.as_bytes()))
            .await
            .unwrap();
    }
    for offset in 3..=5 {
        reads.send(other(offset)).await.unwrap();
    }
    // What follows the log as it was found is new.
    reads.send(other(6)).await.unwrap();
    assert_eq!(next(&mut a, 1).await, ["other 6"]);
    reads.send(other(7)).await.unwrap();
    assert_eq!(next(&mut a, 1).await, ["other 7"]);
    // Who has seen the third that is forgotten is told; who has seen the other is not.
    for (place, expected) in [
        (place(3), Outcome::Gap),
        (Position::new(EPOCH, 3, 99), Outcome::Exact),
        (place(2), Outcome::Exact),
    ] {
        let (sse, _events) = connect(Some(place)).await;
        let subscription = broker.subscribe(&sse, "a").await.unwrap();
        assert_eq!(subscription.resolved().await, expected, "{place}");
    }
}

#[tokio::test(start_paused = true)]
async fn record_of_another_log_makes_the_broker_reopen_it() {
    let (broker, script, mut openings, reads) = broker().await;
    let (_a, mut a) = subscribed(&broker, "a").await;
    three_records(&reads, &mut a).await;
    let other = Epoch::new(8);
    let of_other = |offset: u64| {
        let position = Position::new(other, offset, 1);
        let lines = format!("data: other {offset}\n");
        Ok(Read::Record(
            position,
            Record::new(topic("a"), lines.into_bytes()),
        ))
    };
    *script.head.lock().unwrap() = Position::new(other, 1, 1);
    reads.send(of_other(1)).await.unwrap();
    let (start, reads) = openings.recv().await.unwrap();
    assert_eq!(start, Start::Window);
    reads.send(of_other(1)).await.unwrap();
    reads.send(of_other(2)).await.unwrap();
    assert_eq!(
        next(&mut a, 2).await,
        [gap("lost", "null"), "other 2".to_owned()]
    );
}

/// A log that another server takes over while it is opened, with less in it.
struct TakenOver(Script);

impl Backplane for TakenOver {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        self.0.append(record)
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        *self.0.head.lock().unwrap() = Position::new(EPOCH, 3, 3);
        self.0.read(start)
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.0.head()
    }
}

#[tokio::test(start_paused = true)]
async fn start_waits_for_the_head_of_the_log_being_read() {
    let (opened, mut openings) = mpsc::channel(10);
    let head = Arc::new(Mutex::new(Position::new(EPOCH, 10, 10)));
    let broker = Broker::new(TakenOver(Script { head, opened }));
    let (sse, _events) = connect(Some(Position::new(EPOCH, 2, 2))).await;
    let subscription = broker.subscribe(&sse, "a").await.unwrap();
    let (_, reads) = openings.recv().await.unwrap();
    for offset in 1..=3 {
        let record = Record::new("a".try_into().unwrap(), "data: x\n");
        let place = Position::new(EPOCH, offset, offset as u32);
        reads.send(Ok(Read::Record(place, record))).await.unwrap();
    }
    let limit = std::time::Duration::from_secs(60);
    let resolved = tokio::time::timeout(limit, subscription.resolved()).await;
    assert_eq!(resolved.unwrap(), Outcome::Exact);
}

/// A log that is away, comes back as another one, and notes when it was asked.
struct Replaced(Script, Mutex<Vec<ReadError>>, mpsc::Sender<Instant>);

impl Backplane for Replaced {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        self.0.append(record)
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        self.2.try_send(Instant::now()).unwrap();
        match self.1.lock().unwrap().pop() {
            Some(error) => Box::pin(async { Err(error) }),
            None => self.0.read(start),
        }
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.0.head()
    }
}

#[tokio::test(start_paused = true)]
async fn replaced_log_is_reopened_without_delay_once() {
    let (opened, _openings) = mpsc::channel(10);
    let (asked, mut times) = mpsc::channel(10);
    let head = Arc::new(Mutex::new(Position::new(EPOCH, 0, 0)));
    let away = || ReadError::unavailable("away");
    // The last is the first.
    let errors = vec![
        ReadError::rewritten(),
        ReadError::rewritten(),
        away(),
        away(),
        away(),
    ];
    let log = Replaced(Script { head, opened }, Mutex::new(errors), asked);
    let broker = Broker::new(log);
    let (sse, _events) = connect(None).await;
    let subscription = broker.subscribe(&sse, "a").await.unwrap();
    assert_eq!(subscription.resolved().await, Outcome::Fresh);
    let mut rests = Vec::new();
    let mut last = times.recv().await.unwrap();
    while let Ok(time) = times.try_recv() {
        rests.push(!(time - last).is_zero());
        last = time;
    }
    // One that is another one each time is not gone after without a rest.
    assert_eq!(rests, [true, true, true, false, true]);
}
