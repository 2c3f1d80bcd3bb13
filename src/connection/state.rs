//! The state of a connection, and whom its changes wake.
//!
//! It is guarded by its connection's lock, and knows nothing of it: what has to be woken is given
//! out, to be woken once the lock is released.

use std::{sync::Arc, task::Waker, time::Duration};

use tokio::time::Instant;

use super::{
    CloseReason, StreamError,
    config::{Config, WelcomeEvent},
    ending::Plan,
    feed::Feed,
    limits::LimitKey,
    outbox::{Outbox, Waiters},
    source::Source,
    stats::SentCounts,
};
use crate::Event;

pub(super) struct ConnectionState {
    pub(super) outbox: Outbox,
    /// The response future, then the body: woken when there is something to do for it.
    pub(super) reader: Option<Waker>,
    /// The reader has been given something since it went to sleep, and may be writing it still,
    /// whatever waker it has left.
    pub(super) is_writing: bool,
    /// The head has gone out, or will with the next poll.
    pub(super) is_started: bool,
    /// It was closed by a handle before it started: a 200 then starts it, to end it properly.
    pub(super) is_wanted: bool,
    /// The handler is being polled inside the body, which checks the outbox right afterwards.
    pub(super) is_attended: bool,
    /// Since when something waits to be sent, as far as is known.
    pub(super) waits_since: Option<Instant>,
    /// The inner service's own stream is taken over, and has not ended.
    pub(super) is_adopted: bool,
    /// The inner service, or the `accept` function, has not finished.
    pub(super) has_handler: bool,
    /// When it is to end.
    pub(super) plan: Option<Plan>,
    /// The plan's time has come: it closes, for this reason, when the handler has finished.
    pub(super) ending: Option<CloseReason>,
    /// When what is left of it is cut.
    pub(super) deadline: Option<Instant>,
    /// The reconnection time for the last event, until that is queued.
    pub(super) retry: Option<Duration>,
    /// It could not end by itself.
    pub(super) was_cut: bool,
    pub(super) closing: Option<CloseReason>,
    /// How the body has to break off.
    pub(super) error: Option<StreamError>,
    pub(super) is_ended: bool,
    /// `on_open` has been called, so that `on_close` must be.
    pub(super) is_open: bool,
    pub(super) heartbeat_due: bool,
    /// When the reader last took something.
    pub(super) last_sent: Instant,
    /// What there is besides the outbox.
    pub(super) feed: Option<Feed>,
    /// What was taken: the outbox counts its own events.
    pub(super) sent: SentCounts,
    /// What it is counted by.
    pub(super) keys: Vec<LimitKey>,
    pub(super) next_number: u64,
    pub(super) hooks: Vec<EndHook>,
}

/// A source that goes live, once the lock is released.
pub(super) struct GoLive {
    pub(super) source: Arc<dyn Source>,
    pub(super) nothing_was_sent: bool,
}

impl ConnectionState {
    pub(super) fn new(config: &Config) -> Self {
        let has_welcome = !matches!(config.welcome, WelcomeEvent::None);
        Self {
            outbox: Outbox::new(config.outbox),
            reader: None,
            is_writing: false,
            is_attended: false,
            waits_since: None,
            is_started: false,
            is_wanted: false,
            is_adopted: false,
            has_handler: true,
            plan: None,
            ending: None,
            deadline: None,
            retry: None,
            was_cut: false,
            closing: None,
            error: None,
            is_ended: false,
            is_open: false,
            heartbeat_due: false,
            last_sent: Instant::now(),
            // The welcome, which is written last of all, has number 0.
            next_number: u64::from(has_welcome),
            feed: None,
            sent: SentCounts::default(),
            keys: Vec::new(),
            hooks: Vec::new(),
        }
    }

    /// Whether an event has an id where ids are the source's.
    pub(super) fn refuses(&self, event: &Event) -> bool {
        self.feed.is_some() && event.has_id()
    }

    /// Lets the source's events through, behind what has been sent so far.
    pub(super) fn go_live(&mut self) -> Option<GoLive> {
        let gate = self.outbox.pushed();
        let nothing_was_sent = !self.is_started;
        let feed = self.feed.as_mut().filter(|feed| !feed.is_live)?;
        feed.is_live = true;
        feed.gate = gate;
        Some(GoLive {
            source: Arc::clone(&feed.source),
            nothing_was_sent,
        })
    }

