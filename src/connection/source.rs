//! What a body can pull encoded events from, besides the outbox.
//!
//! This is all that the two halves of the floor above know of each other: a layer's body pulls
//! from a source, and a broker makes one.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Weak},
    task::Waker,
};

use bytes::Bytes;
use tokio::time::Instant;

#[cfg(feature = "serve")]
use super::direct::Piece;
use super::{CloseReason, shared::Shared};
use crate::event::chunk::{self, Chunk};

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

/// Frames that will go out as one.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    first: Option<NextFrame>,
    /// All frames, once there are several; behind room for the head of their chunk, if they will go
    /// out in one.
    merged: Vec<u8>,
    is_chunked: bool,
    /// How many bytes the frames have.
    size: usize,
    is_full: bool,
    /// How many frames have been added.
    pushed: u64,
    /// How many of them by a source.
    of_source: u64,
}

#[derive(Debug)]
enum NextFrame {
    Plain(Bytes),
    Chunk(Chunk),
}

/// The room for the head of a merged chunk: its size has four digits.
const HEAD: usize = MERGED.ilog2() as usize / 4 + 1 + chunk::END.len();

impl Batch {
    /// One that will be asked [`into_chunk`](Self::into_chunk).
    #[cfg(feature = "serve")]
    pub(super) fn chunked() -> Self {
        Self {
            is_chunked: true,
            ..Self::default()
        }
    }

    /// Takes from a source. Each of its frames is one event.
    pub(super) fn pull(&mut self, source: &dyn Source) {
        let before = self.pushed;
        source.pull(self);
        self.of_source += self.pushed - before;
    }

    pub(super) fn events_of_source(&self) -> u64 {
        self.of_source
    }

    /// How many bytes the frames have.
    #[cfg(feature = "serve")]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// Whether a frame had to be left for the next batch.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether a frame of this size may be added. The first one always may. If not, the batch is
    /// full from then on.
    pub(crate) fn admits(&mut self, size: usize) -> bool {
        self.is_full |= self.size > 0 && self.size + size > MERGED;
        !self.is_full
    }

    /// Adds a frame. One that stays alone goes out without a copy.
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.add(NextFrame::Plain(frame));
    }

    /// The same for one that has its chunk already.
    pub(crate) fn push_chunk(&mut self, chunk: Chunk) {
        self.add(NextFrame::Chunk(chunk));
    }

    fn add(&mut self, frame: NextFrame) {
        self.pushed += 1;
        let before = self.size;
        self.size += frame.bytes().len();
        if self.pushed == 1 {
            self.first = Some(frame);
            return;
        }
        let around = if self.is_chunked {
            HEAD + chunk::END.len()
        } else {
            0
        };
        if let Some(first) = self.first.take() {
            // A guess: where there are two there may be some more.
            let room = (self.size * 4).min(MERGED).max(self.size);
            self.merged.reserve_exact(room + around);
            if self.is_chunked {
                self.merged.resize(HEAD, 0);
            }
            self.merged.extend_from_slice(first.bytes());
        } else if self.size + around > self.merged.capacity() {
            // By doubling, but not past what a merged frame can need.
            let grown = (2 * self.size).min(MERGED).max(self.size);
            self.merged.reserve_exact(grown - before + around);
        }
        self.merged.extend_from_slice(frame.bytes());
    }

    /// For a server that frames what it is given.
    pub(crate) fn into_frame(self) -> Option<Bytes> {
        match self.first {
            Some(NextFrame::Plain(frame)) => Some(frame),
            Some(NextFrame::Chunk(chunk)) => Some(chunk.into_frame()),
            None if self.merged.is_empty() => None,
            None => Some(self.merged.into()),
        }
    }

    /// For who writes chunks by itself.
    #[cfg(feature = "serve")]
    pub(super) fn into_chunk(self) -> Option<Piece> {
        let mut merged = match self.first {
            Some(NextFrame::Plain(frame)) => return Some(Piece::Frame(frame)),
            Some(NextFrame::Chunk(chunk)) => return Some(Piece::Chunk(chunk.into_whole())),
            None if self.merged.is_empty() => return None,
            None => self.merged,
        };
        debug_assert!(
            self.size <= MERGED,
            "frames are admitted before they are added"
        );
        let head = chunk::write_head(&mut merged[..HEAD], self.size).len();
        merged.extend_from_slice(chunk::END);
        Some(Piece::Chunk(Bytes::from(merged).split_off(HEAD - head)))
    }
}

impl NextFrame {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(frame) => frame,
            Self::Chunk(chunk) => chunk.as_frame(),
        }
    }
}
