//! Frames as HTTP/1.1 carries them: each in one chunk (RFC 9112, section 7.1).
//!
//! A frame that goes to many clients is put into its chunk once. Who writes to sockets takes the
//! whole, in one piece; a server that frames what it is given takes the frame inside.

use bytes::{Buf, Bytes};

/// The line that begins a chunk, at its longest: a `usize` has 16 digits at most.
pub(crate) const MAX_HEAD: usize = 18;

/// What ends a chunk.
pub(crate) const END: &[u8] = b"\r\n";

/// The chunk that ends a body.
#[cfg(any(feature = "serve", test))]
pub(crate) const LAST: &[u8] = b"0\r\n\r\n";

/// A frame in its chunk. The default has neither.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunk {
    whole: Bytes,
    /// How long its first line is.
    head: u8,
}

impl Chunk {
    /// A chunk of a frame of just this size, which `write` appends.
    pub(crate) fn build(size: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut head = [0; MAX_HEAD];
        let head = write_head(&mut head, size);
        // Exactly: a buffer with room to spare costs an allocation more.
        let mut whole = Vec::with_capacity(head.len() + size + END.len());
        whole.extend_from_slice(head);
        write(&mut whole);
        debug_assert_eq!(whole.len(), head.len() + size, "the size of the frame");
        whole.extend_from_slice(END);
        Self {
            head: head.len() as u8,
            whole: whole.into(),
        }
    }

    /// A chunk with a copy of this frame.
    #[cfg(any(feature = "serve", test))]
    pub(crate) fn of(frame: &[u8]) -> Self {
        Self::build(frame.len(), |whole| whole.extend_from_slice(frame))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    /// The size of the frame.
    pub(crate) fn size(&self) -> usize {
        self.as_frame().len()
    }

    pub(crate) fn as_frame(&self) -> &[u8] {
        let end = self.whole.len().saturating_sub(END.len());
        &self.whole[self.head.into()..end]
    }

    /// The frame alone, without a copy.
    pub(crate) fn into_frame(self) -> Bytes {
        let mut frame = self.whole;
        frame.truncate(frame.len().saturating_sub(END.len()));
        frame.advance(self.head.into());
        frame
    }

    #[cfg(any(feature = "serve", test))]
    pub(crate) fn into_whole(self) -> Bytes {
        self.whole
    }
}

/// Writes the line that begins a chunk of this size to the end of a buffer that has room for it, and
/// gives it. The digits are capitals, as hyper's are.
pub(crate) fn write_head(buffer: &mut [u8], size: usize) -> &mut [u8] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut at = buffer.len() - END.len();
    buffer[at..].copy_from_slice(END);
    let mut left = size;
    loop {
        at -= 1;
        buffer[at] = DIGITS[left % 16];
        left /= 16;
        if left == 0 {
            return &mut buffer[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_size_in_hexadecimal() {
        for size in [0, 1, 9, 10, 15, 16, 255, 256, 32 * 1024, usize::MAX] {
            let mut buffer = [0; MAX_HEAD];
            let head = write_head(&mut buffer, size);
            assert_eq!(head, format!("{size:X}\r\n").as_bytes());
        }
        assert_eq!(LAST, [write_head(&mut [0; MAX_HEAD], 0), END].concat());
    }

    #[test]
    fn chunk_returns_its_original_frame() {
        for size in [1, 15, 16, 5000] {
            let frame = vec![b'x'; size];
            let chunk = Chunk::of(&frame);
            assert_eq!((chunk.size(), chunk.as_frame()), (size, &frame[..]));
            let whole = [format!("{size:X}\r\n").as_bytes(), &frame, b"\r\n"].concat();
            assert_eq!(chunk.clone().into_whole(), whole);
            assert_eq!(chunk.into_frame(), frame);
        }
    }

    #[test]
    fn default_chunk_is_empty() {
        let none = Chunk::default();
        assert!(none.is_empty() && none.size() == 0);
        assert!(none.clone().into_frame().is_empty() && none.into_whole().is_empty());
    }
}
