//! A stream that is driven straight on its socket, in place of a response body in hyper.
//!
//! hyper has written the head, with `transfer-encoding: chunked`, and the first frame; each later one
//! is one chunk here, and the last chunk comes only after a clean end.

use std::{
    future::Future,
    io::{self, IoSlice},
    mem::{self, MaybeUninit},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io::Io;
use crate::{
    connection::{Piece, Reader, StreamError},
    event::chunk::{self, Chunk},
};

/// How much of what a client sends during its stream is kept for the next request.
const MOST_RECEIVED: usize = 16 * 1024;

/// How a stream has left its socket.
pub(super) enum Left<S> {
    /// It ended cleanly: the socket can be used again, beginning with what was received meanwhile.
    Clean(Box<Io<S>>),
    /// The stream broke off: the socket is to be closed.
    Broken(#[cfg_attr(not(feature = "test-util"), expect(dead_code))] StreamError),
    /// The client is gone: the socket is to be closed.
    Gone,
}

pub(super) struct Direct<S, B> {
    // The reader goes first, so that the connection ends for its own reason.
    reader: Reader,
    /// None: it has been given back.
    io: Option<Io<S>>,
    out: Out,
    received: BytesMut,
    is_last: bool,
    /// Never polled again: what wraps the stream's body is dropped with it.
    _body: Pin<Box<B>>,
}

/// A chunk that is being written.
#[derive(Default)]
struct Out {
    /// All of it; or what is between its head and its end, if `head_len` is not 0.
    bytes: Bytes,
    /// The length in hexadecimal, and CRLF: at the end.
    head: [u8; chunk::MAX_HEAD],
    head_len: u8,
    written: usize,
    /// It has been handed to the socket, which has not been flushed.
    is_unflushed: bool,
}

/// A frame up to this size is copied into its chunk: one more piece of memory in a write costs more
/// than that.
const MOST_COPIED: usize = 8 * 1024;

/// How many chunks a stream writes before others get their turn.
const MOST_AT_ONCE: usize = 16;

impl<S, B> Direct<S, B> {
    pub(super) fn new(io: Io<S>, reader: Reader, body: Pin<Box<B>>) -> Self {
        Self {
            reader,
            io: Some(io),
            out: Out::default(),
            received: BytesMut::new(),
            is_last: false,
            _body: body,
        }
    }
}

impl Out {
    /// Takes what is written next. `in_parts`: the socket takes several pieces of memory in one write.
    fn set(&mut self, piece: Piece, in_parts: bool) {
        self.head_len = 0;
        self.written = 0;
        self.bytes = match piece {
            Piece::Chunk(whole) => whole,
            Piece::Frame(frame) if frame.len() <= MOST_COPIED || !in_parts => {
                Chunk::of(&frame).into_whole()
            }
            Piece::Frame(frame) => {
                self.head_len = chunk::write_head(&mut self.head, frame.len()).len() as u8;
                frame
            }
        };
    }

    /// Writes what is left, and flushes the socket.
    fn poll_write<S>(&mut self, io: &mut Io<S>, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while !self.bytes.is_empty() {
            let written = if self.head_len == 0 {
                Pin::new(&mut *io).poll_write(cx, &self.bytes[self.written..])
            } else {
                self.poll_write_parts(io, cx)
            };
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            if self.written == self.len() {
                // An event that all others have written is not kept for this one.
                self.bytes = Bytes::new();
                self.is_unflushed = true;
            }
        }
        if self.is_unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_parts<S>(&self, io: &mut Io<S>, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        S: AsyncWrite + Unpin,
    {
        let head = &self.head[self.head.len() - usize::from(self.head_len)..];
        let mut skip = self.written;
        let slices = [head, &self.bytes, chunk::END].map(|part| {
            let from = skip.min(part.len());
            skip -= from;
            IoSlice::new(&part[from..])
        });
        let first = slices.iter().position(|slice| !slice.is_empty());
        Pin::new(io).poll_write_vectored(cx, &slices[first.unwrap_or(0)..])
    }

    fn len(&self) -> usize {
        let around = match self.head_len {
            0 => 0,
            head => usize::from(head) + chunk::END.len(),
        };
        self.bytes.len() + around
    }
}

impl<S, B> Future for Direct<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Left<S>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Left<S>> {
        let this = self.get_mut();
        let Some(io) = &mut this.io else {
            return Poll::Ready(Left::Gone);
        };
        // Whether the reader will wake this task for what comes next. If that was found before a write
        // was pending, it may have done so already.
        let mut is_armed = false;
        let mut left = MOST_AT_ONCE;
        loop {
            match this.out.poll_write(io, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Left::Gone),
                Poll::Pending => {
                    // One that takes too little may be ended meanwhile: the socket goes with it.
                    if this.reader.poll_cut_off(cx).is_ready() {
                        return Poll::Ready(Left::Gone);
                    }
                    break;
                }
            }
            if this.is_last {
                let received = mem::take(&mut this.received).freeze();
                return Poll::Ready(this.io.take().map_or(Left::Gone, |mut io| {
                    io.put_back(received);
                    Left::Clean(Box::new(io))
                }));
            }
            if is_armed {
                break;
            }
            if left == 0 {
                cx.waker().wake_by_ref();
                break;
            }
            left -= 1;
            let (piece, armed) = this.reader.poll_armed(cx);
            is_armed = armed;
            match piece {
                Poll::Ready(Some(Ok(piece))) => this.out.set(piece, io.is_write_vectored()),
                // Broken off: without the last chunk, the client can tell.
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Left::Broken(error)),
                Poll::Ready(None) => {
                    let last = Piece::Chunk(Bytes::from_static(chunk::LAST));
                    this.out.set(last, false);
                    this.is_last = true;
                }
                Poll::Pending => break,
            }
        }
        poll_gone(io, &mut this.received, cx).map(|()| Left::Gone)
    }
}

/// Ready when the client is gone. What it sends meanwhile is kept, up to a bound; beyond it nothing
/// is read, and its end is noticed when something is written.
fn poll_gone<S>(io: &mut Io<S>, received: &mut BytesMut, cx: &mut Context<'_>) -> Poll<()>
where
    S: AsyncRead + Unpin,
{
    let mut bytes = [MaybeUninit::uninit(); 512];
    while received.len() < MOST_RECEIVED {
        let mut buf = ReadBuf::uninit(&mut bytes);
        let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buf));
        if read.is_err() || buf.filled().is_empty() {
            return Poll::Ready(());
        }
        received.extend_from_slice(buf.filled());
    }
    Poll::Pending
}
