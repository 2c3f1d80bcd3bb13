//! The backplane of one node: a link to the shared log that can be slow, fail and lose answers.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tower_sse::{
    backplane::{
        AppendError, AppendErrorKind, Backplane, BoxFuture, Read, ReadError, Record, RecordStream,
        Start,
    },
    broker::{Epoch, Position, TopicName},
};

use crate::{
    log::{Kind, Log, Place},
    trace::Trace,
};

pub(crate) type SharedLog = Arc<Mutex<Log>>;

/// The longest time that an operation waits for a link that hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// One broker's way to the log.
pub(crate) struct NodeLog {
    pub(crate) log: SharedLog,
    pub(crate) node: usize,
    /// The broker's number among the log's readers.
    pub(crate) reader: usize,
    pub(crate) may_be_rewritten: bool,
    pub(crate) trace: Arc<Trace>,
}

impl NodeLog {
    fn note(&self, what: &str) {
        let (node, reader) = (self.node, self.reader);
        self.trace
            .note(format!("node {node} (reader {reader}): {what}"));
    }

    fn pause(&self, most: impl Fn(&Log) -> u64) -> Option<Sleep> {
        let mut log = self.log.lock().unwrap();
        let most = most(&log);
        let time = if most == 0 {
            Duration::ZERO
        } else {
            log.delay(most)
        };
        (!time.is_zero()).then(|| sleep(time))
    }

    /// Waits while the link hangs. Returns whether it answers then.
    async fn reach(&self) -> bool {
        let patience = Instant::now() + PATIENCE;
        loop {
            let (hangs_until, fails_until) = {
                let log = self.log.lock().unwrap();
                let link = &log.links[self.node];
                (link.hangs_until, link.fails_until)
            };
            let now = Instant::now();
            if now >= patience || now < fails_until {
                return false;
            }
            if now >= hangs_until {
                return true;
            }
            sleep_until(hangs_until.min(patience)).await;
        }
    }

    async fn carry_out(&self, record: Record) -> Result<Position, AppendError> {
        if let Some(pause) = self.pause(|log| log.links[self.node].delays.append) {
            pause.await;
        }
        if !self.reach().await {
            return Err(AppendErrorKind::NotSent.into());
        }
        let (position, session, is_lost, wakers) = {
            let mut log = self.log.lock().unwrap();
            let kind = Kind::of(&record);
            let (entry, wakers) = log.append(kind);
            let delays = log.links[self.node].delays;
            if log.rng.u8(0..100) < delays.breaks {
                log.links[self.node].break_off();
            }
            let (session, share) = (log.links[self.node].session, delays.lost_answers);
            let is_lost = log.rng.u8(0..100) < share;
            (
                position_of(&log, Place::Entry(entry)),
                session,
                is_lost,
                wakers,
            )
        };
        wakers.into_iter().for_each(|waker| waker.wake());
        if let Some(pause) = self.pause(|log| log.links[self.node].delays.answer) {
            pause.await;
        }
        let is_broken = self.log.lock().unwrap().links[self.node].session != session;
        if is_lost || is_broken {
            return Err(AppendErrorKind::MaybeSent.into());
        }
        Ok(position)
    }

    async fn open(&self, start: Start) -> Result<RecordStream, ReadError> {
        self.log.lock().unwrap().readers[self.reader].has_begun = true;
        if let Some(pause) = self.pause(|log| log.links[self.node].delays.open) {
            pause.await;
        }
        if !self.reach().await {
            self.note("cannot open the log");
            return Err(ReadError::unavailable("log is unreachable"));
        }
        self.note(&format!("opens the log from {start:?}"));
        let mut log = self.log.lock().unwrap();
        let current = log.current();
        let at = match start {
            Start::After(position) => {
                let place = place_of(&log, &position);
                let at = place.and_then(|place| log.count_to(current, place));
                at.ok_or_else(ReadError::rewritten)?
            }
            // The oldest record that is retained.
            _ => 0,
        };
        Ok(Box::pin(Reader {
            number: log.next_stream(),
            branch: current,
            session: log.links[self.node].session,
            backlog: log.branch().entries.len(),
            opened_at: Instant::now(),
            log: Arc::clone(&self.log),
            node: self.node,
            reader: self.reader,
            trace: Arc::clone(&self.trace),
            at,
            next: None,
            sleep: None,
            is_done: false,
        }))
    }
}

impl Backplane for NodeLog {
    fn append(&self, record: Record) -> BoxFuture<'_, Result<Position, AppendError>> {
        Box::pin(self.carry_out(record))
    }

    fn read(&self, start: Start) -> BoxFuture<'_, Result<RecordStream, ReadError>> {
        Box::pin(self.open(start))
    }

    fn head(&self) -> BoxFuture<'_, Result<Position, ReadError>> {
        Box::pin(async move {
            if let Some(pause) = self.pause(|log| log.links[self.node].delays.open) {
                pause.await;
            }
            if !self.reach().await {
                return Err(ReadError::unavailable("log is unreachable"));
            }
            let head = {
                let log = self.log.lock().unwrap();
                position_of(&log, log.head())
            };
            // The answer takes a while, too: it may be out of date when it arrives.
            if let Some(pause) = self.pause(|log| log.links[self.node].delays.open) {
                pause.await;
            }
            Ok(head)
        })
    }

    fn may_be_rewritten(&self) -> bool {
        self.may_be_rewritten
    }
}

