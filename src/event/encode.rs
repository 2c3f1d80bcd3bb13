//! The wire: the only code that writes `data:`.
//!
//! 1. Every function appends whole lines, each ended by one LF.
//! 2. Text goes through [`lines`], so that no CR or LF of a caller reaches the wire as it is.
//! 3. Nothing starts with a caller's byte: a byte order mark at the start of a stream would be
//!    eaten by the client.

use std::time::Duration;

use memchr::{memchr_iter, memchr2};

/// What `retry` may at most say: JavaScript timers hold 31 bits of milliseconds, and a client that
/// is told more waits no time at all.
pub(crate) const MAX_RETRY: Duration = Duration::from_millis(i32::MAX as u64);

/// The room that the data of an event leaves for what may follow: the `id` line of a number and
/// the blank line. With it, neither moves the event.
pub(crate) const ROOM: usize = b"id: 18446744073709551615\n\n".len();

const DATA: &[u8] = b"data: ";

/// How much of a text is searched for breaks before it is copied. The copy then reads what the
/// search has left in the first cache.
const CHUNK: usize = 8 * 1024;

/// Appends one line: a name with its colon and space, and a value. The value has been checked: it
/// is one line.
#[inline]
pub(crate) fn field(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// Appends a `retry` line: whole milliseconds, at most [`MAX_RETRY`].
pub(crate) fn retry(out: &mut Vec<u8>, time: Duration) {
    let millis = time.min(MAX_RETRY).as_millis() as u64;
    field(out, b"retry: ", itoa::Buffer::new().format(millis));
}

/// Appends an `id` line with a number.
pub(crate) fn numbered_id(out: &mut Vec<u8>, number: u64) {
    field(out, b"id: ", itoa::Buffer::new().format(number));
}

/// How many bytes at the start of a text are known to have no break: they end at the first break,
/// or with the first chunk.
#[inline]
pub(crate) fn clean_start(text: &str) -> usize {
    let chunk = &text.as_bytes()[..text.len().min(CHUNK)];
    memchr2(b'\n', b'\r', chunk).unwrap_or(chunk.len())
}

/// How many bytes [`data`] will append, at most; less only where a text has CRLF pairs. Breaks
/// that first come after the first chunk are not foreseen.
#[inline]
pub(crate) fn data_size(text: &str, clean: usize) -> usize {
    let one_line = DATA.len() + text.len() + 1;
    if clean == text.len() || clean == CHUNK {
        return one_line;
    }
    one_line + DATA.len() * count_breaks(&text.as_bytes()[clean..])
}

/// Appends a text as `data` lines. `clean` is what [`clean_start`] says of it.
#[inline]
pub(crate) fn data(out: &mut Vec<u8>, text: &str, clean: usize) {
    if text.is_empty() {
        // Without any `data` line a parser drops the event.
        out.extend_from_slice(b"data:\n");
        return;
    }
    lines(out, DATA, text.as_bytes(), clean);
}

/// Appends a text as comment lines.
pub(crate) fn comment(out: &mut Vec<u8>, text: &str) {
    if text.is_empty() {
        out.extend_from_slice(b":\n");
        return;
    }
    lines(out, b": ", text.as_bytes(), 0);
}

/// Appends a value as `data` lines, serialised straight into the buffer, which keeps no more than
/// [`ROOM`] to spare if it had to grow.
pub(crate) fn json<T>(out: &mut Vec<u8>, value: &T) -> Result<(), serde_json::Error>
where
    T: serde::Serialize + ?Sized,
{
    let capacity = out.capacity();
    out.extend_from_slice(DATA);
    let start = out.len();
    serde_json::to_writer(&mut *out, value)?;
    // JSON escapes CR and LF within strings, and the compact form has none between its tokens;
    // but a `RawValue` is written as it is.
    if memchr2(b'\n', b'\r', &out[start..]).is_some() {
        let text = out.split_off(start);
        out.truncate(start - DATA.len());
        lines(out, DATA, &text, 0);
    } else {
        out.push(b'\n');
    }
    if out.capacity() > capacity {
        out.shrink_to(out.len() + ROOM);
    }
    Ok(())
}

/// Appends each line of a text behind a prefix. Lines end at CR, LF and CRLF, each one break; a
/// break at the end counts, and gives one more empty line. The text has no break before `clean`.
#[inline]
fn lines(out: &mut Vec<u8>, prefix: &[u8], text: &[u8], clean: usize) {
    let (clean, mut rest) = text.split_at(clean);
    out.extend_from_slice(prefix);
    out.extend_from_slice(clean);
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(CHUNK)];
        let Some(line_end) = memchr2(b'\n', b'\r', chunk) else {
            out.extend_from_slice(chunk);
            rest = &rest[chunk.len()..];
            continue;
        };
        if out.capacity() - out.len() < prefix.len() + rest.len() + 1 {
            // The first break that was not foreseen: now it is worth it to count.
            out.reserve_exact(prefix.len() * count_breaks(rest) + rest.len() + 1 + ROOM);
        }
        out.extend_from_slice(&rest[..line_end]);
        out.push(b'\n');
        out.extend_from_slice(prefix);
        let is_crlf = rest[line_end..].starts_with(b"\r\n");
        rest = &rest[line_end + 1 + usize::from(is_crlf)..];
    }
    out.push(b'\n');
}

/// How many breaks a text has, at most: a CRLF counts twice.
fn count_breaks(text: &[u8]) -> usize {
    memchr_iter(b'\n', text).count() + memchr_iter(b'\r', text).count()
}
