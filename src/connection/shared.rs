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
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    CloseReason, SendError, SseConnection, StreamError,
    config::Config,
    feed::Feed,
    limits::RefusalReason,
    link::Link,
    registry::{EndRecord, Registry},
    state::{ConnectionState, EndHook, Wake},
    stats::SentCounts,
    values::Values,
};
use crate::{Event, trace::Trace};

/// What is kept of the request.
#[derive(Debug, Default)]
pub(crate) struct RequestInfo {
    /// Captured path parameters, decoded.
    pub(crate) params: Box<[(Box<str>, Box<str>)]>,
    pub(crate) last_event_id: Option<Box<str>>,
    pub(crate) kind: RequestKind,
    /// None: another server than the crate's own.
    pub(crate) link: Option<Link>,
}

/// What the answer to a request depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestKind {
    /// GET or HEAD: a client that comes back for what it has missed.
    pub(crate) is_get: bool,
    pub(crate) is_head: bool,
    /// HTTP/1.1 or older.
    pub(crate) is_http1: bool,
    pub(crate) is_http2: bool,
}

/// What a handler's answer says of the stream that has not started yet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Acceptance {
    Yes,
    /// Yes: it is the inner service's own.
    Adopted,
    /// Yes if somebody is left who could send.
    Maybe,
    No(CloseReason),
}

pub(super) struct Shared {
    pub(super) uuid: Uuid,
    pub(super) config: Arc<Config>,
    pub(super) request: RequestInfo,
    pub(super) values: Values,
    pub(super) trace: Trace,
    pub(super) registry: Arc<Registry>,
    /// Its key in the registry.
    pub(super) key: usize,
    /// How many handles keep the stream open.
    handles: AtomicUsize,
    /// Notified when the connection has ended, and when it is closed before it starts.
    ended: Notify,
    /// Guards the life of the connection and its outbox. Held for a few moves at a time; never
    /// together with the registry's lock.
    state: Mutex<ConnectionState>,
}

