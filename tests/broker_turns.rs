//! Logs that are read from afar: they give much at once, and hold what is nobody's here.

use futures_util::{Stream, StreamExt, stream};
use http::Request;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower_sse::{
    Broker, SseLayer,
    backplane::{
        AppendError, AppendErrorKind, Backplane, BoxFuture, Read, ReadError, Record, RecordStream,
        Start,
    },
    broker::{Epoch, Outcome, Position},
    test_util::connection_of,
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
    let resume = broker.subscribe(&sse, "a").await.unwrap();
    resume.decided().await
}

#[tokio::test]
async fn a_reader_that_has_used_up_its_turn_is_read_on() {
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

#[tokio::test]
async fn what_is_not_ours_is_passed_over_without_a_word() {
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
