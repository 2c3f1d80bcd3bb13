//! What reads the stream for one broker.
//!
//! 1. What is read goes to the broker in the order of the offsets, each once; `place` is what it
//!    has had last.
//! 2. A consumer is made after `place`. Where it begins later, or skips an offset, that is a loss,
//!    and is told before what comes next.
//! 3. A consumer that is of no use any more is replaced, with a rest that grows while none of them
//!    gives anything. Only what the log itself has done to `place` ends the reader.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use tokio::time::{Instant, sleep};

use super::{
    found::{Found, find},
    log::{Log, place_of_loss},
    session::{Session, Step},
};
use crate::{
    backplane::{Read, ReadError, Start},
    log::Position,
};

/// A consumer that has lived for so long is no sign that the next one will fail.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

pub(super) struct Reader {
    log: Arc<Log>,
    place: Position,
    ready: VecDeque<Read>,
    state: State,
    /// How many consumers in a row have given nothing.
    failures: u32,
}

enum State {
    Opening(Pin<Box<dyn Future<Output = Result<Opened, ReadError>> + Send>>),
    Open(Box<Session>, Instant),
    Ended,
}

struct Opened {
    session: Session,
    place: Position,
    /// Whether something between the place that was asked for and this one is missing.
    is_lost: bool,
}

/// A reader that begins there.
pub(super) async fn open(log: &Arc<Log>, start: Start) -> Result<Reader, ReadError> {
    let place = match start {
        Start::Window => None,
        Start::After(place) => Some(place),
    };
    let opened = session_after(Arc::clone(log), place, false).await?;
    let mut reader = Reader {
        log: Arc::clone(log),
        place: opened.place,
        ready: VecDeque::new(),
        state: State::Ended,
        failures: 0,
    };
    reader.take_up(opened);
    Ok(reader)
}

async fn session_after(
    log: Arc<Log>,
    place: Option<Position>,
    is_stalled: bool,
) -> Result<Opened, ReadError> {
    let breaks = log.link.breaks();
    let stream = log.state().await.map_err(ReadError::unavailable)?;
    let place = place.unwrap_or(Position::new(stream.epoch, 0, 0));
    if place.epoch() != stream.epoch || place.offset() > stream.last {
        return Err(ReadError::rewritten());
    }
    let first = stream.first.max(1);
    let mut lost = None;
    if place.offset() + 1 < first {
        lost = Some(first - 1);
    } else {
        let tag = match place.offset() {
            0 => Some(0),
            offset if offset < first => None,
            offset => tag_at(&log, offset).await?,
        };
        match tag {
            Some(tag) if tag == place.tag() => {}
            Some(_) => return Err(ReadError::rewritten()),
            None if place == place_of_loss(place.epoch(), place.offset()) => {}
            // It may have been another record: nobody can tell any more.
            None => lost = Some(place.offset()),
        }
    }
    if is_stalled
        && stream.last > place.offset()
        && tag_at(&log, first.max(place.offset() + 1)).await?.is_none()
    {
        // The server counts what it does not have: its files are damaged, or were removed.
        lost = Some(stream.last);
    }
    let from = lost.unwrap_or(place.offset()) + 1;
    let (session, pending) = Session::start(&log, from, breaks)
        .await
        .map_err(ReadError::unavailable)?;
    // In a cluster the consumer's server may be behind, and count what it has itself.
    if pending == 0 && stream.last >= from && tag_at(&log, stream.last).await?.is_none() {
        // What there was has been deleted.
        lost = Some(stream.last);
    }
    Ok(Opened {
        session,
        place: lost.map_or(place, |offset| place_of_loss(stream.epoch, offset)),
        is_lost: lost.is_some(),
    })
}

async fn tag_at(log: &Log, offset: u64) -> Result<Option<u32>, ReadError> {
    log.tag_at(offset).await.map_err(ReadError::unavailable)
}

impl Reader {
    fn take_up(&mut self, opened: Opened) {
        self.place = opened.place;
        if opened.is_lost {
            self.ready.push_back(Read::Lost(opened.place));
        }
        self.state = State::Open(Box::new(opened.session), Instant::now());
    }

    fn take(&mut self, payload: &Bytes, offset: u64) {
        if offset <= self.place.offset() {
            return;
        }
        let epoch = self.place.epoch();
        if offset > self.place.offset() + 1 {
            self.ready
                .push_back(Read::Lost(place_of_loss(epoch, offset - 1)));
        }
        let (tag, found) = find(payload, self.log.settings.max_record);
        self.place = Position::new(epoch, offset, tag);
        self.failures = 0;
        if !matches!(found, Found::Record(_)) {
            self.log.skipped.add(1);
        }
        self.ready.push_back(match found {
            Found::Record(record) => Read::Record(self.place, record),
            Found::Unreadable(topic) => Read::Unreadable(self.place, topic),
            Found::Foreign => Read::Skipped(self.place),
        });
    }

    /// Replaces the consumer.
    fn reopen(&mut self, opened: Instant, is_stalled: bool) {
        if opened.elapsed() > LONG_ENOUGH {
            self.failures = 0;
        }
        let longest = match self.failures {
            0 => Duration::ZERO,
            failures => Duration::from_millis(50 << failures.min(5)),
        };
        self.failures += 1;
        let rest = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        let (log, place) = (Arc::clone(&self.log), self.place);
        self.state = State::Opening(Box::pin(async move {
            sleep(rest).await;
            session_after(log, Some(place), is_stalled).await
        }));
    }
}

impl Stream for Reader {
    type Item = Result<Read, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(read) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(read)));
            }
            let error = match &mut this.state {
                State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(opened) => {
                        this.take_up(opened);
                        continue;
                    }
                    Err(error) => error,
                },
                State::Open(session, opened) => match ready!(session.poll(cx, this.place)) {
                    Step::Message(payload, offset) => {
                        this.take(&payload, offset);
                        continue;
                    }
                    step @ (Step::Broken | Step::Stalled) => {
                        let opened = *opened;
                        this.reopen(opened, matches!(step, Step::Stalled));
                        continue;
                    }
                    Step::Rewritten => ReadError::rewritten(),
                },
                State::Ended => return Poll::Ready(None),
            };
            this.state = State::Ended;
            return Poll::Ready(Some(Err(error)));
        }
    }
}
