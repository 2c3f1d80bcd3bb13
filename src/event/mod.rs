//! Events, and the wire that carries them.
//!
//! An [`Event`] is checked and encoded when it is built: what cannot be sent is an error there,
//! with the field named, and sending it copies nothing. The rules are those of the [HTML
//! standard], section 9.2, and of what its clients really do:
//!
//! - Data and comments may have any number of lines. They are split at CR, LF and CRLF, each one
//!   break, and arrive joined by LF; nothing else is a break (not U+2028, U+2029, U+0085, VT, FF).
//!   A break at the end counts. Empty data arrives as an event with empty data.
//! - A type and an id are one line. A CR or LF in one (or a NUL in an id) is an error: nothing is
//!   stripped, and nothing panics.
//! - An id rides on an event with data: many clients ignore one that comes alone.
//!
//! [`Decoder`] is the other direction: a conforming, incremental parser, for tests and clients.
//!
//! [HTML standard]: https://html.spec.whatwg.org/multipage/server-sent-events.html#server-sent-events

pub(crate) mod boundary;
pub(crate) mod check;
pub(crate) mod encode;

mod decode;
mod error;
mod field;

pub use decode::{Decoded, Decoder, EventTooLong, MessageEvent};
pub use error::{EventError, Field};
pub use field::{EventId, EventType};

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::{Serialize, Serializer, ser::SerializeStruct};

/// One event, ready for the wire.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_sse::Event;
///
/// # fn main() -> Result<(), tower_sse::event::EventError> {
/// let event = Event::new("greeting", "hello,\nworld")?
///     .id("7")?
///     .retry(Duration::from_secs(5));
///
/// assert_eq!(
///     event.into_bytes(),
///     "event: greeting\ndata: hello,\ndata: world\nid: 7\nretry: 5000\n\n",
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "an event does nothing until it is sent"]
pub struct Event {
    /// Whole lines, without the blank line that ends the event.
    lines: Vec<u8>,
    has_data: bool,
    has_id: bool,
    has_retry: bool,
}

impl Event {
    /// An event without a type of its own: it arrives as `message`.
    ///
    /// Costs one allocation, of the event's size.
    #[inline]
    pub fn message(text: impl AsRef<str>) -> Self {
        Self::with_type("", text.as_ref())
    }

    /// An event with a type and a text.
    ///
    /// Costs one allocation, of the event's size.
    ///
    /// # Errors
    ///
    /// If the type contains a CR or an LF.
    #[inline]
    pub fn new<'a, T>(event_type: T, text: impl AsRef<str>) -> Result<Self, EventError>
    where
        T: TryInto<EventType<'a>>,
        T::Error: Into<EventError>,
    {
        let event_type = event_type.try_into().map_err(Into::into)?;
        Ok(Self::with_type(event_type.as_str(), text.as_ref()))
    }

    /// An event with a type and a value, serialised as compact JSON.
    ///
    /// # Errors
    ///
    /// If the type contains a CR or an LF, or if `serde_json` cannot serialise the value (a map
    /// whose keys are not strings, say).
    pub fn json<'a, T, V>(event_type: T, value: &V) -> Result<Self, EventError>
    where
        T: TryInto<EventType<'a>>,
        T::Error: Into<EventError>,
        V: Serialize + ?Sized,
    {
        let event_type = event_type.try_into().map_err(Into::into)?;
        let mut lines = Vec::with_capacity(event_type.as_str().len() + 120);
        Self::write_type(&mut lines, event_type.as_str());
        encode::json(&mut lines, value).map_err(EventError::json)?;
        Ok(Self::from_lines(lines, true))
    }

    /// Returns an event of the legacy wire format: its type is always `event`, and its data is
    /// `{"eventName": name, "eventPayload": payload}`.
    ///
    /// This is the wire format of the Node class from which this crate began, for clients that
    /// expect it; [`SseLayer::numbered`](crate::SseLayer::numbered) is its other half. New
    /// programs use [`json`](Self::json), which puts the name into the event's type. The name is
    /// encoded as JSON, so it may be any text.
    ///
    /// # Errors
    ///
    /// Returns [`EventError`] if `serde_json` cannot serialise the payload.
    pub fn envelope<V>(name: &str, payload: &V) -> Result<Self, EventError>
    where
        V: Serialize + ?Sized,
    {
        let envelope = Envelope { name, payload };
        Self::json(EventType::from_static("event"), &envelope)
    }

    /// A comment: clients skip it. It keeps proxies and people who watch the wire informed.
    ///
    /// On the wire it is comment lines alone, without a blank line after them, since that makes
    /// several clients dispatch an empty event.
    pub fn comment(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let mut lines = Vec::with_capacity(text.len() + 4);
        encode::comment(&mut lines, text);
        Self::from_lines(lines, false)
    }

