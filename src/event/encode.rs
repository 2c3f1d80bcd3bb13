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

const DATA: &[u8] = b"data: ";

/// Appends one `name: value` line. The value has been checked: it is one line.
#[inline]
pub(crate) fn field(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// Appends a `retry` line: whole milliseconds, at most [`MAX_RETRY`].
pub(crate) fn retry(out: &mut Vec<u8>, time: Duration) {
    let millis = time.min(MAX_RETRY).as_millis() as u64;
    field(out, b"retry", itoa::Buffer::new().format(millis));
}

/// Appends an `id` line with a number.
pub(crate) fn numbered_id(out: &mut Vec<u8>, number: u64) {
    field(out, b"id", itoa::Buffer::new().format(number));
}

/// How many bytes [`data`] will append, give or take: exact unless the text has CRLF pairs.
#[inline]
pub(crate) fn data_size(text: &str, first_break: Option<usize>) -> usize {
    let breaks = match first_break {
        None => 0,
        Some(from) => {
            let rest = &text.as_bytes()[from..];
            memchr_iter(b'\n', rest).count() + memchr_iter(b'\r', rest).count()
        }
    };
    (breaks + 1) * (DATA.len() + 1) + text.len() - breaks
}

/// Where the first line of a text ends, if it is not the only one.
#[inline]
pub(crate) fn first_break(text: &str) -> Option<usize> {
    memchr2(b'\n', b'\r', text.as_bytes())
}

/// Appends a text as `data` lines; `first_break` is what [`first_break`] says of it.
#[inline]
pub(crate) fn data(out: &mut Vec<u8>, text: &str, first_break: Option<usize>) {
    if text.is_empty() {
        // Without any `data` line a parser drops the event.
        out.extend_from_slice(b"data:\n");
        return;
    }
    let Some(first_break) = first_break else {
        out.extend_from_slice(DATA);
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
        return;
    };
    lines(out, DATA, text.as_bytes(), first_break);
}

/// Appends a text as comment lines.
pub(crate) fn comment(out: &mut Vec<u8>, text: &str) {
    if text.is_empty() {
        out.extend_from_slice(b":\n");
        return;
    }
    let first_break = first_break(text).unwrap_or(text.len());
    lines(out, b": ", text.as_bytes(), first_break);
}

/// Appends a value as `data` lines, serialised straight into the buffer.
pub(crate) fn json<T>(out: &mut Vec<u8>, value: &T) -> Result<(), serde_json::Error>
where
    T: serde::Serialize + ?Sized,
{
    out.extend_from_slice(DATA);
    let start = out.len();
    serde_json::to_writer(&mut *out, value)?;
    // JSON escapes CR and LF within strings, and the compact form has none between its tokens;
    // but a `RawValue` is written as it is.
    if let Some(at) = memchr2(b'\n', b'\r', &out[start..]) {
        let text = out.split_off(start);
        out.truncate(start - DATA.len());
        lines(out, DATA, &text, at);
    } else {
        out.push(b'\n');
    }
    Ok(())
}

/// Appends each line of a text behind a prefix. Lines end at CR, LF and CRLF, each one break; a
/// break at the end counts, and gives one more empty line.
fn lines(out: &mut Vec<u8>, prefix: &[u8], text: &[u8], first_break: usize) {
    let mut rest = text;
    let mut found = Some(first_break).filter(|at| *at < text.len());
    loop {
        let line_end = found.unwrap_or(rest.len());
        out.extend_from_slice(prefix);
        out.extend_from_slice(&rest[..line_end]);
        out.push(b'\n');
        if found.is_none() {
            return;
        }
        let is_crlf = rest[line_end..].starts_with(b"\r\n");
        rest = &rest[line_end + 1 + usize::from(is_crlf)..];
        found = memchr2(b'\n', b'\r', rest);
    }
}
