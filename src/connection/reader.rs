//! The side of a connection that takes its events: held by the response future, then by the body.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, MutexGuard},
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

use super::{
    Batch, CloseReason, SseConnection, StreamError,
    config::{Config, WelcomeEvent},
    error::StreamErrorKind,
    link::Link,
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
    shared: Arc<Shared>,
    progress: Progress,
}

/// How far the stream has been read.
#[derive(Default)]
struct Progress {
    /// The first frame, until it is sent.
    welcome: Option<Vec<u8>>,
    /// The head, or a frame, was returned since the last `Pending`: the server may not have written
    /// it yet.
    is_unflushed: bool,
    /// The outbox filled the last frame alone: the source comes first in the next.
    source_is_first: bool,
    /// The waker was registered before the last frame was pulled, and nothing was left.
    is_armed: bool,
    /// What a failing HTTP/2 stream waits for.
    flush: Option<Pin<Box<Sleep>>>,
    /// The last frame has been returned.
    is_ended: bool,
}

type NextFrame = Poll<Option<Result<Bytes, StreamError>>>;

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            progress: Progress::default(),
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
        let old = state.wait(cx.waker());
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
    pub(crate) fn begin(&mut self, has_handler: bool) {
        if let Some(link) = self.link() {
            link.stream_started(has_handler);
        }
        self.open();
        self.welcome();
    }

    /// The inner service's own stream starts: runs the hook.
    pub(crate) fn begin_adopted(&mut self) {
        if let Some(link) = self.link() {
            link.stream_adopted();
        }
        self.open();
    }

    fn open(&mut self) {
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
        self.progress.is_unflushed = true;

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
        self.progress.welcome = Some(event.into_frame(is_numbered.then_some(0)));
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
        if let Some(link) = self.link() {
            link.handler_finished();
        }
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
        self.shared.lock().took(bytes, events);
        self.progress.is_unflushed = true;
    }

    /// Ready when the connection has ended without its body: for a moment at which nothing else can
    /// be given.
    pub(crate) fn poll_cut(&mut self, cx: &Context<'_>) -> NextFrame {
        let mut state = self.shared.lock();
        state.waits_since = None;
        if !state.is_ended {
            let old = state.wait(cx.waker());
            drop(state);
            drop(old);
            return Poll::Pending;
        }
        let error = state.error.take();
        drop(state);
        self.progress.is_ended = true;
        Poll::Ready(error.map(Err))
    }

    /// Ends the connection, for this reason if there is none yet.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.progress.is_ended = true;
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

    fn link(&self) -> Option<&Link> {
        self.shared.request.link.as_ref()
    }

    /// Whether the last frame has been given.
    pub(crate) fn is_ended(&self) -> bool {
        self.progress.is_ended
    }

    /// Returns the next frame: all that is ready, up to the size of a merged frame.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> NextFrame {
        self.progress.poll_frame(&self.shared, cx)
    }
}

