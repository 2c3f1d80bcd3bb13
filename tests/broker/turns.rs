//! Logs that are read from afar: they give much at once, and hold what is nobody's here.

use super::paths;
use futures_util::{Stream, StreamExt, stream};
use http::Request;
use paths::connection_of;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tower_sse::{
    Broker, Event, SseLayer,
    backplane::{
        AppendError, AppendErrorKind, Backplane, BoxFuture, Memory, Read, ReadError, Record,
        RecordStream, Start,
    },
    broker::{Epoch, Outcome, Position},
};

const EPOCH: Epoch = Epoch::new(7);

const COUNT: u64 = 10_000;

/// A log that cannot be appended to, with a stream that is made anew for each reader.
struct Full<F>(F);

impl<F, S> Backplane for Full<F>
where
    F: Fn() -> S + Send + Sync + 'static,
    S: Stream<Item = Result<Read, ReadError>> + Send + 'static,
{
    fn append(&self, _: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(async { Err(AppendErrorKind::Rejected.into()) })
    }

    fn read(&self, _: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(async { Ok(Box::pin((self.0)()) as RecordStream) })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async { Ok(position(COUNT)) })
    }
}

fn position(offset: u64) -> Position {
    Position::new(EPOCH, offset, 1)
}

fn read(offset: u64) -> Result<Read, ReadError> {
    let record = Record::new("a".try_into().unwrap(), &b"data: x\n"[..]);
    Ok(Read::Record(position(offset), record))
}

/// What a client gets that comes back with a place in the middle.
async fn resumes(broker: &Broker) -> Outcome {
    let request = Request::get("/").header("last-event-id", position(COUNT - 100).to_string());
    let (sse, _events) = connection_of(&SseLayer::any_path(), request.body(()).unwrap()).await;
    let subscription = broker.subscribe(&sse, "a").await.unwrap();
    subscription.resolved().await
}

#[tokio::test(start_paused = true)]
async fn log_reader_continues_after_its_budget_is_used() {
    // A channel of tokio gives so much at a time, and then lets other tasks run first.
    let broker = Broker::new(Full(|| {
        let (sender, receiver) = mpsc::channel(COUNT as usize);
        for offset in 1..=COUNT {
            sender.try_send(read(offset)).unwrap();
        }
        ReceiverStream::new(receiver)
    }));
    assert_eq!(resumes(&broker).await, Outcome::Exact);
}

#[tokio::test(start_paused = true)]
async fn foreign_records_are_skipped_without_a_gap() {
    let broker = Broker::new(Full(|| {
        let reads = (1..=COUNT).map(|offset| match offset % 100 {
            0 => Ok(Read::Skipped(position(offset))),
            _ => read(offset),
        });
        stream::iter(reads).chain(stream::pending())
    }));
    // The place itself is one that was passed over, and so is the head.
    assert_eq!(resumes(&broker).await, Outcome::Exact);
}

/// A log in memory whose readers get no further than this offset.
#[derive(Clone)]
struct Slow {
    memory: Memory,
    allowed: watch::Sender<u64>,
}

impl Backplane for Slow {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        self.memory.append(record)
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(async move {
            let records = self.memory.read(start).await?;
            let allowed = self.allowed.subscribe();
            let held_up = records.then(move |read| {
                let mut allowed = allowed.clone();
                async move {
                    let offset = read.as_ref().map_or(0, |read| read.position().offset());
                    allowed.wait_for(|most| *most >= offset).await.unwrap();
                    read
                }
            });
            Ok(Box::pin(held_up) as RecordStream)
        })
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        self.memory.head()
    }
}

#[tokio::test(start_paused = true)]
async fn client_ahead_of_starting_node_waits_for_catch_up() {
    let memory = Memory::new();
    let other = Broker::new(memory.clone());
    let publish = async |text: &str| other.publish("a", Event::message(text)).await.unwrap();
    publish("1").await;
    let allowed = watch::Sender::new(0);
    let broker = Broker::new(Slow {
        memory,
        allowed: allowed.clone(),
    });
    let resume = async |place: Position| {
        let request = Request::get("/").header("last-event-id", place.to_string());
        let request = request.body(()).unwrap();
        let (sse, events) = connection_of(&SseLayer::any_path(), request).await;
        (broker.subscribe(&sse, "a").await.unwrap(), sse, events)
    };
    let unknown = Position::new(Epoch::new(7), 1, 1);
    let first = resume(unknown).await;
    // The window is open, up to the first record. The client has seen a later one elsewhere.
    let place = publish("2").await;
    publish("3").await;
    let (second, _sse, mut events) = resume(place).await;
    assert_eq!(second.outcome(), Outcome::Pending);
    allowed.send_replace(1);
    assert_eq!(first.0.resolved().await, Outcome::Gap);
    assert_eq!(second.outcome(), Outcome::Pending);
    allowed.send_replace(3);
    assert_eq!(second.resolved().await, Outcome::Exact);
    second.start();
    while events.event().await.unwrap().data != "3" {}

    // One that nobody has seen is not waited for for ever.
    let bogus = Position::new(place.epoch(), 99, 1);
    assert_eq!(resume(bogus).await.0.resolved().await, Outcome::Gap);
}
