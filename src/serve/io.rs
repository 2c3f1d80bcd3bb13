//! A socket as the server sees it: with bytes that were read ahead, a write deadline, and a mark of
//! when all was written.
//!
//! Under TLS there are two: what TLS writes to has no deadline of its own, but it is there that one
//! sees whether the peer takes something. TLS holds tens of kilobytes, and a write or a flush of it
//! may be pending for long while they go out.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

thread_local! {
    /// How many writes have been taken by the sockets that this thread has polled. So a socket sees
    /// whether one beneath it has written, in the same call.
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// Whether everything that was written has been handed to the socket: hyper flushes when it has
/// nothing left itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Flushed(Arc<AtomicBool>);

impl Flushed {
    /// Something is about to be written.
    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A socket with a write deadline, if it has one: if its peer takes nothing for as long, though
/// something is to be written, it fails with [`TimedOut`](io::ErrorKind::TimedOut).
pub struct Io<S> {
    socket: S,
    /// What was read ahead, and comes first.
    ahead: Bytes,
    flushed: Flushed,
    /// How long a write may be pending.
    write_deadline: Option<Duration>,
    /// When the write that is pending has taken too long.
    pending: Option<Pin<Box<Sleep>>>,
}

impl<S> Io<S> {
    pub(super) fn new(socket: S, ahead: Bytes, write_deadline: Option<Duration>) -> Self {
        Self {
            socket,
            ahead,
            flushed: Flushed::default(),
            write_deadline,
            pending: None,
        }
    }

    /// What a handshake begins with, and TLS writes to.
    pub(super) fn beneath(socket: S) -> Self {
        Self::new(socket, Bytes::new(), None)
    }

    pub(super) fn flushed(&self) -> Flushed {
        self.flushed.clone()
    }

    /// Puts bytes before those that are still to be read.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            // It may be the rest of a large buffer, which would be kept for nothing.
        } else if self.ahead.is_empty() {
            self.ahead = bytes;
        } else {
            let mut both = bytes.to_vec();
            both.extend_from_slice(&self.ahead);
            self.ahead = both.into();
        }
    }

    /// Keeps the time of a write that is pending.
    fn timed<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut S, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let taken = TAKEN.get();
        let written = write(&mut self.socket, cx);
        let (Poll::Pending, Some(time)) = (&written, self.write_deadline) else {
            self.pending = None;
            return written;
        };
        let pending = self.pending.get_or_insert_with(|| Box::pin(sleep(time)));
        if TAKEN.get() != taken {
            // Not all, but something.
            pending.as_mut().reset(Instant::now() + time);
        }
        match pending.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let text = "the peer has taken nothing for too long";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
            }
        }
    }
}

impl<S> fmt::Debug for Io<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io")
            .field("write_deadline", &self.write_deadline)
            .field("is_pending", &self.pending.is_some())
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Io<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        }
        let length = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..length]);
        this.ahead.advance(length);
        if this.ahead.is_empty() {
            // Its buffer may be shared with much more.
            this.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Io<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.flushed.clear();
        let written = this.timed(cx, |socket, cx| Pin::new(socket).poll_write(cx, buf));
        noted(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.flushed.clear();
        let written = this.timed(cx, |socket, cx| {
            Pin::new(socket).poll_write_vectored(cx, bufs)
        });
        noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = this.timed(cx, |socket, cx| Pin::new(socket).poll_flush(cx));
        if let Poll::Ready(Ok(())) = flushed {
            this.flushed.0.store(true, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.timed(cx, |socket, cx| Pin::new(socket).poll_shutdown(cx))
    }
}

/// Notes that something was taken.
fn noted(written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    if matches!(written, Poll::Ready(Ok(1..))) {
        TAKEN.set(TAKEN.get().wrapping_add(1));
    }
    written
}