impl Progress {
    /// The one pull loop.
    ///
    /// A server that polls until the body is pending would find nothing at its second poll. Where
    /// it has announced that, the waker is registered before the first poll looks, and the second
    /// costs one lock. hyper polls again in any case, and would be woken for what it has taken:
    /// there the waker is registered once nothing is left.
    fn poll_frame(&mut self, shared: &Arc<Shared>, cx: &mut Context<'_>) -> NextFrame {
        if mem::take(&mut self.is_armed) && shared.lock().still_waits(cx.waker()) {
            self.is_unflushed = false;
            return Poll::Pending;
        }
        let mut arms = shared
            .request
            .link
            .as_ref()
            .is_some_and(Link::polls_until_pending);
        let mut batch = Batch::default();
        loop {
            let mut state = shared.lock();
            if state.is_ended {
                let error = state.error.take();
                drop(state);
                self.is_ended = true;
                return Poll::Ready(error.map(Err));
            }
            let _replaced = state.begin_poll(arms.then(|| cx.waker()));
            if state.feed.is_none() && self.welcome.is_none() {
                return match state.outbox.pop() {
                    Some(frame) => {
                        let is_armed = arms && state.outbox.is_empty();
                        self.give(shared, state, frame.into(), 0, is_armed)
                    }
                    None => self.poll_idle(shared, state, cx),
                };
            }
            let mut events = 0;
            if let Some(welcome) = self.welcome.take() {
                batch.push_owned(welcome);
                events = 1;
            }
            let goes_first = mem::take(&mut self.source_is_first);
            let first = state.open_source().filter(|_| goes_first);
            let has_looked = first.is_none();
            let (source, is_drained) = match first {
                Some(source) => (source, false),
                None => {
                    let is_drained = state.outbox.fill(&mut batch);
                    match state.open_source() {
                        Some(source) => {
                            self.source_is_first = batch.is_full();
                            (source, is_drained)
                        }
                        None if batch.is_empty() => return self.poll_idle(shared, state, cx),
                        None => {
                            let is_armed = arms && is_drained;
                            return self.give(shared, state, batch.into_frame(), events, is_armed);
                        }
                    }
                }
            };
            let is_heartbeat_due = state.heartbeat_due;
            drop(state);
            if arms {
                source.arm();
            }
            batch.pull(&*source);
            if !batch.is_empty() {
                let mut state = shared.lock();
                let is_drained = is_drained || state.outbox.fill(&mut batch);
                let is_armed = arms && is_drained && !batch.is_full();
                events += batch.events_of_source();
                return self.give(shared, state, batch.into_frame(), events, is_armed);
            }
            if is_heartbeat_due {
                return self.poll_idle(shared, shared.lock(), cx);
            }
            if arms && has_looked {
                self.is_unflushed = false;
                return Poll::Pending;
            }
            // Registers the waker, and looks once more, at the outbox too.
            arms = true;
        }
    }

    /// Returns what has been pulled.
    #[inline]
    fn give(
        &mut self,
        shared: &Arc<Shared>,
        mut state: MutexGuard<'_, ConnectionState>,
        frame: Bytes,
        events: u64,
        is_armed: bool,
    ) -> NextFrame {
        state.took(frame.len(), events);
        let sender = state.outbox.next_waiter();
        let is_last = state.outbox.is_empty() && state.closing.is_some() && state.error.is_none();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        if is_last {
            // The server sees at once that nothing follows, and saves a write.
            self.is_ended = true;
            shared.end(CloseReason::Closed);
        }
        self.is_armed = is_armed;
        self.is_unflushed = true;
        Poll::Ready(Some(Ok(frame)))
    }

    /// Ends the stream, or sends a heartbeat, or waits: there is no event.
    fn poll_idle(
        &mut self,
        shared: &Arc<Shared>,
        mut state: MutexGuard<'_, ConnectionState>,
        cx: &mut Context<'_>,
    ) -> NextFrame {
        if let Some(reason) = state.closing {
            let breaks = state.error.is_some();
            drop(state);
            if breaks {
                ready!(self.poll_flushed(shared, cx));
            }
            let error = shared.lock().error.take();
            self.is_ended = true;
            shared.end(reason);
            return Poll::Ready(error.map(Err));
        }
        if state.heartbeat_due {
            state.took(HEARTBEAT.len(), 0);
            self.is_unflushed = true;
            return Poll::Ready(Some(Ok(HEARTBEAT)));
        }
        let replaced = state.wait(cx.waker());
        drop(state);
        drop(replaced);
        self.is_unflushed = false;
        Poll::Pending
    }

    /// Lets the server write what it has taken: an error makes hyper drop what is not written yet.
    ///
    /// Over HTTP/1 it writes when the body is pending. Over HTTP/2 that is another task's work, of
    /// which nothing is to be seen from here: it is given some time.
    fn poll_flushed(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        if mem::take(&mut self.is_unflushed) {
            let has_timer = shared.request.kind.is_http2 && Handle::try_current().is_ok();
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
