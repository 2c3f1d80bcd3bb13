//! How a connection is ended by time: at the end of its life, by a drain, because nothing is taken
//! from it, or because it takes too long to close.
//!
//! None of this can be the body's work: a server does not poll a body while its socket takes
//! nothing. So it is the registry's ticker that visits each connection.
//!
//! 1. A connection has one plan at most for its end, the earliest that was made.
//! 2. When the plan's time has come, a stream without a running handler is closed: what is queued
//!    goes out. A running handler is told, and may finish.
//! 3. Both have until a deadline. A handler that still runs then is cut: what is queued goes out,
//!    and the body breaks off. What has not been taken a moment later, or at the deadline of a
//!    stream that was closing, is dropped: the connection ends without its body.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    CloseReason, SseConnection, StreamError,
    config::{Config, NEVER, between},
    error::StreamErrorKind,
    shared::Shared,
    state::{ConnectionState, Wake},
};
use crate::Event;

/// How often every connection is visited, at least.
const VISIT: Duration = Duration::from_secs(15);

/// How long a server is given to take the end of a stream that was cut, or is too slow.
pub(super) const LAST_CALL: Duration = Duration::from_millis(500);

/// When and why a connection is to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) time: Instant,
    pub(super) reason: CloseReason,
    /// When what is left of it is cut.
    pub(super) deadline: Instant,
    /// The reconnection time that the client is given with a last event.
    pub(super) retry: Option<Duration>,
}

impl SseConnection {
    /// Plans the end of the stream for this time, as that of a token which the client has shown: the
    /// client comes back then, with its place and with new credentials. An end that is planned
    /// earlier stays.
    ///
    /// What is queued goes out, and the stream ends cleanly. A handler that still runs is told by
    /// [`ending`](Self::ending), and has the layer's
    /// [`close_timeout`](crate::SseLayer::close_timeout) to finish; then it is cut, and the stream
    /// breaks off. The time is met up to 64 ms late, and not at all outside a Tokio runtime.
    pub fn close_at(&self, time: impl Into<Instant>) {
        let time = time.into().min(Instant::now() + NEVER);
        let visit = self.shared.plan(Plan {
            time,
            reason: CloseReason::Lifetime,
            deadline: time
                .checked_add(self.shared.config.close_timeout)
                .unwrap_or(time),
            retry: None,
        });
        let visit = visit.map(|visit| (Arc::clone(&self.shared), visit));
        self.shared.registry.visit_by(visit);
    }

    /// Waits until the stream has to end: a drain has begun, its life is over, or it is closed.
    ///
    /// A handler that still runs may send until a deadline, and finish; after that it is cut, and
    /// the stream breaks off.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_sse::{Event, SseConnection};
    ///
    /// async fn clock(sse: SseConnection) -> Result<(), tower_sse::Error> {
    ///     loop {
    ///         sse.send(Event::message("tick")).await?;
    ///         tokio::select! {
    ///             () = tokio::time::sleep(Duration::from_secs(1)) => {}
    ///             _ = sse.ending() => return Ok(()), // a clean end, not a cut
    ///         }
    ///     }
    /// }
    /// ```
    pub async fn ending(&self) -> CloseReason {
        self.wait_for(Shared::ending_reason).await
    }
}

impl Plan {
    /// The end of a life that begins now, if this layer bounds it.
    pub(super) fn of_life(config: &Config, now: Instant) -> Option<Self> {
        let most = config.max_lifetime?;
        // By a tenth, so that clients which came together do not come back together.
        let time = now + between(most.mul_f64(0.9), most);
        Some(Self {
            time,
            reason: CloseReason::Lifetime,
            deadline: time + config.close_timeout,
            retry: None,
        })
    }
}

/// How often each connection of a layer is visited.
pub(super) fn visits_every(config: &Config) -> Duration {
    let times = [config.keep_alive, config.stall_timeout];
    let least = times.into_iter().flatten().min();
    least.map_or(VISIT, |least| least.min(VISIT))
}

impl Shared {
    /// Plans the end, unless an earlier one is planned: that has to keep to the deadline then. Gives
    /// the time of the visit that this needs.
    pub(super) fn plan(&self, plan: Plan) -> Option<Instant> {
        let mut state = self.lock();
        if state.is_ended {
            return None;
        }
        if state.closing.is_some() || state.ending.is_some() {
            let deadline = state
                .deadline
                .map_or(plan.deadline, |it| it.min(plan.deadline));
            state.deadline = Some(deadline);
            return Some(deadline);
        }
        let plan = match state.plan {
            None => plan,
            Some(before) => {
                let first = if before.time <= plan.time {
                    before
                } else {
                    plan
                };
                Plan {
                    deadline: before.deadline.min(plan.deadline),
                    ..first
                }
            }
        };
        state.plan = Some(plan);
        Some(plan.time)
    }

    /// Why the connection is ending: the reason that it will have, once the handler has finished
    /// too.
    pub(super) fn ending_reason(&self) -> Option<CloseReason> {
        let state = self.lock();
        state.closing.or(state.ending)
    }

