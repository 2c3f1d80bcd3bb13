//! An event stream whose body is written straight to its socket, in place of a response in hyper.
//!
//! hyper has written the head, with `transfer-encoding: chunked`, and perhaps the first frame. Here
//! the response's body is polled through every layer around it. Each frame goes out as one chunk
//! (RFC 9112, section 7.1), and the last chunk only after a clean end.
//!
//! 1. Nothing is polled while something waits to be written.
//! 2. The body is polled until it is pending, up to a limit for each turn.
//! 3. An empty frame is skipped: as a chunk it would end the message. A frame of trailers ends the
//!    body, and nothing of it is written, as in hyper.
//! 4. A panic of the body, polled or dropped, ends this stream alone.

use std::{
    cell::RefCell,
    future::Future,
    io::{self, IoSlice},
    mem::{self, MaybeUninit},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{chunk, io::Io};
use crate::{BoxError, connection::Link};

/// How much of what a client sends during its stream is kept for the next request.
const MAX_RECEIVED: usize = 16 * 1024;

/// A frame up to this size is copied into its chunk: one more piece of memory in a write costs more
/// than that.
const MAX_COPIED: usize = 8 * 1024;

/// How many frames a stream writes before others get their turn.
const MAX_AT_ONCE: usize = 16;

thread_local! {
    /// Where chunks are put together. What a socket does not take of one is copied from here.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How a stream has left its socket.
pub(super) enum Left<S> {
    /// It ended cleanly: the socket can be used again, beginning with what was received meanwhile.
    Clean(Box<Io<S>>),
    /// It broke off: the socket is to be closed. The error is the body's, if that has failed; the
    /// server in memory shows it.
    Broken(#[cfg_attr(not(feature = "test-util"), expect(dead_code))] Option<BoxError>),
}

pub(super) struct Direct<S, B> {
    /// None: it has panicked, or has been dropped.
    body: Option<Pin<Box<B>>>,
    link: Link,
    /// The link knows the task that polls this.
    is_registered: bool,
    /// None: it has been given back.
    io: Option<Io<S>>,
    rest: Rest,
    /// Something has been written to the socket since it was flushed.
    is_unflushed: bool,
    received: BytesMut,
    /// The last chunk has been written, or waits to be.
    is_last: bool,
}

/// What the socket has not taken of a chunk.
#[derive(Default)]
struct Rest {
    /// What comes first: the length in hexadecimal, or the rest of a small chunk.
    head: Bytes,
    /// A large frame, and what ends its chunk.
    frame: Bytes,
    end: &'static [u8],
}

/// What a poll of the body has come to.
enum Polled {
    Frame { frame: Bytes, is_last: bool },
    End,
    Broken(Option<BoxError>),
    Pending,
}

impl<S, B> Direct<S, B> {
    pub(super) fn new(io: Io<S>, body: Pin<Box<B>>, link: Link) -> Self {
        link.poll_until_pending();
        Self {
            body: Some(body),
            link,
            is_registered: false,
            io: Some(io),
            rest: Rest::default(),
            is_unflushed: false,
            received: BytesMut::new(),
            is_last: false,
        }
    }

    /// Whether no application code runs in the body.
    pub(super) fn is_quiet(&self) -> bool {
        self.link.is_quiet()
    }

    /// Another task polls this from now on.
    pub(super) fn leave_task(&mut self) {
        self.is_registered = false;
    }

    /// Drops the body. A panic of its destructor has been reported by then, and concerns nobody
    /// else.
    fn drop_body(&mut self) {
        if let Some(body) = self.body.take() {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(body)));
        }
    }
}

impl<S, B> Drop for Direct<S, B> {
    fn drop(&mut self) {
        self.drop_body();
    }
}

impl<S, B> Direct<S, B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Polled {
        let Some(body) = &mut self.body else {
            return Polled::Broken(None);
        };
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let polled = body.as_mut().poll_frame(cx);
            (polled, body.is_end_stream())
        }));
        match polled {
            Ok((Poll::Pending, _)) => Polled::Pending,
            Ok((Poll::Ready(Some(Ok(frame))), is_last)) => match frame.into_data() {
                // As in hyper, a body that reports its end is not polled again.
                Ok(frame) if is_last && frame.is_empty() => Polled::End,
                Ok(frame) => Polled::Frame { frame, is_last },
                Err(_trailers) => Polled::End,
            },
            Ok((Poll::Ready(None), _)) => Polled::End,
            Ok((Poll::Ready(Some(Err(error))), _)) => Polled::Broken(Some(error.into())),
            Err(_panic) => Polled::Broken(None),
        }
    }

    /// Whether the client gets nothing more.
    #[cfg(feature = "test-util")]
    pub(super) fn is_end_stream(&self) -> bool {
        let body_is_over = || self.body.as_ref().is_some_and(|body| body.is_end_stream());
        self.is_last || (self.rest.is_empty() && body_is_over())
    }
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.frame.is_empty() && self.end.is_empty()
    }

    /// Writes what is left of a chunk.
    fn poll_write<S>(&mut self, io: &mut Io<S>, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while !self.is_empty() {
            let slices = [&self.head[..], &self.frame[..], self.end].map(IoSlice::new);
            let from = slices.iter().position(|slice| !slice.is_empty());
            let slices = &slices[from.unwrap_or(0)..];
            let written = if slices.len() == 1 || !io.is_write_vectored() {
                Pin::new(&mut *io).poll_write(cx, &slices[0])
            } else {
                Pin::new(&mut *io).poll_write_vectored(cx, slices)
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.advance(written),
            }
        }
        // A frame that all others have written is not kept for this stream.
        *self = Self::default();
        Poll::Ready(Ok(()))
    }

    /// Writes what the socket takes now.
    fn write<S>(&mut self, io: &mut Io<S>, cx: &mut Context<'_>) -> io::Result<()>
    where
        S: AsyncWrite + Unpin,
    {
        match self.poll_write(io, cx) {
            Poll::Ready(written) => written,
            Poll::Pending => Ok(()),
        }
    }

    fn advance(&mut self, mut written: usize) {
        for part in [&mut self.head, &mut self.frame] {
            let of_part = written.min(part.len());
            part.advance(of_part);
            written -= of_part;
        }
        self.end = &self.end[written..];
    }
}