/// A stream of the log's records, at the pace of its link.
struct Reader {
    log: SharedLog,
    node: usize,
    reader: usize,
    trace: Arc<Trace>,
    number: u64,
    branch: usize,
    session: u64,
    /// The number of entries that the branch had when the stream was opened.
    backlog: usize,
    opened_at: Instant,
    /// The number of entries that have been read.
    at: usize,
    /// When the next entry arrives.
    next: Option<(usize, Instant)>,
    sleep: Option<Pin<Box<Sleep>>>,
    is_done: bool,
}

impl Reader {
    /// Returns whether the entry that was read last is not in the log any more.
    fn is_lost(&self, log: &Log) -> bool {
        let read = &log.branches[self.branch].entries[..self.at];
        let place = match read.last() {
            Some(last) => Place::Entry(*last),
            None => Place::Beginning(log.branches[self.branch].epoch),
        };
        log.count_to(log.current(), place).is_none()
    }

    fn wait_until(&mut self, time: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(time)));
        if sleep.deadline() != time {
            sleep.as_mut().reset(time);
        }
        sleep.as_mut().poll(cx)
    }
}

impl Stream for Reader {
    type Item = Result<Read, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let shared = Arc::clone(&this.log);
        loop {
            if this.is_done {
                return Poll::Ready(None);
            }
            let mut log = shared.lock().unwrap();
            let now = Instant::now();
            let hangs_until = log.links[this.node].hangs_until;
            let wait_until = if now < hangs_until {
                hangs_until
            } else if log.links[this.node].session != this.session {
                this.is_done = true;
                // Half of the streams find out at once that their last record was lost.
                let is_rewritten = this.number.is_multiple_of(2) && this.is_lost(&log);
                let (node, reader) = (this.node, this.reader);
                this.trace
                    .note(format!("node {node} (reader {reader}): stream broke"));
                return Poll::Ready(Some(Err(if is_rewritten {
                    ReadError::rewritten()
                } else {
                    ReadError::unavailable("connection was lost")
                })));
            } else {
                let branch = &log.branches[this.branch];
                if this.at < branch.forgotten {
                    let last = branch.entries[branch.forgotten - 1];
                    this.at = branch.forgotten;
                    this.next = None;
                    let lost = position_of(&log, Place::Entry(last));
                    let tag = if this.number.is_multiple_of(3) {
                        0
                    } else {
                        lost.tag()
                    };
                    let lost = Position::new(lost.epoch(), lost.offset(), tag);
                    return Poll::Ready(Some(Ok(Read::Lost(lost))));
                }
                let Some(entry) = branch.entries.get(this.at).copied() else {
                    log.wakers.insert(this.number, cx.waker().clone());
                    return Poll::Pending;
                };
                match this.next {
                    Some((it, time)) if it == entry && time > now => time,
                    Some((it, _)) if it == entry => {
                        let step = log.next_step();
                        let got = &mut log.readers[this.reader];
                        if got.got.len() <= entry {
                            got.got.resize(entry + 1, None);
                        }
                        got.got[entry].get_or_insert((step, now));
                        got.last = Some(entry);
                        this.at += 1;
                        this.next = None;
                        return Poll::Ready(Some(Ok(read(&log, entry))));
                    }
                    _ => {
                        let delays = log.links[this.node].delays;
                        let is_old = this.at < this.backlog;
                        let most = if is_old { delays.backlog } else { delays.live };
                        let since = if is_old {
                            this.opened_at
                        } else {
                            log.entries[entry].time
                        };
                        let delay = log.delay(most);
                        this.next = Some((entry, since + delay));
                        continue;
                    }
                }
            };
            drop(log);
            if this.wait_until(wait_until, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let waker = self.log.lock().unwrap().wakers.remove(&self.number);
        drop(waker);
    }
}

impl Kind {
    /// Reads back what a publisher has made.
    fn of(record: &Record) -> Self {
        let lines = record.lines().to_vec();
        let text = String::from_utf8_lossy(&lines);
        let data = text.lines().find_map(|line| line.strip_prefix("data: "));
        let uid = data.and_then(|data| data.split(' ').next());
        Self::Event {
            topic: topic_of(record.topic().as_str()),
            uid: uid
                .and_then(|uid| uid.parse().ok())
                .expect("events begin with their numbers"),
            lines,
        }
    }
}

fn read(log: &Log, entry: usize) -> Read {
    let position = position_of(log, Place::Entry(entry));
    match &log.entries[entry].kind {
        Kind::Event { topic, lines, .. } => {
            Read::Record(position, Record::new(topic_name(*topic), lines.clone()))
        }
        Kind::Unreadable(topic) => Read::Unreadable(position, topic.map(topic_name)),
        Kind::Foreign => Read::Skipped(position),
    }
}

pub(crate) fn topic_name(topic: usize) -> TopicName {
    TopicName::try_from(format!("topic {topic}")).expect("the name is short")
}

fn topic_of(name: &str) -> usize {
    let number = name
        .strip_prefix("topic ")
        .and_then(|number| number.parse().ok());
    number.expect("topics have numbers")
}

pub(crate) fn position_of(log: &Log, place: Place) -> Position {
    match place {
        Place::Beginning(epoch) => Position::new(Epoch::new(epoch), 0, 0),
        Place::Entry(entry) => {
            let entry = &log.entries[entry];
            Position::new(Epoch::new(entry.epoch), entry.offset, entry.tag)
        }
    }
}

/// The position in the model, by its parts alone.
fn place_of(log: &Log, position: &Position) -> Option<Place> {
    let (epoch, offset, tag) = (position.epoch().value(), position.offset(), position.tag());
    log.place(&format!("{epoch:016x}-{offset}-{tag:08x}"))
}
