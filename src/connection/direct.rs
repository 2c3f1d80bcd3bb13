//! How a stream leaves its response body, to be driven straight on a socket.
//!
//! 1. The layer puts a [`Mark`] into the extensions of the response that carries a stream.
//! 2. Whoever serves the response polls its body once. If the frame that comes is, byte for byte in
//!    place, the first one that the stream has given, nobody between has changed it.
//! 3. Then the stream may be taken over: a second reader goes on where the body's has stopped. Whoever
//!    comes first, the one who takes over or the one who polls the body again, has the stream.
//! 4. From then on the body gives nothing, and ends when the stream has. It is kept as long, since what
//!    wraps it may hold permits and guards.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{
    Batch, StreamError,
    reader::{Reader, took, wait},
    shared::Shared,
    state::ConnectionState,
};

/// Says in a response's extensions that its body is a stream, and whose.
#[derive(Clone)]
pub(crate) struct Mark(pub(super) Arc<Shared>);

impl Mark {
    /// Takes the stream over from its body, which has given this frame first. None if something
    /// else has become of it: a handler runs in it, its frame was changed or counted on, or it has
    /// ended.
    pub(crate) fn take_over(&self, frame: &Bytes) -> Option<Reader> {
        let mut state = self.0.lock();
        // At the same place. It is held, so that nothing else can have come to lie there, and that
        // nobody can have changed it there.
        let is_first =
            |first: &Bytes| (first.as_ptr(), first.len()) == (frame.as_ptr(), frame.len());
        if !state.first_frame.as_ref().is_some_and(is_first) || !may_leave(&state) {
            return None;
        }
        let first = state.first_frame.take();
        state.has_left = true;
        drop(state);
        drop(first);
        Some(Reader::new(Arc::clone(&self.0)))
    }
}

/// What is written next.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A whole chunk.
    Chunk(Bytes),
    /// A frame that has no chunk yet.
    Frame(Bytes),
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
    ) -> (Poll<Option<Result<Piece, StreamError>>>, bool) {
        let mut state = self.shared.lock();
        let is_usual = state.feed.is_some()
            && !(state.closing.is_some() || state.is_ended || state.heartbeat_due);
        if !is_usual || self.welcome.is_some() || self.source_is_first {
            drop(state);
            let next = self.poll_frame(cx);
            return (next.map(|next| next.map(|it| it.map(Piece::Frame))), false);
        }
        state.waits_since = None;
        let old = wait(&mut state, cx);
        let mut batch = Batch::chunked();
        state.outbox.fill(&mut batch);
        let is_all_sent = state.outbox.is_empty();
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
        let is_armed = is_all_sent && !batch.is_full();
        let (size, events) = (batch.size(), batch.events_of_source());
        match batch.into_chunk() {
            None => (Poll::Pending, is_armed),
            Some(piece) => {
                took(&mut self.shared.lock(), size, events);
                (Poll::Ready(Some(Ok(piece))), is_armed)
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

    /// The body is about to be polled. If its stream has left it, this is what becomes of it; if not,
    /// and this is not the first time, it stays. (Layers may poll a body in a task of their own, also
    /// while its stream is being taken over.)
    pub(crate) fn poll_left(&mut self, cx: &Context<'_>) -> Option<Poll<()>> {
        if !matches!(self.leaving, Leaving::Polled1) {
            return None;
        }
        let mut state = self.shared.lock();
        if !state.has_left {
            let first = state.first_frame.take();
            drop(state);
            drop(first);
            self.leaving = Leaving::Never;
            return None;
        }
        if state.is_ended {
            return Some(Poll::Ready(()));
        }
        let old = state.left_body.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Some(Poll::Pending)
    }

    /// The body has been polled, and has given this.
    pub(crate) fn polled(&mut self, frame: Option<&Bytes>) {
        self.leaving = match (&self.leaving, frame) {
            (Leaving::Polled0, Some(frame)) => {
                self.shared.lock().first_frame = Some(frame.clone());
                Leaving::Polled1
            }
            _ => Leaving::Never,
        };
    }
}

fn may_leave(state: &ConnectionState) -> bool {
    !state.has_handler && !state.is_adopted && !state.is_ended && state.error.is_none()
}
