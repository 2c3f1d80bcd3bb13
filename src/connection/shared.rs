//! What the handles of a connection and its reader share.
//!
//! 1. A connection is *waiting* until it starts, then *started*; from either it may come to be
//!    *closing* (no more events are taken, what is queued goes out), and then *ended*. It never
//!    goes back.
//! 2. The reason is set when closing begins, and never changes: the first one wins.
//! 3. It ends exactly once, whoever gets there first; whoever that is takes it out of the registry,
//!    runs the hooks and wakes those who wait, in this order.
//! 4. Nothing of a caller runs under the lock: wakers, hooks and queued values are taken out and
//!    woken, run and dropped after it is released.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
};

use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use super::{
    CloseReason, SendError, SseConnection, StreamError, TrySendError,
    config::Config,
    feed::Feed,
    outbox::Ticket,
    registry::Registry,
    state::{EndHook, State, Wake, Woken},
    values::Values,
};
use crate::Event;

/// What is kept of the request.
#[derive(Debug, Default)]
pub(crate) struct RequestInfo {
    /// Captured path parameters, decoded.
    pub(crate) params: Box<[(Box<str>, Box<str>)]>,
    pub(crate) last_event_id: Option<Box<str>>,
    pub(crate) is_http2: bool,
}

/// What a handler's answer says of the stream that has not started yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    Yes,
    /// Yes if somebody is left who could send.
    Maybe,
    No(CloseReason),
}

pub(super) struct Shared {
    pub(super) uuid: Uuid,
    pub(super) config: Arc<Config>,
    pub(super) request: RequestInfo,
    pub(super) values: Values,
    registry: Arc<Registry>,
    /// Its key in the registry.
    key: usize,
    /// How many handles keep the stream open.
    handles: AtomicUsize,
    /// Notified when the connection has ended, and when it is closed before it starts.
    ended: Notify,
    /// Guards the life of the connection and its outbox. Held for a few moves at a time; never
    /// together with the registry's lock.
    state: Mutex<State>,
}

