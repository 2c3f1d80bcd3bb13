//! The chunks in which HTTP/1.1 carries frames (RFC 9112, section 7.1).

/// The line that begins a chunk, at its longest: a `usize` has 16 digits at most.
pub(super) const MAX_HEAD: usize = 18;

/// What ends a chunk.
pub(super) const END: &[u8] = b"\r\n";

/// The chunk that ends a body.
pub(super) const LAST: &[u8] = b"0\r\n\r\n";

/// What ends the chunk of a last frame, and the body.
pub(super) const END_AND_LAST: &[u8] = b"\r\n0\r\n\r\n";

/// Writes the line that begins a chunk of this size to the end of a buffer that has room for it, and
/// gives it. The digits are capitals, as hyper's are.
pub(super) fn write_head(buffer: &mut [u8], size: usize) -> &mut [u8] {
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
        assert_eq!(END_AND_LAST, [END, LAST].concat());
        assert_eq!(LAST, [write_head(&mut [0; MAX_HEAD], 0), END].concat());
    }
}
