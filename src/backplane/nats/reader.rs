//! What reads the stream for one broker.
//!
//! 1. What is read goes to the broker in the order of the offsets, each once; `position` is what it
//!    has had last.
//! 2. A consumer is made after `position`. Where it begins later, or skips an offset, that is a
//!    loss, and is reported before what comes next.
//! 3. A consumer that is of no use any more is replaced, with a rest that grows while none of them
//!    gives anything. Only what the log itself has done to `position` ends the reader.

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
    log::{StreamLog, position_of_loss},
    session::{Session, SessionStep},
};
use crate::{
    backplane::{Read, ReadError, Start},
    log::Position,
};

/// A consumer that has lived for so long is no sign that the next one will fail.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

pub(super) struct JetStreamReader {
    log: Arc<StreamLog>,
    position: Position,
    ready: VecDeque<Read>,
    state: ReaderState,
    /// How many consumers in a row have given nothing.
    failures: u32,
}

enum ReaderState {
    Opening(Pin<Box<dyn Future<Output = Result<Opened, ReadError>> + Send>>),
    Open(Box<Session>, Instant),
    Ended,
}

struct Opened {
    session: Session,
    position: Position,
    /// Whether something between the position that was asked for and this one is missing.
    is_lost: bool,
}

/// A reader that begins there.
pub(super) async fn open(log: &Arc<StreamLog>, start: Start) -> Result<JetStreamReader, ReadError> {
    let position = match start {
        Start::Window => None,
        Start::After(position) => Some(position),
    };
    let opened = session_after(Arc::clone(log), position, false).await?;
    let mut reader = JetStreamReader {
        log: Arc::clone(log),
        position: opened.position,
        ready: VecDeque::new(),
        state: ReaderState::Ended,
        failures: 0,
    };
    reader.take_up(opened);
    Ok(reader)
}

async fn session_after(
    log: Arc<StreamLog>,
    position: Option<Position>,
    is_stalled: bool,
) -> Result<Opened, ReadError> {
    let breaks = log.connection.breaks();
    let stream = log.state().await.map_err(ReadError::unavailable)?;
    let position = position.unwrap_or(Position::new(stream.epoch, 0, 0));
    if position.epoch() != stream.epoch || position.offset() > stream.last {
        return Err(ReadError::rewritten());
    }
    let first = stream.first.max(1);
    let mut lost = None;
    if position.offset() + 1 < first {
        lost = Some(first - 1);
    } else {
        let tag = match position.offset() {
            0 => Some(0),
            offset if offset < first => None,
            offset => tag_at(&log, offset).await?,
        };
        match tag {
            Some(tag) if tag == position.tag() => {}
            Some(_) => return Err(ReadError::rewritten()),
            None if position == position_of_loss(position.epoch(), position.offset()) => {}
            // It may have been another record: that can no longer be determined.
            None => lost = Some(position.offset()),
        }
    }
    if is_stalled
        && stream.last > position.offset()
        && tag_at(&log, first.max(position.offset() + 1))
            .await?
            .is_none()
    {
        // The server counts what it does not have: its files are damaged, or were removed.
        lost = Some(stream.last);
    }
    let from = lost.unwrap_or(position.offset()) + 1;
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
        position: lost.map_or(position, |offset| position_of_loss(stream.epoch, offset)),
        is_lost: lost.is_some(),
    })
}

async fn tag_at(log: &StreamLog, offset: u64) -> Result<Option<u32>, ReadError> {
    log.tag_at(offset).await.map_err(ReadError::unavailable)
}

impl JetStreamReader {
    fn take_up(&mut self, opened: Opened) {
        self.position = opened.position;
        if opened.is_lost {
            self.ready.push_back(Read::Lost(opened.position));
        }
        self.state = ReaderState::Open(Box::new(opened.session), Instant::now());
    }

    fn take(&mut self, payload: &Bytes, offset: u64) {
        if offset <= self.position.offset() {
            return;
        }
        let epoch = self.position.epoch();
        if offset > self.position.offset() + 1 {
            self.ready
                .push_back(Read::Lost(position_of_loss(epoch, offset - 1)));
        }
        let (tag, found) = find(payload, self.log.settings.max_record);
        self.position = Position::new(epoch, offset, tag);
        self.failures = 0;
        if !matches!(found, Found::Record(_)) {
            self.log.skipped.add(1);
        }
        self.ready.push_back(match found {
            Found::Record(record) => Read::Record(self.position, record),
            Found::Unreadable(topic) => Read::Unreadable(self.position, topic),
            Found::Foreign => Read::Skipped(self.position),
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
        let backoff = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        let (log, position) = (Arc::clone(&self.log), self.position);
        self.state = ReaderState::Opening(Box::pin(async move {
            sleep(backoff).await;
            session_after(log, Some(position), is_stalled).await
        }));
    }
}

impl Stream for JetStreamReader {
    type Item = Result<Read, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(read) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(read)));
            }
            let error = match &mut this.state {
                ReaderState::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(opened) => {
                        this.take_up(opened);
                        continue;
                    }
                    Err(error) => error,
                },
                ReaderState::Open(session, opened) => match ready!(session.poll(cx, this.position))
                {
                    SessionStep::Message(payload, offset) => {
                        this.take(&payload, offset);
                        continue;
                    }
                    step @ (SessionStep::Broken | SessionStep::Stalled) => {
                        let opened = *opened;
                        this.reopen(opened, matches!(step, SessionStep::Stalled));
                        continue;
                    }
                    SessionStep::Rewritten => ReadError::rewritten(),
                },
                ReaderState::Ended => return Poll::Ready(None),
            };
            this.state = ReaderState::Ended;
            return Poll::Ready(Some(Err(error)));
        }
    }
}
