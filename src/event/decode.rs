//! The parser of the HTML standard, section 9.2.6, fed piece by piece.

use std::{collections::VecDeque, error::Error, fmt, mem, time::Duration};

use memchr::memchr2;

/// An event as a client sees it: the fields of the DOM's `MessageEvent`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct MessageEvent {
    /// The event's type; `message` where the stream named none.
    pub event_type: String,
    /// The event's data, its lines joined by LF.
    pub data: String,
    /// The client's place after this event: the last id that the stream gave, or nothing.
    pub last_event_id: String,
}

/// What a [`Decoder`] found in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Decoded {
    /// An event that a client dispatches.
    Event(MessageEvent),
    /// One comment line, without its colon and without one space after it.
    Comment(String),
    /// A new reconnection time.
    Retry(Duration),
}

/// A conforming, incremental parser of event streams.
///
/// Feed it bytes as they come, cut anywhere, and take what it found. Invalid UTF-8 becomes U+FFFD,
/// a byte order mark at the start is skipped, an event that is not ended by a blank line is never
/// given out: all as the [HTML standard] has it, section 9.2.6.
///
/// [HTML standard]: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
///
/// # Example
///
/// ```
/// use tower_sse::event::{Decoded, Decoder};
///
/// let mut decoder = Decoder::new();
/// decoder.feed(b"event: tick\nda")?;
/// assert_eq!(decoder.next(), None);
///
/// decoder.feed(b"ta: 1\n\n")?;
/// let Some(Decoded::Event(event)) = decoder.next() else { panic!() };
/// assert_eq!((event.event_type.as_str(), event.data.as_str()), ("tick", "1"));
/// # Ok::<(), tower_sse::event::EventTooLong>(())
/// ```
#[derive(Clone, Debug)]
pub struct Decoder {
    /// The start of a line whose end has not come yet.
    partial: Vec<u8>,
    /// The last piece ended with CR: an LF at the start of the next one belongs to it.
    skip_lf: bool,
    /// Nothing has been parsed yet: a byte order mark may come.
    at_start: bool,
    event_type: String,
    data: String,
    /// The id of the event that is being read; it persists from event to event.
    id: String,
    last_event_id: String,
    found: VecDeque<Decoded>,
    limit: usize,
}

/// An event, or one line of it, is longer than the [`Decoder`]'s limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTooLong {
    limit: usize,
}

impl Decoder {
    /// A parser that takes events of up to 64 MiB.
    pub fn new() -> Self {
        Self::with_limit(64 << 20)
    }

    /// A parser that takes events of up to `limit` bytes: counted are the data so far, and the
    /// line that is being read with the name of its field.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            partial: Vec::new(),
            skip_lf: false,
            at_start: true,
            event_type: String::new(),
            data: String::new(),
            id: String::new(),
            last_event_id: String::new(),
            found: VecDeque::new(),
            limit,
        }
    }

    /// Takes the next piece of the stream. What it completes waits to be taken from the iterator.
    ///
    /// # Errors
    ///
    /// If an event is longer than the limit. The rest of the stream cannot be understood then.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), EventTooLong> {
        if !piece.is_empty() && mem::take(&mut self.skip_lf) {
            piece = piece.strip_prefix(b"\n").unwrap_or(piece);
        }
        while let Some(at) = memchr2(b'\n', b'\r', piece) {
            let (line, rest) = piece.split_at(at);
            self.check_limit(line)?;
            if self.partial.is_empty() {
                self.line(line);
            } else {
                self.partial.extend_from_slice(line);
                let line = mem::take(&mut self.partial);
                self.line(&line);
            }
            piece = match rest {
                [b'\r', b'\n', rest @ ..] => rest,
                [b'\r'] => {
                    self.skip_lf = true;
                    &[]
                }
                rest => &rest[1..],
            };
        }
        self.check_limit(piece)?;
        self.partial.extend_from_slice(piece);
        Ok(())
    }

    /// The client's place: what it would send as `Last-Event-ID` if the stream ended now.
    ///
    /// It moves at the blank line that ends an event, with or without data.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// Checks before anything is kept, so that it makes no difference where the stream was cut.
    fn check_limit(&self, more: &[u8]) -> Result<(), EventTooLong> {
        if self.data.len() + self.partial.len() + more.len() > self.limit {
            return Err(EventTooLong { limit: self.limit });
        }
        Ok(())
    }

    fn line(&mut self, mut line: &[u8]) {
        if mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => self.found.push_back(Decoded::Comment(value.to_owned())),
            "event" => value.clone_into(&mut self.event_type),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                let millis = value.parse().unwrap_or(u64::MAX);
                self.found
                    .push_back(Decoded::Retry(Duration::from_millis(millis)));
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let mut event_type = mem::take(&mut self.event_type);
        self.id.clone_into(&mut self.last_event_id);
        if self.data.is_empty() {
            return;
        }
        let mut data = mem::take(&mut self.data);
        data.pop();
        if event_type.is_empty() {
            "message".clone_into(&mut event_type);
        }
        self.found.push_back(Decoded::Event(MessageEvent {
            event_type,
            data,
            last_event_id: self.id.clone(),
        }));
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives what has been found so far. It may give more after the next [`feed`](Decoder::feed).
impl Iterator for Decoder {
    type Item = Decoded;

    fn next(&mut self) -> Option<Decoded> {
        self.found.pop_front()
    }
}

impl fmt::Display for EventTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event is longer than the limit of {} bytes", self.limit)
    }
}

impl Error for EventTooLong {}
