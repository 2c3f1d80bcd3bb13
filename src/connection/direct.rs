//! How a stream leaves its response body, to be driven straight on a socket.
//!
//! 1. The layer puts a [`Mark`] into the extensions of the response that carries a stream.
//! 2. Whoever serves the response polls its body once. If the frame that comes is, byte for byte in
//!    place, the first one that the stream has given, nobody between has changed it.
//! 3. Then the stream may be taken over: a second reader goes on where the body's has stopped. The
//!    body must not be polled from then on. It is kept, and dropped when the stream has ended, since
//!    what wraps it may hold permits and guards.

use std::sync::Arc;

use bytes::Bytes;

use super::{reader::Reader, shared::Shared, state::State};

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
