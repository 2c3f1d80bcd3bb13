//! What a body can pull encoded events from, besides the outbox.
//!
//! This is all that the two halves of the floor above know of each other: a layer's body pulls
//! from a source, and a broker makes one.

use std::{
    any::Any,
    fmt, mem,
    sync::{Arc, Weak},
    task::Waker,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{CloseReason, shared::Shared};

/// How large a merged frame may become. In hyper, 100 small frames cost 7 writes; merged, one.
pub(super) const MERGED: usize = 32 * 1024;

/// Something that a body pulls events from.
///
/// # The hand-shake
///
/// The body calls [`pull`](Self::pull) until that gives nothing; then it leaves its waker, calls
/// [`arm`](Self::arm), and pulls once more before it sleeps. So a source that makes an event
/// visible, and then wakes whoever is armed, is never missed.
pub(crate) trait Source: Any + Send + Sync {
    /// Puts events that are ready into the batch, until it is full.
    fn pull(&self, batch: &mut Batch);

    /// The body is about to sleep: it is to be woken for the next event.
    fn arm(&self);

    /// The id for the welcome, if it carries one. It counts as given then.
    fn welcome_id(&self) -> Option<String>;

    /// Lets events through from now on. Where nothing was sent before, the place at which the
    /// source begins can ride on the welcome.
    fn go_live(&self, nothing_was_sent: bool);

    /// Whether there is something that could give events.
    fn is_subscribed(&self) -> bool;

    /// A visit of the ticker. Gives since when an event waits that could go out, if one does: the
    /// source does not tell of each that comes while the body is awake.
    fn visit(&self) -> Option<Instant>;

    /// The connection has ended.
    fn detach(&self);

    /// Itself, to find out whose it is.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl fmt::Debug for dyn Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("is_subscribed", &self.is_subscribed())
            .finish_non_exhaustive()
    }
}

/// Why a connection takes no source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachError {
    Closed(CloseReason),
    /// Its events are numbered: the ids would be taken for the source's.
    Numbered,
    /// It has another source.
    OtherSource,
}

/// A source's way back to its connection. It does not keep it open.
#[derive(Clone)]
pub(crate) struct SourceWaker(Weak<Shared>);

impl SourceWaker {
    pub(super) fn new(shared: Weak<Shared>) -> Self {
        Self(shared)
    }

    /// The waker of the body that sleeps, to be woken outside all locks.
    pub(crate) fn take(&self, now: Instant) -> Option<Waker> {
        let shared = self.0.upgrade()?;
        let mut state = shared.lock();
        // One that does not sleep may have this already. If not, a visit of the ticker will tell.
        if state.sleeps() {
            state.note_waiting(|| now);
        }
        state.reader.take()
    }

    /// Why the connection is closed, or will have been.
    pub(crate) fn close_reason(&self) -> CloseReason {
        let shared = self.0.upgrade();
        let reason = shared.and_then(|shared| shared.lock().closing);
        reason.unwrap_or(CloseReason::ClientGone)
    }

    /// Tells of a gap, in the connection's span.
    pub(crate) fn trace_gap(&self, reason: &'static str, missed: Option<u64>) {
        if let Some(shared) = self.0.upgrade() {
            shared.trace.gap(reason, missed);
        }
    }

    /// Begins to close the connection.
    pub(crate) fn close(&self, reason: CloseReason) {
        if let Some(shared) = self.0.upgrade() {
            shared.close(reason, None);
        }
    }
}

/// Frames that go out as one.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    frames: Frames,
    /// How many bytes the frames have.
    size: usize,
    is_full: bool,
    /// How many frames have been added.
    pushed: u64,
    /// How many of them by a source.
    of_source: u64,
}

#[derive(Debug, Default)]
enum Frames {
    #[default]
    None,
    /// One frame, which other connections may share: it goes out without a copy.
    Shared(Bytes),
    /// All frames, one behind the other.
    Owned(Vec<u8>),
}

impl Batch {
    /// Takes from a source. Each of its frames is one event.
    pub(super) fn pull(&mut self, source: &dyn Source) {
        let before = self.pushed;
        source.pull(self);
        self.of_source += self.pushed - before;
    }

    #[inline]
    pub(super) fn events_of_source(&self) -> u64 {
        self.of_source
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// Whether a frame had to be left for the next batch.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether a frame of this size may be added. The first one always may. If not, the batch is
    /// full from then on.
    #[inline]
    pub(crate) fn admits(&mut self, size: usize) -> bool {
        self.is_full |= self.size > 0 && self.size + size > MERGED;
        !self.is_full
    }

    /// Adds a frame that other connections may share.
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.pushed += 1;
        self.size += frame.len();
        match &mut self.frames {
            Frames::None => self.frames = Frames::Shared(frame),
            _ => self.append(&frame),
        }
    }

    /// Adds a frame of this connection's own.
    #[inline]
    pub(super) fn push_owned(&mut self, frame: Vec<u8>) {
        self.pushed += 1;
        self.size += frame.len();
        match &mut self.frames {
            Frames::None => self.frames = Frames::Owned(frame),
            _ => self.append(&frame),
        }
    }

    fn append(&mut self, frame: &[u8]) {
        let mut all = match mem::take(&mut self.frames) {
            Frames::None => Vec::new(),
            Frames::Shared(first) => {
                // A guess: where there are two there may be some more.
                let mut all = Vec::with_capacity((self.size * 4).min(MERGED).max(self.size));
                all.extend_from_slice(&first);
                all
            }
            Frames::Owned(all) => all,
        };
        if self.size > all.capacity() {
            // By doubling, but not past what a merged frame can need.
            let grown = (2 * self.size).min(MERGED).max(self.size);
            all.reserve_exact(grown - all.len());
        }
        all.extend_from_slice(frame);
        self.frames = Frames::Owned(all);
    }

    /// Returns all frames as one.
    #[inline]
    pub(super) fn into_frame(self) -> Bytes {
        match self.frames {
            Frames::None => Bytes::new(),
            Frames::Shared(frame) => frame,
            Frames::Owned(frames) => frames.into(),
        }
    }
}