impl Shared {
    /// A connection with one handle, that of the request.
    pub(super) fn new(
        uuid: Uuid,
        registry: Arc<Registry>,
        key: usize,
        config: Arc<Config>,
        request: RequestInfo,
    ) -> Self {
        let state = State::new(&config);
        Self {
            uuid,
            config,
            request,
            values: Values::default(),
            registry,
            key,
            handles: AtomicUsize::new(1),
            ended: Notify::new(),
            state: Mutex::new(state),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ===== handles =====

    pub(super) fn add_handle(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn drop_handle(&self) {
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut state = self.lock();
            let wake = self.close_orphan(&mut state);
            drop(state);
            wake.wake();
        }
    }

    /// Begins to close a started stream that nobody can send to any more.
    pub(super) fn close_orphan(&self, state: &mut State) -> Wake {
        let is_orphan = state.is_started && !state.has_handler && !self.is_held(state);
        if is_orphan {
            state.close(CloseReason::Closed)
        } else {
            Wake::default()
        }
    }

    /// Whether something keeps a stream open whose handler has finished.
    pub(super) fn is_held(&self, state: &State) -> bool {
        let is_subscribed = |feed: &Feed| feed.source.is_subscribed();
        self.config.hold_open
            || self.handles.load(Ordering::Acquire) > 0
            || state.feed.as_ref().is_some_and(is_subscribed)
    }

    // ===== sending =====

    /// Sends the event, if there is room and nobody waits for it.
    pub(super) fn try_send(&self, event: Event) -> Result<(), TrySendError> {
        let mut state = self.lock();
        if let Some(reason) = state.closing {
            drop(state);
            return Err(SendError::new(event, reason).into());
        }
        if state.refuses(&event) {
            drop(state);
            return Err(TrySendError::Refused(SendError::has_id(event)));
        }
        if !state.outbox.admits(event.size(), None) {
            drop(state);
            return Err(TrySendError::Full(event));
        }
        let woken = self.push(&mut state, event);
        drop(state);
        woken.wake();
        Ok(())
    }

    /// Sends the event and empties its place; or, where there is no room, enters the queue of
    /// waiting senders.
    pub(super) fn poll_send(
        &self,
        place: &mut Option<Event>,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Poll<Result<(), SendError>> {
        let Some(event) = place else {
            return Poll::Ready(Ok(()));
        };
        let mut state = self.lock();
        let may_wait = state.closing.is_none() && !state.refuses(event);
        if may_wait && !state.outbox.admits(event.size(), *ticket) {
            let (entered, replaced) = state.outbox.wait(*ticket, waker);
            *ticket = Some(entered);
            drop(state);
            drop(replaced);
            return Poll::Pending;
        }
        let left = ticket.take().and_then(|ticket| state.outbox.leave(ticket));
        let Some(event) = place.take() else {
            return Poll::Ready(Ok(()));
        };
        let result = match state.closing {
            Some(reason) => {
                drop(state);
                Err(SendError::new(event, reason))
            }
            None if state.refuses(&event) => {
                drop(state);
                Err(SendError::has_id(event))
            }
            None => {
                let woken = self.push(&mut state, event);
                drop(state);
                woken.wake();
                Ok(())
            }
        };
        drop(left);
        Poll::Ready(result)
    }

    /// Gives a waiting sender's place up.
    pub(super) fn cancel_send(&self, ticket: Ticket) {
        let mut state = self.lock();
        let left = state.outbox.leave(ticket);
        let sender = state.outbox.next_waiter();
        drop(state);
        drop(left);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    #[inline]
    fn push(&self, state: &mut State, event: Event) -> Woken {
        let mut number = None;
        if self.config.numbered && event.has_data() && !event.has_id() {
            number = Some(state.next_number);
            state.next_number += 1;
        }
        state.outbox.push(event.into_frame(number));
        state.is_started = true;
        Woken {
            reader: state.reader.take(),
            sender: state.outbox.next_waiter(),
        }
    }

    // ===== starting and closing =====

    /// Starts the stream, unless it is closing. Tells whether it is started now.
    pub(super) fn start(&self) -> bool {
        let mut state = self.lock();
        if !state.is_started && state.closing.is_none() {
            state.is_started = true;
            let reader = state.reader.take();
            drop(state);
            if let Some(reader) = reader {
                reader.wake();
            }
            return true;
        }
        state.is_started
    }

    /// Begins to close. Tells whether this was the first to do so.
    pub(super) fn close(&self, reason: CloseReason, error: Option<StreamError>) -> bool {
        let mut state = self.lock();
        if state.closing.is_some() {
            return false;
        }
        state.error = error;
        state.is_wanted = true;
        let wake = state.close(reason);
        drop(state);
        self.ended.notify_waiters();
        wake.wake();
        true
    }

    /// Begins to close with a last event, which goes out past the outbox's bounds.
    pub(super) fn close_with(&self, last: Event) -> Result<(), SendError> {
        let mut state = self.lock();
        if let Some(reason) = state.closing {
            drop(state);
            return Err(SendError::new(last, reason));
        }
        if state.refuses(&last) {
            drop(state);
            return Err(SendError::has_id(last));
        }
        let pushed = self.push(&mut state, last);
        let closed = state.close(CloseReason::Closed);
        drop(state);
        pushed.wake();
        closed.wake();
        Ok(())
    }

    /// Begins to close on behalf of somebody who does not hold the connection: whether there is to
    /// be a stream stays the handler's choice.
    pub(super) fn close_from_outside(&self) -> bool {
        let mut state = self.lock();
        let is_first = state.closing.is_none();
        let wake = state.close(CloseReason::Closed);
        drop(state);
        self.ended.notify_waiters();
        wake.wake();
        is_first
    }

    /// Gives the stream up before it starts. Tells whether it was in time.
    pub(super) fn decline(&self) -> bool {
        let mut state = self.lock();
        if state.is_started {
            return false;
        }
        let wake = state.close(CloseReason::Declined);
        let is_declined = state.closing == Some(CloseReason::Declined);
        drop(state);
        self.ended.notify_waiters();
        wake.wake();
        is_declined
    }

    /// The handler has answered. Tells whether there is a stream: it has started then. Otherwise
    /// no event is taken from here on, so that none is lost without its sender being told.
    ///
    /// A failure breaks off a stream that had started before, also when no handle is left.
    pub(super) fn answered(&self, verdict: Verdict, failure: Option<StreamError>) -> bool {
        let mut state = self.lock();
        state.has_handler = false;
        let is_declined = state.closing == Some(CloseReason::Declined);
        let was_started = state.is_started;
        let is_stream = was_started
            || match verdict {
                Verdict::Yes => !is_declined,
                Verdict::Maybe => !is_declined && (state.is_wanted || self.is_held(&state)),
                Verdict::No(_) => false,
            };
        let failure = failure.filter(|_| was_started && state.closing.is_none());
        let live = state.feed.as_ref().is_some_and(|feed| feed.holds == 0) && is_stream;
        let live = live.then(|| state.go_live()).flatten();
        let wake = if failure.is_some() {
            state.error = failure;
            state.close(CloseReason::Failed)
        } else if is_stream {
            state.is_started = true;
            self.close_orphan(&mut state)
        } else {
            state.close(match verdict {
                Verdict::No(reason) => reason,
                _ => CloseReason::Declined,
            })
        };
        drop(state);
        wake.wake();
        self.went_live(live);
        is_stream
    }

    // ===== the end =====

    pub(super) fn end_reason(&self) -> Option<CloseReason> {
        let state = self.lock();
        // One that is closed before it starts may have nothing left but its handler, which may be
        // waiting for just this.
        state
            .closing
            .filter(|_| state.is_ended || !state.is_started)
    }

    pub(super) fn ended(&self) -> &Notify {
        &self.ended
    }

    /// Keeps a function for the end. Hands it back if that has been.
    pub(super) fn add_hook(&self, hook: EndHook) -> Result<(), (EndHook, CloseReason)> {
        let mut state = self.lock();
        match state.closing {
            Some(reason) if state.is_ended => Err((hook, reason)),
            _ => {
                state.hooks.push(hook);
                Ok(())
            }
        }
    }

    /// Ends the connection, for this reason if there is none yet.
    pub(super) fn end(self: &Arc<Self>, reason: CloseReason) {
        let mut state = self.lock();
        if mem::replace(&mut state.is_ended, true) {
            return;
        }
        let reason = *state.closing.get_or_insert(reason);
        let is_open = state.is_open;
        let hooks = mem::take(&mut state.hooks);
        let feed = state.feed.take();
        let wake = Wake {
            reader: state.reader.take(),
            senders: state.outbox.clear(),
        };
        drop(state);

        self.registry.remove(self.key);
        if let Some(feed) = feed {
            feed.source.detach();
        }
        for hook in hooks {
            call_hook(|| hook(reason));
        }
        if let Some(hook) = self.config.on_close.as_ref().filter(|_| is_open) {
            let connection = SseConnection::uncounted(self);
            call_hook(|| hook(&connection, reason));
        }
        self.ended.notify_waiters();
        wake.wake();
    }

    // ===== time =====

    /// The ticker's visit. Gives the time of the next one.
    pub(super) fn tick(&self, now: Instant) -> Option<Instant> {
        let keep_alive = self.config.keep_alive?;
        let mut state = self.lock();
        if state.is_ended {
            return None;
        }
        if !state.is_started {
            return Some(now + keep_alive);
        }
        let due = state.last_taken + keep_alive;
        if due > now {
            return Some(due);
        }
        let mut reader = None;
        if state.closing.is_none() && state.outbox.is_empty() {
            state.heartbeat_due = true;
            reader = state.reader.take();
        }
        let source = state.feed.as_ref().map(|feed| Arc::clone(&feed.source));
        drop(state);
        if let Some(source) = source {
            source.visit();
        }
        if let Some(reader) = reader {
            reader.wake();
        }
        Some(now + keep_alive)
    }
}

/// Runs a hook. What it panics with has been printed by then; it must hurt nobody else, least of
/// all a destructor that is unwinding already.
pub(super) fn call_hook(hook: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(hook));
}