    /// The ticker's visit. Gives the time of the next one.
    pub(super) fn tick(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        if state.is_ended {
            return None;
        }
        if state.deadline.is_some_and(|deadline| deadline <= now) {
            state.deadline = None;
            if state.closing.is_none() {
                let wake = self.cut(&mut state, now);
                drop(state);
                self.ended().notify_waiters();
                wake.wake();
                return self.next_visit(now);
            }
            // Where there is no body yet, the handler has still to answer.
            if state.is_open {
                if !state.outbox.is_empty() {
                    state.was_cut = true;
                    state.error.get_or_insert_with(cut);
                }
                drop(state);
                self.end_without_body(CloseReason::Closed);
                return None;
            }
        }
        if self.has_stalled(&state, now) {
            state.error.get_or_insert_with(stalled);
            drop(state);
            self.end_without_body(CloseReason::SlowConsumer);
            return None;
        }
        let wake = match state.plan.take_if(|plan| plan.time <= now) {
            Some(plan) => self.carry_out(&mut state, plan),
            None => Wake::default(),
        };
        if state.closing.is_some() && state.is_open && state.deadline.is_none() {
            state.deadline = Some(now + self.config.close_timeout);
        }
        let reader = self.beat(&mut state, now);
        let is_ending = state.ending.is_some();
        let source = state.feed.as_ref().map(|feed| Arc::clone(&feed.source));
        drop(state);
        if is_ending {
            self.ended().notify_waiters();
        }
        wake.wake();
        if let Some(reader) = reader {
            reader.wake();
        }
        if let Some(source) = source {
            if let Some(since) = source.visit() {
                self.note_source_waits(since);
            }
        }
        self.next_visit(now)
    }

    fn next_visit(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        if state.is_ended {
            return None;
        }
        if state.closing == Some(CloseReason::SlowConsumer) {
            state.deadline.get_or_insert(now + LAST_CALL);
        }
        let heartbeat = match self.config.keep_alive {
            // None becomes due while something waits: to look for one would be to look all the time.
            Some(_) if !state.is_started || state.something_waits() => None,
            Some(time) => Some((state.last_sent + time).max(now)),
            None => None,
        };
        let stalled = state.waits_since.zip(self.config.stall_timeout);
        let stalled = stalled.map(|(since, time)| since + time);
        let planned = state.plan.map(|plan| plan.time);
        let times = [heartbeat, stalled, planned, state.deadline];
        let next = times.into_iter().flatten().min();
        let latest = now + visits_every(&self.config);
        Some(next.map_or(latest, |next| next.min(latest)))
    }

    /// Sees to the heartbeat, and notes since when something waits. Gives the reader to be woken.
    fn beat(&self, state: &mut ConnectionState, now: Instant) -> Option<std::task::Waker> {
        if !state.is_open {
            return None;
        }
        let is_due = self
            .config
            .keep_alive
            .is_some_and(|time| state.last_sent + time <= now);
        if is_due && !state.something_waits() {
            state.heartbeat_due = true;
        }
        if !state.something_waits() {
            return None;
        }
        state.waits_since.get_or_insert(now);
        state.reader.take()
    }

    /// Notes that something waits in the source, unless the body sleeps: it is woken then, and that
    /// is noted.
    ///
    /// It may have been taken since the source said so, by a reader that has gone to sleep: it is woken
    /// to look again, which takes the note away.
    fn note_source_waits(&self, since: Instant) {
        let mut state = self.lock();
        if !state.is_open || state.closing.is_some() || state.sleeps() {
            return;
        }
        let since = since.max(state.last_sent);
        state.waits_since.get_or_insert(since);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn has_stalled(&self, state: &ConnectionState, now: Instant) -> bool {
        let since = state.waits_since.filter(|_| state.is_open);
        let stalled = since.zip(self.config.stall_timeout);
        stalled.is_some_and(|(since, time)| since + time <= now)
    }

    /// Begins to end the connection as planned.
    fn carry_out(&self, state: &mut ConnectionState, plan: Plan) -> Wake {
        // One that was closed before has a deadline already.
        let deadline = state
            .deadline
            .map_or(plan.deadline, |it| it.min(plan.deadline));
        state.deadline = Some(deadline);
        state.ending = Some(plan.reason);
        state.retry = plan.retry;
        if state.has_handler {
            return Wake::default();
        }
        self.finish(state)
    }

    /// Closes a connection that was to end, now that no handler runs any more.
    pub(super) fn finish(&self, state: &mut ConnectionState) -> Wake {
        let Some(reason) = state.ending.filter(|_| state.closing.is_none()) else {
            return Wake::default();
        };
        self.say_goodbye_if_ending(state);
        state.close(reason)
    }

    /// What is left to say of an end that was planned, when it comes earlier.
    pub(super) fn say_goodbye_if_ending(&self, state: &mut ConnectionState) {
        if let Some(reason) = state.ending {
            self.say_goodbye(state, reason.as_str());
        }
    }

    /// The handler has had its time. A stream that has not started stays the handler's choice.
    fn cut(&self, state: &mut ConnectionState, now: Instant) -> Wake {
        if state.is_started {
            self.say_goodbye_if_ending(state);
            state.error = Some(cut());
        }
        state.was_cut = true;
        state.deadline = state.is_open.then_some(now + LAST_CALL);
        state.close(CloseReason::Closed)
    }

    /// Queues the last event, which tells the client when to come back, past the outbox's bounds.
    pub(super) fn say_goodbye(&self, state: &mut ConnectionState, reason: &str) {
        let (Some(event_type), Some(retry)) = (&self.config.reconnect_event, state.retry.take())
        else {
            return;
        };
        let data = format!(r#"{{"reason":"{reason}"}}"#);
        let event = Event::with_type(event_type.as_str(), &data).retry(retry);
        self.push_last(state, event);
    }
}

fn cut() -> StreamError {
    StreamError::new(StreamErrorKind::Cut)
}

fn stalled() -> StreamError {
    StreamError::new(StreamErrorKind::Stalled)
}
