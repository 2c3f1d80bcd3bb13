//! A stream that is driven straight on its socket, in place of a response body in hyper.
//!
//! hyper has written the head, with `transfer-encoding: chunked`, and the first frame; each later one
//! is one chunk here, and the last chunk comes only after a clean end.

use std::{
    future::Future,
    io::{self, IoSlice, Write},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io::Io;
use crate::connection::{Reader, StreamError};

/// How much of what a client sends during its stream is kept for the next request.
const MOST_RECEIVED: usize = 16 * 1024;

const CHUNK_END: &[u8] = b"\r\n";

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
struct Out {
    /// The length in hexadecimal, and CRLF: at most 18 bytes.
    head: [u8; 18],
    head_len: u8,
    /// It has been handed to the socket, which has not been flushed.
    is_unflushed: bool,
    frame: Bytes,
    written: usize,
}

impl<S, B> Direct<S, B> {
    pub(super) fn new(io: Io<S>, reader: Reader, body: Pin<Box<B>>) -> Self {
        Self {
            reader,
            io: Some(io),
            out: Out::none(),
            received: BytesMut::new(),
            is_last: false,
            _body: body,
        }
    }
}

impl Out {
    fn none() -> Self {
        Self {
            head: [0; 18],
            head_len: 0,
            is_unflushed: false,
            frame: Bytes::new(),
            written: 0,
        }
    }

    fn set(&mut self, frame: Bytes) {
        let mut head = &mut self.head[..];
        // A u64 has 16 digits at most. In capitals, as hyper writes them.
        let _ = write!(head, "{:X}\r\n", frame.len());
        let left = head.len();
        self.head_len = (self.head.len() - left) as u8;
        self.frame = frame;
        self.written = 0;
    }

    /// Writes what is left. Several parts go in one call, where the socket takes them so.
    fn poll_write<S>(&mut self, io: &mut Io<S>, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while self.head_len > 0 {
            let parts = [&self.head[..self.head_len.into()], &self.frame, CHUNK_END];
            let total: usize = parts.iter().map(|part| part.len()).sum();
            if self.written == total {
                self.head_len = 0;
                self.frame = Bytes::new();
                self.is_unflushed = true;
                break;
            }
            let mut skip = self.written;
            let slices = parts.map(|part| {
                let from = skip.min(part.len());
                skip -= from;
                IoSlice::new(&part[from..])
            });
            let first = slices.iter().position(|slice| !slice.is_empty());
            let slices = &slices[first.unwrap_or(0)..];
            let written = ready!(Pin::new(&mut *io).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        if self.is_unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
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
            let (frame, armed) = this.reader.poll_armed(cx);
            is_armed = armed;
            match frame {
                Poll::Ready(Some(Ok(frame))) => this.out.set(frame),
                // Broken off: without the last chunk, the client can tell.
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Left::Broken(error)),
                Poll::Ready(None) => {
                    // The last chunk is an empty one.
                    this.out.set(Bytes::new());
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
    let mut bytes = [0; 512];
    while received.len() < MOST_RECEIVED {
        let mut buf = ReadBuf::new(&mut bytes);
        let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buf));
        if read.is_err() || buf.filled().is_empty() {
            return Poll::Ready(());
        }
        received.extend_from_slice(buf.filled());
    }
    Poll::Pending
}