impl Shared {
    /// A connection with one handle, that of the request.
    pub(super) fn new(
        uuid: Uuid,
        registry: Arc<Registry>,
        key: usize,
        config: Arc<Config>,
        request: RequestInfo,
        state: ConnectionState,
    ) -> Self {
        Self {
            uuid,
            config,
            request,
            values: Values::default(),
            trace: Trace::connection(&uuid),
            registry,
            key,
            handles: AtomicUsize::new(1),
            ended: Notify::new(),
            state: Mutex::new(state),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ConnectionState> {
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
    pub(super) fn close_orphan(&self, state: &mut ConnectionState) -> Wake {
        let is_orphan = state.is_started && !state.has_handler && !self.is_held(state);
        if is_orphan {
            state.close(CloseReason::Closed)
        } else {
            Wake::default()
        }
    }

    /// Whether something keeps a stream open whose handler has finished.
    pub(super) fn is_held(&self, state: &ConnectionState) -> bool {
        let is_subscribed = |feed: &Feed| feed.source.is_subscribed();
        self.config.hold_open
            || state.is_adopted
            || self.handles.load(Ordering::Acquire) > 0
            || state.feed.as_ref().is_some_and(is_subscribed)
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
        if reason == CloseReason::Closed {
            self.say_goodbye_if_ending(&mut state);
        }
        let wake = state.close(reason);
        drop(state);
        self.ended.notify_waiters();
        wake.wake();
        true
    }

    /// Begins to close with a last event, which goes out past the outbox's bounds.
    pub(super) fn close_with(&self, mut last: Event) -> Result<(), SendError> {
        let mut state = self.lock();
        if let Some(reason) = state.closing {
            drop(state);
            return Err(SendError::Closed(last, reason));
        }
        if state.refuses(&last) {
            drop(state);
            return Err(SendError::HasId(last));
        }
        let may_carry =
            last.has_data() && !last.has_retry() && self.config.reconnect_event.is_some();
        if let Some(retry) = state.retry.take_if(|_| may_carry) {
            last = last.retry(retry);
        }
        let pushed = self.push(&mut state, last);
        let closed = state.close(CloseReason::Closed);
        drop(state);
        self.ended.notify_waiters();
        pushed.wake();
        closed.wake();
        Ok(())
    }

    /// Begins to close on behalf of somebody who does not hold the connection: whether there is to
    /// be a stream stays the handler's choice.
    pub(super) fn close_from_outside(&self) -> bool {
        let mut state = self.lock();
        let is_first = state.closing.is_none();
        if state.is_started {
            self.say_goodbye_if_ending(&mut state);
        }
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
    pub(super) fn answered(&self, acceptance: Acceptance, failure: Option<StreamError>) -> bool {
        let mut state = self.lock();
        state.has_handler = false;
        let is_declined = matches!(
            state.closing,
            Some(CloseReason::Declined | CloseReason::Refused)
        );
        let was_started = state.is_started;
        let is_stream = was_started
            || match acceptance {
                Acceptance::Yes | Acceptance::Adopted => !is_declined,
                Acceptance::Maybe => !is_declined && (state.is_wanted || self.is_held(&state)),
                Acceptance::No(_) => false,
            };
        let failure = failure.filter(|_| was_started && state.closing.is_none());
        let live = state.feed.as_ref().is_some_and(|feed| feed.holds == 0) && is_stream;
        let live = live.then(|| state.go_live()).flatten();
        let wake = if failure.is_some() {
            state.error = failure;
            state.close(CloseReason::Failed)
        } else if is_stream {
            state.is_started = true;
            if matches!(acceptance, Acceptance::Adopted) {
                state.is_adopted = true;
                // What cannot be gone on with on another connection is given time, as a handler is.
                state.has_handler = !self.request.kind.is_get;
            }
            if state.has_handler {
                Wake::default()
            } else if state.ending.is_some() {
                // One that was cut before it started has its last event still to come.
                self.say_goodbye_if_ending(&mut state);
                self.finish(&mut state)
            } else {
                self.close_orphan(&mut state)
            }
        } else {
            state.close(match acceptance {
                Acceptance::No(reason) => reason,
                _ => CloseReason::Declined,
            })
        };
        let is_closing = state.closing.is_some();
        drop(state);
        if is_closing {
            self.ended.notify_waiters();
        }
        wake.wake();
        self.went_live(live);
        is_stream
    }

    /// Refuses a connection that is one too many: in place of the stream there is the layer's
    /// refusal; a stream that has started ends.
    pub(super) fn refuse(&self) -> bool {
        let mut state = self.lock();
        if state.closing.is_some() {
            return false;
        }
        if state.is_started {
            state
                .retry
                .get_or_insert_with(|| self.config.refusal_retry());
            self.say_goodbye(&mut state, RefusalReason::KeyFull.as_str());
        }
        let wake = state.close(CloseReason::Refused);
        drop(state);
        self.ended.notify_waiters();
        wake.wake();
        true
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

    /// Ends the connection without its body, which the server may not poll.
    pub(super) fn end_without_body(self: &Arc<Self>, reason: CloseReason) {
        self.end(reason);
        if let Some(link) = &self.request.link {
            link.end();
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
        let record = EndRecord {
            reason,
            sent: state.all_sent(),
            keys: mem::take(&mut state.keys),
            was_open: is_open,
            was_cut: state.was_cut,
        };
        let hooks = mem::take(&mut state.hooks);
        let feed = state.feed.take();
        let wake = Wake {
            reader: state.reader.take(),
            senders: state.outbox.clear(),
        };
        drop(state);

        let SentCounts { events, bytes } = record.sent;
        self.trace.closed(reason.as_str(), events, bytes);
        self.registry.remove(self.key, &record);
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
}

/// Runs a hook. What it panics with has been printed by then; it must hurt nobody else, least of
/// all a destructor that is unwinding already.
pub(super) fn call_hook(hook: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(hook));
}