/// Writes a frame as a chunk, with the last chunk behind the last frame. Returns what the socket has
/// not taken of it.
fn write_chunk<S>(
    io: &mut Io<S>,
    frame: Bytes,
    is_last: bool,
    cx: &mut Context<'_>,
) -> io::Result<Rest>
where
    S: AsyncWrite + Unpin,
{
    let mut head = [0; chunk::MAX_HEAD];
    let head = chunk::write_head(&mut head, frame.len());
    let end = if is_last {
        chunk::END_AND_LAST
    } else {
        chunk::END
    };
    if frame.len() > MAX_COPIED && !io.is_write_vectored() {
        // Over TLS each write is a record of its own, and copies what it is given.
        let mut whole = Vec::with_capacity(head.len() + frame.len() + end.len());
        whole.extend_from_slice(head);
        whole.extend_from_slice(&frame);
        whole.extend_from_slice(end);
        let mut rest = Rest {
            head: whole.into(),
            ..Rest::default()
        };
        return rest.write(io, cx).map(|()| rest);
    }
    if frame.len() > MAX_COPIED {
        let mut rest = Rest {
            head: Bytes::copy_from_slice(head),
            frame,
            end,
        };
        return rest.write(io, cx).map(|()| rest);
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.extend_from_slice(head);
        scratch.extend_from_slice(&frame);
        scratch.extend_from_slice(end);
        let written = match Pin::new(io).poll_write(cx, scratch) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        let mut rest = Rest::default();
        if written < scratch.len() {
            rest.head = Bytes::copy_from_slice(&scratch[written..]);
        }
        Ok(rest)
    })
}

impl<S, B> Future for Direct<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Left<S>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Left<S>> {
        let this = self.get_mut();
        if !this.is_registered {
            this.link.register(cx.waker());
            this.is_registered = true;
        }
        let mut turns = MAX_AT_ONCE;
        loop {
            let Some(io) = &mut this.io else {
                return Poll::Ready(Left::Broken(None));
            };
            match this.rest.poll_write(io, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Left::Broken(None)),
                // The stream may have ended meanwhile: the socket goes with it.
                Poll::Pending if this.link.is_ended() => return Poll::Ready(Left::Broken(None)),
                Poll::Pending => break,
            }
            if this.is_unflushed {
                match Pin::new(&mut *io).poll_flush(cx) {
                    Poll::Ready(Ok(())) => this.is_unflushed = false,
                    Poll::Ready(Err(_)) => return Poll::Ready(Left::Broken(None)),
                    Poll::Pending if this.link.is_ended() => {
                        return Poll::Ready(Left::Broken(None));
                    }
                    Poll::Pending => break,
                }
            }
            if this.is_last {
                // Its destructors run before the next request does.
                this.drop_body();
                let received = mem::take(&mut this.received).freeze();
                return Poll::Ready(this.io.take().map_or(Left::Broken(None), |mut io| {
                    io.put_back(received);
                    Left::Clean(Box::new(io))
                }));
            }
            if turns == 0 {
                cx.waker().wake_by_ref();
                break;
            }
            turns -= 1;
            let rest = match this.poll_body(cx) {
                Polled::Frame { frame, .. } if frame.is_empty() => continue,
                Polled::Frame { frame, is_last } => {
                    this.is_last = is_last;
                    let Some(io) = &mut this.io else {
                        return Poll::Ready(Left::Broken(None));
                    };
                    write_chunk(io, frame, is_last, cx)
                }
                Polled::End => {
                    this.is_last = true;
                    Ok(Rest {
                        end: chunk::LAST,
                        ..Rest::default()
                    })
                }
                // Without the last chunk the client can tell.
                Polled::Broken(error) => return Poll::Ready(Left::Broken(error)),
                // A layer outside may hold the end of a stream back; the socket goes with it.
                Polled::Pending if this.link.is_ended() => return Poll::Ready(Left::Broken(None)),
                Polled::Pending => break,
            };
            match rest {
                Ok(rest) => this.rest = rest,
                Err(_) => return Poll::Ready(Left::Broken(None)),
            }
            this.is_unflushed = true;
        }
        match &mut this.io {
            Some(io) => poll_gone(io, &mut this.received, cx).map(|()| Left::Broken(None)),
            None => Poll::Ready(Left::Broken(None)),
        }
    }
}

/// Ready when the client is gone. What it sends meanwhile is kept, up to a limit; beyond that
/// nothing is read, and its end is noticed when something is written.
fn poll_gone<S>(io: &mut Io<S>, received: &mut BytesMut, cx: &mut Context<'_>) -> Poll<()>
where
    S: AsyncRead + Unpin,
{
    let mut bytes = [MaybeUninit::uninit(); 512];
    while received.len() < MAX_RECEIVED {
        let mut buf = ReadBuf::uninit(&mut bytes);
        let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buf));
        if read.is_err() || buf.filled().is_empty() {
            return Poll::Ready(());
        }
        received.extend_from_slice(buf.filled());
    }
    Poll::Pending
}
