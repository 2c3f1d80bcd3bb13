//! A socket in memory, and the client at its other end.
//!
//! The client takes what it is asked to take, and no more: until it reads, the socket takes the
//! beginning of one chunk, each write in part, and is not flushed before all of it has been read.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much of a chunk is taken before the client reads: less than its length in hexadecimal and
/// the line's end, where that is long enough.
const FIRST_ROOM: usize = 3;

const LINE_END: &[u8] = b"\r\n";

/// Both ends share it.
#[derive(Clone, Default)]
pub(super) struct Wire(Arc<Mutex<Ends>>);

struct Ends {
    /// What has been written, and not read.
    written: BytesMut,
    /// How much more is taken.
    room: usize,
    /// What has been read, and is not a whole chunk.
    read: BytesMut,
    /// The last chunk has been read.
    is_over: bool,
}

/// What the client has read.
#[derive(Debug)]
pub(super) enum Came {
    Nothing,
    /// Less than a chunk: there is room for the rest.
    Part,
    Frame(Bytes),
    /// The last chunk.
    End,
}

/// What has come is not what RFC 9112 (section 7.1) says of chunks, or not as hyper writes them.
#[derive(Debug)]
pub(super) struct BadChunk(Bytes);

impl Default for Ends {
    fn default() -> Self {
        Self {
            written: BytesMut::new(),
            room: FIRST_ROOM,
            read: BytesMut::new(),
            is_over: false,
        }
    }
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what has been written, up to the end of a chunk, and makes room. Whoever calls this
    /// polls what writes, which is not woken.
    pub(super) fn read(&self) -> Result<Came, BadChunk> {
        let mut ends = self.lock();
        let ends = &mut *ends;
        let has_come = !ends.written.is_empty();
        if ends.read.is_empty() {
            ends.read = ends.written.split();
        } else {
            ends.read.extend_from_slice(&ends.written);
            ends.written.clear();
        }
        ends.room = usize::MAX;
        if ends.read.is_empty() {
            return Ok(Came::Nothing);
        }
        let is_more = ends.is_over;
        match next_chunk(&mut ends.read) {
            _ if is_more => Err(()),
            Ok(None) if has_come => Ok(Came::Part),
            Ok(None) => Ok(Came::Nothing),
            Ok(Some(frame)) => {
                ends.room = FIRST_ROOM;
                ends.is_over = frame.is_empty();
                Ok(if ends.is_over {
                    Came::End
                } else {
                    Came::Frame(frame)
                })
            }
            Err(()) => Err(()),
        }
        .map_err(|()| BadChunk(ends.read.split().freeze()))
    }

    /// Whether the last chunk has been read.
    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }
}

/// Takes a whole chunk, if there is one.
fn next_chunk(read: &mut BytesMut) -> Result<Option<Bytes>, ()> {
    // A u64 has 16 digits at most.
    let head = &read[..read.len().min(16 + LINE_END.len())];
    let Some(digits) = head.windows(2).position(|pair| pair == LINE_END) else {
        let is_whole = head.len() == 16 + LINE_END.len();
        return if is_whole { Err(()) } else { Ok(None) };
    };
    let length = std::str::from_utf8(&head[..digits]).map_err(drop)?;
    let size = usize::from_str_radix(length, 16).map_err(drop)?;
    if format!("{size:X}") != length {
        return Err(());
    }
    let start = digits + LINE_END.len();
    let end = start.saturating_add(size);
    let Some(after) = read.get(end..).filter(|after| after.len() >= 2) else {
        return Ok(None);
    };
    if !after.starts_with(LINE_END) {
        return Err(());
    }
    read.advance(start);
    let frame = read.split_to(size).freeze();
    read.advance(LINE_END.len());
    Ok(Some(frame))
}

impl AsyncRead for Wire {
    /// The client says nothing. It leaves when what writes is dropped.
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.lock();
        if ends.room == 0 {
            return Poll::Pending;
        }
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        // The larger half: a write is finished in a few more.
        let taken = (total - total / 2).min(ends.room);
        ends.room -= taken;
        let mut left = taken;
        for buf in bufs {
            let part = &buf[..left.min(buf.len())];
            ends.written.extend_from_slice(part);
            left -= part.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lock().written.is_empty() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl fmt::Display for BadChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this is no chunk: {:?}", self.0)
    }
}

impl std::error::Error for BadChunk {}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(bytes: &[u8]) -> Result<Vec<Bytes>, ()> {
        let mut read = BytesMut::from(bytes);
        let mut chunks = Vec::new();
        while let Some(chunk) = next_chunk(&mut read)? {
            chunks.push(chunk);
        }
        if read.is_empty() { Ok(chunks) } else { Err(()) }
    }

    #[test]
    fn chunks_are_read_strictly() {
        let read = chunks(b"3\r\nabc\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n").unwrap();
        assert_eq!(read, ["abc", "abcdefghijklmnopqrstuvwxyz", ""]);
        for wrong in [
            "03\r\nabc\r\n",
            "+3\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "3;a=b\r\nabc\r\n",
            "a\r\n0123456789\r\n",
            "\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nab\r\n\r\n",
            "00000000000000003\r\nabc\r\n",
            "FFFFFFFFFFFFFFFFF\r\n",
            "3\r\nabc",
        ] {
            assert_eq!(chunks(wrong.as_bytes()), Err(()), "{wrong:?}");
        }
    }
}
