//! A broker under several threads and several runtimes: nothing lost, nothing twice, in order.

use super::paths;
use paths::connection_of;
use std::{
    future::{Future, IntoFuture, pending},
    sync::Arc,
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use http::Request;
use tokio::{
    runtime,
    sync::{Barrier, mpsc},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    backplane::{
        AppendError, Backplane, BoxFuture, Memory, Read, ReadError, Record, RecordStream, Start,
    },
    broker::{Epoch, Outcome, Position},
    test_util::EventReader,
};

/// How long a test waits for what should take milliseconds: generous, because machines are busy.
const LIMIT: Duration = Duration::from_secs(60);

const PUBLISHERS: u64 = 4;
const EACH: u64 = 400;
const TOPICS: [&str; 2] = ["a", "b"];

/// A connection of a client that has this place, or none.
async fn connect(place: &str) -> (SseConnection, EventReader) {
    let mut request = Request::get("/");
    if !place.is_empty() {
        request = request.header("last-event-id", place);
    }
    // Heartbeats, and the reader's own time limit, would poll a body that nobody has woken.
    let layer = SseLayer::any_path().keep_alive(None);
    let (sse, events) = connection_of(&layer, request.body(()).unwrap()).await;
    (sse, events.time_limit(10 * LIMIT))
}

/// Waits for a task. What it waits for is polled only when it is woken.
async fn within<T>(task: impl Future<Output = Result<T, JoinError>>) -> T {
    let finished = timeout(LIMIT, task).await;
    finished.expect("the task was woken").unwrap()
}

/// Reads until the last event, and gives the offset and the data of each. After so many events at
/// a time it leaves, and comes back with its place.
async fn read_all(broker: Broker, stay: usize, ready: Arc<Barrier>) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    let mut place = String::new();
    loop {
        let (sse, mut events) = connect(&place).await;
        let subscription = broker.subscribe(&sse, TOPICS).await.unwrap();
        let is_first = place.is_empty();
        let expected = [Outcome::Exact, Outcome::Fresh][usize::from(is_first)];
        assert_eq!(subscription.outcome(), expected);
        subscription.start();
        if is_first {
            ready.wait().await;
        }
        for _ in 0..stay {
            let event = events.event().await.unwrap();
            match event.event_type.as_str() {
                "message" => {
                    place = event.last_event_id;
                    let position = Position::parse(place.as_bytes()).unwrap();
                    seen.push((position.offset(), event.data));
                }
                "welcome" | "position" => place = event.last_event_id,
                other => panic!("{other}: {}", event.data),
            }
            if seen.last().is_some_and(|(_, data)| data == "end") {
                return seen;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_get_events_of_four_threads_once_in_order() {
    let broker = Broker::in_memory();
    // Those that stay, and those that come and go, each at a rhythm of its own.
    let stays = [usize::MAX, usize::MAX, 5, 7, 31, 150];
    let ready = Arc::new(Barrier::new(stays.len() + 1));
    let mut readers = JoinSet::new();
    for stay in stays {
        readers.spawn(read_all(broker.clone(), stay, Arc::clone(&ready)));
    }
    ready.wait().await;

    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let broker = broker.clone();
        publishers.spawn(async move {
            let mut published = Vec::new();
            for number in 0..EACH {
                let data = format!("{publisher}:{number}");
                let topic = TOPICS[(number % 2) as usize];
                let event = Event::message(&data);
                let position = broker.publish(topic, event).await.unwrap();
                published.push((position.offset(), data));
                if number % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            published
        });
    }
    let mut expected = publishers.join_all().await.concat();
    let end = broker.publish("a", Event::message("end")).await.unwrap();
    expected.push((end.offset(), "end".to_owned()));
    expected.sort_unstable();
    assert_eq!(expected.len() as u64, PUBLISHERS * EACH + 1);

    for _ in stays {
        let seen = within(readers.join_next().map(Option::unwrap)).await;
        let differs = seen.iter().zip(&expected).find(|(seen, it)| seen != it);
        assert_eq!(
            differs, None,
            "the first that is lost, twice or out of order"
        );
        assert_eq!(seen.len(), expected.len());
    }
    assert_eq!(broker.stats().records, expected.len() as u64);
}

/// One event at a time, so that nothing later makes good for a body that was not woken.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sleeping_body_is_woken_for_each_event() {
    let rounds = tokio::spawn(async {
        let broker = Broker::in_memory();
        let (sse, mut events) = connect("").await;
        broker.subscribe(&sse, TOPICS).await.unwrap().start();
        for round in 0..2_000 {
            let mut publishers = JoinSet::new();
            for topic in TOPICS {
                let broker = broker.clone();
                publishers.spawn(async move {
                    let event = Event::message(round.to_string());
                    broker.publish(topic, event).await.unwrap();
                });
            }
            let mut seen = 0;
            while seen < TOPICS.len() {
                let event = events.event().await.unwrap();
                if event.event_type == "message" {
                    assert_eq!(event.data, round.to_string());
                    seen += 1;
                }
            }
            publishers.join_all().await;
        }
    });
    within(rounds).await;
}

fn new_runtime() -> runtime::Runtime {
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

/// Publishes where there is no runtime.
fn publish_outside(broker: &Broker, data: &str) {
    let publish = broker.publish("a", Event::message(data));
    publish.now_or_never().expect("no waiting").unwrap();
}

async fn next_message(events: &mut EventReader) -> String {
    loop {
        let event = events.event().await.unwrap();
        if event.event_type == "message" {
            return event.data;
        }
    }
}

#[test]
fn event_published_outside_a_runtime_is_delivered() {
    // Subscribed in a runtime, whose task then wakes; and outside, where nobody has a task.
    for is_subscribed_inside in [true, false] {
        let runtime = new_runtime();
        let broker = Broker::in_memory();
        publish_outside(&broker, "nobody is there");
        let (sse, mut events) = runtime.block_on(connect(""));
        let subscribing = broker.subscribe(&sse, "a").into_future();
        let subscription = if is_subscribed_inside {
            runtime.block_on(subscribing)
        } else {
            subscribing.now_or_never().expect("no waiting")
        };
        subscription.unwrap().start();
        let reader = runtime.spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..100 {
                seen.push(next_message(&mut events).await);
            }
            seen
        });
        let expected: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        let publisher = thread::spawn({
            let expected = expected.clone();
            move || {
                expected
                    .iter()
                    .for_each(|data| publish_outside(&broker, data))
            }
        });
        assert_eq!(runtime.block_on(within(reader)), expected);
        publisher.join().unwrap();
    }
}

#[test]
fn broker_outlives_its_first_runtime() {
    let broker = Broker::in_memory();
    let place = new_runtime().block_on(async {
        let (sse, _events) = connect("").await;
        broker.subscribe(&sse, "a").await.unwrap().start();
        broker.publish("a", Event::message("1")).await.unwrap()
    });
    new_runtime().block_on(async {
        let (sse, mut events) = connect(&place.to_string()).await;
        let subscription = broker.subscribe(&sse, "a").await.unwrap();
        assert!(subscription.is_exact());
        subscription.start();
        broker.publish("a", Event::message("2")).await.unwrap();
        assert_eq!(next_message(&mut events).await, "2");
    });
}

#[test]
fn event_published_during_runtime_shutdown_is_delivered() {
    let reading = new_runtime();
    for _ in 0..200 {
        let broker = Broker::in_memory();
        let ending = new_runtime();
        // The broker's task is spawned here.
        ending
            .block_on(broker.publish("a", Event::message("0")))
            .unwrap();
        let (sse, mut events) = reading.block_on(connect(""));
        let subscribing = broker.subscribe(&sse, "a").into_future();
        reading.block_on(subscribing).unwrap().start();
        let reader = reading.spawn(async move {
            let first = next_message(&mut events).await;
            // The broker's task may have been reading when it was published: it can come yet.
            if first == "0" {
                return next_message(&mut events).await;
            }
            first
        });
        let publisher = thread::spawn(move || publish_outside(&broker, "1"));
        ending.shutdown_background();
        publisher.join().unwrap();
        assert_eq!(reading.block_on(within(reader)), "1");
    }
}

#[tokio::test]
async fn subscribers_outlive_the_last_broker_handle() {
    let log = Memory::new();
    let broker = Broker::new(log.clone());
    let (sse, mut events) = connect("").await;
    broker.subscribe(&sse, "a").await.unwrap().start();
    drop(broker);
    let other = Broker::new(log);
    other.publish("a", Event::message("1")).await.unwrap();
    assert_eq!(next_message(&mut events).await, "1");
}

/// A log that takes nothing, and says nothing of it.
struct Stalled(Memory);

impl Backplane for Stalled {
    fn append(&self, _: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(pending())
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        self.0.read(start)
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.0.head()
    }
}

#[tokio::test(start_paused = true)]
async fn stuck_publisher_does_not_delay_events_of_others() {
    let log = Memory::new();
    let stuck = Broker::new(Stalled(log.clone()));
    let (sse, mut events) = connect("").await;
    stuck.subscribe(&sse, "a").await.unwrap().start();
    let other = Broker::new(log);
    other.publish("a", Event::message("0")).await.unwrap();
    assert_eq!(next_message(&mut events).await, "0");
    // The clock is paused: it goes on once all tasks sleep, the broker's too.
    sleep(Duration::from_millis(1)).await;

    let publishing = stuck.publish("a", Event::message("never"));
    tokio::pin!(publishing);
    assert!(publishing.as_mut().now_or_never().is_none());

    other.publish("a", Event::message("1")).await.unwrap();
    assert_eq!(next_message(&mut events).await, "1");
    assert!(publishing.as_mut().now_or_never().is_none());
}

/// A log whose stream is one of tokio's, full of records.
#[derive(Clone)]
struct Full(Arc<std::sync::Mutex<Option<RecordStream>>>);

const RECORDS: u64 = 1000;

fn place(offset: u64) -> Position {
    Position::new(Epoch::new(7), offset, offset as u32)
}

impl Full {
    fn new() -> Self {
        let (reads, stream) = mpsc::channel(2000);
        for number in 1..=RECORDS {
            let record = Record::new("a".try_into().unwrap(), format!("data: {number}\n"));
            let read = Ok(Read::Record(place(number), record));
            reads.try_send(read).unwrap();
        }
        let ended =
            tokio_stream::StreamExt::chain(ReceiverStream::new(stream), tokio_stream::pending());
        Self(Arc::new(std::sync::Mutex::new(Some(Box::pin(ended)))))
    }
}

impl Backplane for Full {
    fn append(&self, _: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(async { Ok(place(RECORDS)) })
    }

    fn read(&self, _: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        let stream = self.0.lock().unwrap().take();
        Box::pin(async { Ok(stream.expect("it is opened once")) })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async { Ok(place(RECORDS)) })
    }
}

/// Who is no task and has used up its turn is woken at once by tokio's streams, again and again.
#[test]
fn publisher_outside_a_task_stops_reading() {
    let (done, is_done) = std::sync::mpsc::channel();
    // On a thread of its own, which is left behind if it hangs.
    thread::spawn(move || {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (release, is_released) = std::sync::mpsc::channel();
        runtime.block_on(async {
            // The broker's task has no thread while the publisher reads.
            tokio::spawn(async move { is_released.recv().unwrap() });
            let broker = Broker::new(Full::new());
            broker.publish("a", Event::message("x")).await.unwrap();
            release.send(()).unwrap();
            let (sse, mut events) = connect(&place(1).to_string()).await;
            let subscription = broker.subscribe(&sse, "a").await.unwrap();
            let resolved = timeout(LIMIT, subscription.resolved()).await;
            assert_eq!(resolved.unwrap(), Outcome::Exact);
            subscription.start();
            for number in 1..RECORDS {
                let event = events.event().await.unwrap();
                if number > 1 {
                    assert_eq!(event.data, number.to_string());
                }
            }
        });
        done.send(()).unwrap();
    });
    is_done.recv_timeout(LIMIT).expect("it reads on for ever");
}
