//! How a stream leaves its response body, to be driven straight on a socket.
//!
//! 1. The layer puts a [`Mark`] into the extensions of the response that carries a stream.
//! 2. Whoever serves the response polls its body once. If the frame that comes is, byte for byte in
//!    place, the first one that the stream has given, nobody between has changed it.
//! 3. Then the stream may be taken over: a second reader goes on where the body's has stopped. The
//!    body must not be polled from then on. It is kept, and dropped when the stream has ended, since
//!    what wraps it may hold permits and guards.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{
    Batch, StreamError,
    reader::{Reader, took, wait},
    shared::Shared,
    state::State,
};

/// Says in a response's extensions that its body is a stream, and whose.
#[derive(Clone)]
pub(crate) struct Mark(pub(super) Arc<Shared>);

/// Where the first frame of a stream lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstFrame {
    address: usize,
    length: usize,
}

impl FirstFrame {
    pub(super) fn of(frame: &Bytes) -> Self {
        Self {
            address: frame.as_ptr() as usize,
            length: frame.len(),
        }
    }
}

impl Mark {
    /// Takes the stream over from its body, which has given this frame first. None if something
    /// else has become of it: a handler runs in it, its frame was changed or counted on, or it has
    /// ended.
    pub(crate) fn take_over(&self, frame: &Bytes) -> Option<Reader> {
        let mut state = self.0.lock();
        let is_first = state.first_frame == Some(FirstFrame::of(frame));
        if !is_first || !may_leave(&state) {
            return None;
        }
        state.first_frame = None;
        drop(state);
        Some(Reader::new(Arc::clone(&self.0)))
    }
}

/// How far a body has been polled, for as long as its stream could leave it.
#[derive(Debug)]
pub(super) enum Leaving {
    /// Not at all.
    Polled0,
    /// It has given its first frame.
    Polled1,
    /// Further: the stream stays.
    Never,
}

impl Reader {
    /// For the extensions of the response that carries the stream.
    pub(crate) fn mark(&self) -> Mark {
        Mark(Arc::clone(&self.shared))
    }

    /// As [`poll_frame`](Self::poll_frame). Tells as well whether what comes after a frame will wake
    /// this task, so that it need not ask again.
    ///
    /// For that it gets ready to sleep before it looks. hyper asks again in any case, and would be
    /// woken for what it has taken.
    pub(crate) fn poll_armed(
        &mut self,
        cx: &mut Context<'_>,
    ) -> (Poll<Option<Result<Bytes, StreamError>>>, bool) {
        let mut state = self.shared.lock();
        let is_usual = state.feed.is_some()
            && !(state.closing.is_some() || state.is_ended || state.heartbeat_due);
        if !is_usual || self.welcome.is_some() || self.source_is_first {
            drop(state);
            return (self.poll_frame(cx), false);
        }
        state.waits_since = None;
        let old = wait(&mut state, cx);
        let mut batch = Batch::default();
        state.outbox.fill(&mut batch);
        let is_all_taken = state.outbox.is_empty();
        let sender = state.outbox.next_waiter();
        let source = state.open_source();
        drop(state);
        drop(old);
        if let Some(sender) = sender {
            sender.wake();
        }
        if let Some(source) = source {
            source.arm();
            // As a body does it: whichever comes second, and finds the batch full.
            self.source_is_first = batch.is_full();
            batch.pull(&*source);
        }
        let is_armed = is_all_taken && !batch.is_full();
        let events = batch.events_of_source();
        match batch.into_frame() {
            None => (Poll::Pending, is_armed),
            Some(frame) => {
                took(&mut self.shared.lock(), frame.len(), events);
                (Poll::Ready(Some(Ok(frame))), is_armed)
            }
        }
    }

    /// Whether the connection was ended by somebody else, while what it has given is being written.
    /// Wakes this task when it is.
    pub(crate) fn poll_cut_off(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        if state.is_ended {
            // By itself, with its last frame, which is still to be written.
            return if self.is_ended() {
                Poll::Pending
            } else {
                Poll::Ready(())
            };
        }
        // Not as one that sleeps: since when something waits is left as it is.
        let old = state.reader.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// The body has been polled, and has given this.
    pub(crate) fn polled(&mut self, frame: Option<&Bytes>) {
        let (leaving, first) = match (&self.leaving, frame) {
            (Leaving::Never, _) => return,
            (Leaving::Polled0, Some(frame)) => (Leaving::Polled1, Some(FirstFrame::of(frame))),
            _ => (Leaving::Never, None),
        };
        self.leaving = leaving;
        self.shared.lock().first_frame = first;
    }
}

fn may_leave(state: &State) -> bool {
    !state.has_handler && !state.is_adopted && !state.is_ended && state.error.is_none()
}