    /// Gives the event an id. The last one given counts.
    ///
    /// # Errors
    ///
    /// If the id contains a CR, an LF or a NUL, or if the event is a comment.
    #[inline]
    pub fn id<'a, T>(mut self, id: T) -> Result<Self, EventError>
    where
        T: TryInto<EventId<'a>>,
        T::Error: Into<EventError>,
    {
        let id = id.try_into().map_err(Into::into)?;
        if !self.has_data {
            return Err(EventError::id_without_data());
        }
        encode::field(&mut self.lines, b"id: ", id.as_str());
        self.has_id = true;
        Ok(self)
    }

    /// Tells the client how long to wait before it reconnects, from now on: in whole
    /// milliseconds, at most 2³¹ − 1 of them (24 days), since JavaScript timers wrap beyond.
    ///
    /// Put it on an event with data: some clients make an empty event of one that comes alone.
    pub fn retry(mut self, time: Duration) -> Self {
        encode::retry(&mut self.lines, time);
        self.has_retry = true;
        self
    }

    /// The event as it stands on the wire.
    #[inline]
    pub fn into_bytes(self) -> Bytes {
        let mut frame = self.into_frame(None);
        // `Bytes` makes a second allocation for a vector with room to spare. To give the room back
        // costs less, since it is done in place.
        frame.shrink_to_fit();
        frame.into()
    }

    /// The event as it stands on the wire, with the number of a numbered connection before it.
    #[inline]
    pub(crate) fn into_frame(self, number: Option<u64>) -> Vec<u8> {
        let takes_blank_line = self.takes_blank_line();
        let mut frame = self.lines;
        if let Some(number) = number {
            let mut with_id = Vec::with_capacity(frame.len() + 26);
            encode::numbered_id(&mut with_id, number);
            with_id.append(&mut frame);
            frame = with_id;
        }
        if takes_blank_line {
            frame.push(b'\n');
        }
        frame
    }

    /// The event's lines, without the blank line that ends it.
    pub(crate) fn into_lines(self) -> Vec<u8> {
        self.lines
    }

    /// The event's type; empty where it has none.
    pub(crate) fn event_type(&self) -> &str {
        let line = self.lines.strip_prefix(b"event: ").unwrap_or_default();
        let end = memchr::memchr(b'\n', line).unwrap_or(0);
        std::str::from_utf8(&line[..end]).unwrap_or_default()
    }

    /// Gives the event an id that is known to be one.
    pub(crate) fn with_checked_id(mut self, id: &str) -> Self {
        encode::field(&mut self.lines, b"id: ", id);
        self.has_id = true;
        self
    }

    /// How many bytes the event takes on the wire, without a number.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.lines.len() + usize::from(self.takes_blank_line())
    }

    /// Whether a client dispatches it, rather than skip it.
    pub(crate) fn has_data(&self) -> bool {
        self.has_data
    }

    /// Whether it has an id of its own.
    pub(crate) fn has_id(&self) -> bool {
        self.has_id
    }

    /// Whether it sets the reconnection time.
    pub(crate) fn has_retry(&self) -> bool {
        self.has_retry
    }

    /// Comment lines alone take no blank line: it makes several clients (httpx-sse, sseclient,
    /// fetch-event-source) dispatch an empty event.
    #[inline]
    fn takes_blank_line(&self) -> bool {
        self.has_data || self.has_retry
    }

    #[inline]
    fn from_lines(lines: Vec<u8>, has_data: bool) -> Self {
        Self {
            lines,
            has_data,
            has_id: false,
            has_retry: false,
        }
    }

    #[inline]
    pub(crate) fn with_type(event_type: &str, text: &str) -> Self {
        Self::from_lines(Self::text_lines(event_type, text), true)
    }

    fn text_lines(event_type: &str, text: &str) -> Vec<u8> {
        let clean = encode::clean_start(text);
        let type_size = event_type.len() + 8;
        let size = type_size + encode::data_size(text, clean) + encode::ROOM;
        let mut lines = Vec::with_capacity(size);
        Self::write_type(&mut lines, event_type);
        encode::data(&mut lines, text, clean);
        lines
    }

    fn write_type(lines: &mut Vec<u8>, event_type: &str) {
        if !event_type.is_empty() {
            encode::field(lines, b"event: ", event_type);
        }
    }
}

/// By hand: a derive would make every build of the crate wait for `serde_derive`.
struct Envelope<'a, V: ?Sized> {
    name: &'a str,
    payload: &'a V,
}

impl<V: Serialize + ?Sized> Serialize for Envelope<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Envelope", 2)?;
        object.serialize_field("eventName", self.name)?;
        object.serialize_field("eventPayload", self.payload)?;
        object.end()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Event")
            .field(&String::from_utf8_lossy(&self.lines))
            .finish()
    }
}