    /// The source, if its events may go out now.
    #[inline]
    pub(super) fn open_source(&self) -> Option<Arc<dyn Source>> {
        let feed = self.feed.as_ref().filter(|_| self.closing.is_none())?;
        let is_open = feed.is_live && self.outbox.sent() >= feed.gate;
        is_open.then(|| Arc::clone(&feed.source))
    }

    /// Whether the reader has had all there is, and waits for more.
    pub(super) fn sleeps(&self) -> bool {
        self.reader.is_some() && !self.is_writing
    }

    /// Whether there is something to be sent, as far as the connection knows without its source.
    pub(super) fn something_waits(&self) -> bool {
        self.heartbeat_due || !self.outbox.is_empty() || self.closing.is_some()
    }

    /// Notes that something waits to be sent, if the reader is not about to check.
    #[inline]
    pub(super) fn note_waiting(&mut self, now: impl FnOnce() -> Instant) {
        if self.waits_since.is_none() && self.is_open && !self.is_attended {
            self.waits_since = Some(now());
        }
    }

    /// A poll of the reader begins, which is about to look at the outbox. Registers its waker, if it
    /// may sleep afterwards. Returns the waker that was replaced, to be dropped outside the lock.
    #[inline]
    pub(super) fn begin_poll(&mut self, waker: Option<&Waker>) -> Option<Waker> {
        self.is_attended = false;
        self.waits_since = None;
        self.wait(waker?)
    }

    /// The reader waits. Returns the waker that was replaced, to be dropped outside the lock.
    #[inline]
    pub(super) fn wait(&mut self, waker: &Waker) -> Option<Waker> {
        self.waits_since = None;
        self.is_writing = false;
        match &self.reader {
            Some(reader) if reader.will_wake(waker) => None,
            _ => self.reader.replace(waker.clone()),
        }
    }

    /// Whether a reader that has registered this waker can go on waiting: it was not woken since,
    /// and nothing is to be sent.
    pub(super) fn still_waits(&mut self, waker: &Waker) -> bool {
        let reader = self.reader.as_ref();
        let is_asleep = reader.is_some_and(|reader| reader.will_wake(waker))
            && !self.something_waits()
            && !self.is_ended;
        if is_asleep {
            self.waits_since = None;
            self.is_writing = false;
        }
        is_asleep
    }

    /// Notes what was taken: the outbox counts its own events.
    #[inline]
    pub(super) fn took(&mut self, bytes: usize, other_events: u64) {
        self.last_sent = Instant::now();
        self.heartbeat_due = false;
        self.is_writing = true;
        // The rest waits from now on: a server whose buffers are full does not come back for it.
        self.waits_since = (!self.outbox.is_empty()).then_some(self.last_sent);
        self.sent.bytes += bytes as u64;
        self.sent.events += other_events;
    }

    /// What the server has taken, ever.
    pub(super) fn all_sent(&self) -> SentCounts {
        SentCounts {
            events: self.sent.events + self.outbox.sent(),
            bytes: self.sent.bytes,
        }
    }

    /// Begins to close, unless that has been. Whoever closes one that was to end anyway only
    /// carries that out.
    pub(super) fn close(&mut self, reason: CloseReason) -> Wake {
        if self.closing.is_some() {
            return Wake::default();
        }
        let planned = self.ending.filter(|_| reason == CloseReason::Closed);
        self.closing = planned.or(Some(reason));
        Wake {
            reader: self.reader.take(),
            senders: self.outbox.dismiss(),
        }
    }
}

pub(super) type EndHook = Box<dyn FnOnce(CloseReason) + Send>;

/// Whom to wake once the lock is released: after an event was sent.
#[must_use]
pub(super) struct Woken {
    pub(super) reader: Option<Waker>,
    pub(super) sender: Option<Waker>,
}

/// Whom to wake once the lock is released: when there is nothing to wait for any more.
#[derive(Default)]
#[must_use]
pub(super) struct Wake {
    pub(super) reader: Option<Waker>,
    pub(super) senders: Waiters,
}

impl Woken {
    #[inline]
    pub(super) fn wake(self) {
        if let Some(reader) = self.reader {
            reader.wake();
        }
        if let Some(sender) = self.sender {
            sender.wake();
        }
    }
}

impl Wake {
    pub(super) fn wake(self) {
        let senders = self.senders.into_iter().map(|(_, waker)| waker);
        for waker in self.reader.into_iter().chain(senders) {
            waker.wake();
        }
    }
}
