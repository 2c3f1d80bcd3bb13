//! The side of a connection that takes its events: held by the response future, then by the body.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep},
};
use uuid::{Uuid, fmt::Hyphenated};

#[cfg(feature = "serve")]
use super::direct::Leaving;
use super::{
    Batch, CloseReason, SseConnection, StreamError,
    config::{Config, WelcomeEvent},
    error::StreamErrorKind,
    shared::{Acceptance, RequestKind, Shared, call_hook},
    state::ConnectionState,
};
use crate::{Event, trace::Trace};

/// A heartbeat is one comment line. A blank line after it would make several clients (httpx-sse,
/// sseclient, fetch-event-source) dispatch an empty event.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n");

/// How long an HTTP/2 server is given to write what it has taken, before a stream breaks off.
const HTTP2_FLUSH: Duration = Duration::from_millis(50);

/// The one reader of a connection. Dropping it ends the connection.
pub(crate) struct Reader {
    pub(super) shared: Arc<Shared>,
    /// The first frame, until it is taken.
    pub(super) welcome: Option<Vec<u8>>,
    /// The head, or a frame, was given since the last `Pending`: the server may not have written it
    /// yet.
    is_unflushed: bool,
    /// The outbox filled the last frame alone: the source comes first in the next.
    pub(super) source_is_first: bool,
    /// What a failing HTTP/2 stream waits for.
    flush: Option<Pin<Box<Sleep>>>,
    /// The last frame has been given.
    is_ended: bool,
    #[cfg(feature = "serve")]
    pub(super) leaving: Leaving,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            welcome: None,
            is_unflushed: false,
            source_is_first: false,
            flush: None,
            is_ended: false,
            #[cfg(feature = "serve")]
            leaving: Leaving::Polled0,
        }
    }

    /// The connection's span.
    pub(crate) fn trace(&self) -> &Trace {
        &self.shared.trace
    }

    /// Ready once something was sent, or the stream was started otherwise.
    pub(crate) fn poll_started(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        if state.is_started {
            return Poll::Ready(());
        }
        let old = wait(&mut state, cx);
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// The handler has answered, and been dropped. Tells whether there is a stream: it has started
    /// then. Otherwise the connection takes no events any more.
    ///
    /// `failure` is how the answer breaks the stream off, if that had started before.
    pub(crate) fn answered(
        &self,
        acceptance: Acceptance,
        failure: Option<StreamErrorKind>,
    ) -> bool {
        self.shared
            .answered(acceptance, failure.map(StreamError::new))
    }

    /// The stream starts: runs the hook, and writes the welcome.
    pub(crate) fn begin(&mut self) {
        self.open();
        self.welcome();
    }

    /// The inner service's own stream starts: runs the hook.
    pub(crate) fn open(&mut self) {
        self.shared.trace.opened();
        let now = Instant::now();
        let mut state = self.shared.lock();
        state.last_sent = now;
        if !state.is_ended && !state.is_open {
            self.shared.registry.count_stream();
        }
        state.is_open = true;
        // What was sent before. The body may never be polled.
        state.waits_since = (!state.outbox.is_empty()).then_some(now);
        drop(state);
        // The head.
        self.is_unflushed = true;

        let connection = SseConnection::uncounted(&self.shared);
        let config = &self.shared.config;
        if let Some(hook) = &config.on_open {
            call_hook(|| hook(&connection));
        }
    }

    fn welcome(&mut self) {
        let connection = SseConnection::uncounted(&self.shared);
        let config = &self.shared.config;
        let mut event = match &config.welcome {
            WelcomeEvent::None => return,
            WelcomeEvent::Custom(welcome) => welcome(&connection),
            WelcomeEvent::Uuid => uuid_welcome(&self.shared.uuid),
        };
        if event.has_data() && !event.has_id() {
            // The place at which the connection's topics begin, where that is known by now.
            let id = self.shared.source().and_then(|source| source.welcome_id());
            if let Some(id) = id {
                event = event.with_checked_id(&id);
            }
        }
        let takes_retry = event.has_data() && !event.has_retry() && !config.numbered;
        if let Some(retry) = config.retry.filter(|_| takes_retry) {
            event = event.retry(retry);
        }
        let is_numbered = config.numbered && event.has_data() && !event.has_id();
        self.welcome = Some(event.into_frame(is_numbered.then_some(0)));
    }

    /// The handler is about to be polled inside the body: what it sends need not wake the body,
    /// which looks at the outbox right afterwards.
    pub(crate) fn attend(&self) {
        let mut state = self.shared.lock();
        state.is_attended = true;
        let reader = state.reader.take();
        drop(state);
        drop(reader);
    }

    /// The handler has finished inside the body; the stream goes on for as long as it is held.
    pub(crate) fn handler_finished(&self) {
        self.shared.answered(Acceptance::Maybe, None);
    }

    /// The handler failed inside the body: what is queued goes out, then the body breaks off.
    pub(crate) fn handler_failed(&self, kind: StreamErrorKind) {
        let error = StreamError::new(kind);
        self.shared.close(CloseReason::Failed, Some(error));
    }

    /// The inner service's own stream has ended; what is queued goes out.
    pub(crate) fn adopted_finished(&self) {
        self.shared.lock().is_adopted = false;
        self.shared.answered(Acceptance::Maybe, None);
        self.shared.close(CloseReason::Closed, None);
    }

    /// The server has taken this much of the inner service's own stream.
    pub(crate) fn gave(&mut self, bytes: usize, events: u64) {
        took(&mut self.shared.lock(), bytes, events);
        self.is_unflushed = true;
    }

    /// Ready when the connection has ended without its body: for a moment at which nothing else can
    /// be given.
    pub(crate) fn poll_cut(
        &mut self,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Bytes, StreamError>>> {
        let mut state = self.shared.lock();
        state.waits_since = None;
        if !state.is_ended {
            let old = wait(&mut state, cx);
            drop(state);
            drop(old);
            return Poll::Pending;
        }
        let error = state.error.take();
        drop(state);
        self.is_ended = true;
        Poll::Ready(error.map(Err))
    }

    /// Ends the connection, for this reason if there is none yet.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.is_ended = true;
        self.shared.end(reason);
    }

    /// Whether the layer takes over the streams that the inner service makes.
    pub(crate) fn adopts(&self) -> bool {
        self.shared.config.adopts && !self.shared.request.kind.is_head
    }

    /// Whether the connection was one too many, and what its refusal depends on.
    pub(crate) fn refused(&self) -> Option<(&Config, RequestKind)> {
        let is_refused = self.shared.lock().closing == Some(CloseReason::Refused);
        is_refused.then(|| (&*self.shared.config, self.shared.request.kind))
    }

    /// Whether the last frame has been given.
    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Takes the next frame: all that is queued, up to the size of a merged frame.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, StreamError>>> {
        let mut state = self.shared.lock();
        state.waits_since = None;
        state.is_attended = false;
        if state.is_ended {
            let error = state.error.take();
            drop(state);
            self.is_ended = true;
            return Poll::Ready(error.map(Err));
        }
        if state.feed.is_some() && state.closing.is_none() {
            drop(state);
            return self.poll_both(cx);
        }
        let welcomes = u64::from(self.welcome.is_some());
        if let Some(frame) = state.outbox.take(self.welcome.take()) {
            took(&mut state, frame.len(), welcomes);
            let sender = state.outbox.next_waiter();
            let is_last =
                state.outbox.is_empty() && state.closing.is_some() && state.error.is_none();
            drop(state);
            if let Some(sender) = sender {
                sender.wake();
            }
            if is_last {
                // The server sees at once that nothing follows, and saves a write.
                self.end(CloseReason::Closed);
            }
            self.is_unflushed = true;
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(reason) = state.closing {
            if state.error.is_some() {
                drop(state);
                ready!(self.poll_flushed(cx));
                state = self.shared.lock();
            }
            let error = state.error.take();
            drop(state);
            self.end(reason);
            return Poll::Ready(error.map(Err));
        }
        if state.heartbeat_due {
            took(&mut state, HEARTBEAT.len(), 0);
            self.is_unflushed = true;
            return Poll::Ready(Some(Ok(HEARTBEAT)));
        }
        let old = wait(&mut state, cx);
        drop(state);
        drop(old);
        self.is_unflushed = false;
        Poll::Pending
    }
}

impl Reader {
    /// As [`poll_frame`](Self::poll_frame), where there is a source besides the outbox.
    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        let mut batch = Batch::default();
        let welcomes = u64::from(self.welcome.is_some());
        if let Some(welcome) = self.welcome.take() {
            batch.push(welcome.into());
        }
        self.fill(&mut batch);
        if batch.is_empty() {
            // Going to sleep: the waker first, then another look at the source.
            let mut state = self.shared.lock();
            if state.closing.is_some() {
                drop(state);
                return self.poll_frame(cx);
            }
            if state.heartbeat_due {
                took(&mut state, HEARTBEAT.len(), 0);
                self.is_unflushed = true;
                return Poll::Ready(Some(Ok(HEARTBEAT)));
            }
            let old = wait(&mut state, cx);
            let source = state.open_source();
            let has_more = !state.outbox.is_empty();
            drop(state);
            drop(old);
            if let Some(source) = source {
                source.arm();
                batch.pull(&*source);
            }
            if has_more {
                cx.waker().wake_by_ref();
            }
        }
        let events = welcomes + batch.events_of_source();
        match batch.into_frame() {
            None => {
                self.is_unflushed = false;
                Poll::Pending
            }
            Some(frame) => {
                took(&mut self.shared.lock(), frame.len(), events);
                self.is_unflushed = true;
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    /// Takes from the outbox and the source. Whichever comes second may find the batch full: it
    /// comes first the next time.
    fn fill(&mut self, batch: &mut Batch) {
        let mut state = self.shared.lock();
        if mem::take(&mut self.source_is_first) {
            let source = state.open_source();
            drop(state);
            if let Some(source) = source {
                batch.pull(&*source);
            }
            state = self.shared.lock();
            state.outbox.fill(batch);
            let sender = state.outbox.next_waiter();
            drop(state);
            if let Some(sender) = sender {
                sender.wake();
            }
            return;
        }
        state.outbox.fill(batch);
        let sender = state.outbox.next_waiter();
        let source = state.open_source();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        if let Some(source) = source {
            self.source_is_first = batch.is_full();
            batch.pull(&*source);
        }
    }
}

impl Reader {
    /// Lets the server write what it has taken: an error makes hyper drop what is not written yet.
    ///
    /// Over HTTP/1 it writes when the body is pending. Over HTTP/2 that is another task's work, of
    /// which nothing is to be seen from here: it is given some time.
    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if mem::take(&mut self.is_unflushed) {
            let has_timer = self.shared.request.kind.is_http2 && Handle::try_current().is_ok();
            if has_timer {
                self.flush = Some(Box::pin(sleep(HTTP2_FLUSH)));
            } else {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        match &mut self.flush {
            Some(flush) => flush.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let reason = if thread::panicking() {
            CloseReason::Failed
        } else {
            CloseReason::ClientGone
        };
        self.shared.end(reason);
    }
}

/// Put together by hand, since every connection begins with it.
fn uuid_welcome(uuid: &Uuid) -> Event {
    let mut data = String::with_capacity(r#"{"uuid":""}"#.len() + Hyphenated::LENGTH);
    data.push_str(r#"{"uuid":""#);
    data.push_str(
        uuid.as_hyphenated()
            .encode_lower(&mut [0; Hyphenated::LENGTH]),
    );
    data.push_str(r#""}"#);
    Event::with_type("welcome", &data)
}

/// Notes what was taken: the outbox counts its own events.
pub(super) fn took(state: &mut ConnectionState, bytes: usize, other_events: u64) {
    state.last_sent = Instant::now();
    state.heartbeat_due = false;
    state.is_writing = true;
    // The rest waits from now on: a server whose buffers are full does not come back for it.
    state.waits_since = (!state.outbox.is_empty()).then_some(state.last_sent);
    state.sent.bytes += bytes as u64;
    state.sent.events += other_events;
}

/// Leaves a waker; gives back the one that stood there, to be dropped outside the lock.
pub(super) fn wait(state: &mut ConnectionState, cx: &Context<'_>) -> Option<std::task::Waker> {
    state.waits_since = None;
    state.is_writing = false;
    match &state.reader {
        Some(reader) if reader.will_wake(cx.waker()) => None,
        _ => state.reader.replace(cx.waker().clone()),
    }
}
