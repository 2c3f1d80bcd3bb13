//! One-line field values, checked once at the edge.

use std::{borrow::Cow, convert::Infallible, fmt};

use super::error::{EventError, Field};

/// The type of an event: what a page names in `addEventListener`.
///
/// A type is one line of text. CR and LF would end its line on the wire and let the rest of the
/// text pose as other fields, so a text that has one is refused. Everything else, a leading space
/// too, arrives at the client as it was given.
///
/// An empty type means `message`, as in the [HTML standard] (section 9.2.6). `open` and `error`
/// are legal, but land in the handlers that an `EventSource` also calls for its own state changes.
///
/// [HTML standard]: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
///
/// # Example
///
/// ```
/// use tower_sse::event::EventType;
///
/// const PLACED: EventType<'static> = EventType::from_static("placed");
///
/// let at_run_time = String::from("placed");
/// assert_eq!(EventType::try_from(at_run_time.as_str()).unwrap(), PLACED);
/// assert!(EventType::try_from("two\nlines").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventType<'a>(Cow<'a, str>);

/// The id of an event: what a client that comes back sends as `Last-Event-ID`.
///
/// An id is one line of text without NUL: a parser has to ignore an `id` line with a NUL in it,
/// and the client's place would silently stay where it was. An empty id is legal and resets the
/// client's place: it then comes back without a `Last-Event-ID`.
///
/// Prefer visible ASCII: the id travels back in a request header, and some clients cannot put
/// other characters there.
///
/// # Example
///
/// ```
/// use tower_sse::event::EventId;
///
/// assert_eq!(EventId::from(7_u64).as_str(), "7");
/// assert!(EventId::try_from("a\0b").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId<'a>(Cow<'a, str>);

#[inline]
const fn position_of_any(text: &str, needles: &[u8]) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let mut needle = 0;
        while needle < needles.len() {
            if bytes[at] == needles[needle] {
                return Some(at);
            }
            needle += 1;
        }
        at += 1;
    }
    None
}

macro_rules! one_line {
    ($name:ident, $field:expr, $forbidden:expr, $panics:literal) => {
        impl $name<'static> {
            /// Makes a value from a literal, in a constant too.
            ///
            /// # Panics
            ///
            #[doc = $panics]
            /// In a constant, that is an error at compile time. Use `try_from` for text that is
            /// not known before run time.
            pub const fn from_static(text: &'static str) -> Self {
                assert!(position_of_any(text, $forbidden).is_none(), $panics);
                Self(Cow::Borrowed(text))
            }
        }

        impl<'a> $name<'a> {
            /// The text, as it was given.
            #[inline]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same value, with a text of its own.
            pub fn into_owned(self) -> $name<'static> {
                $name(Cow::Owned(self.0.into_owned()))
            }

            #[inline]
            fn check(text: Cow<'a, str>) -> Result<Self, EventError> {
                // Short texts are the rule: a plain loop beats setting up a vector search.
                match position_of_any(&text, $forbidden) {
                    None => Ok(Self(text)),
                    Some(at) => Err(EventError::forbidden($field, text.as_bytes()[at], at)),
                }
            }
        }

        impl<'a> TryFrom<&'a str> for $name<'a> {
            type Error = EventError;

            #[inline]
            fn try_from(text: &'a str) -> Result<Self, EventError> {
                Self::check(Cow::Borrowed(text))
            }
        }

        impl<'a> TryFrom<&'a String> for $name<'a> {
            type Error = EventError;

            fn try_from(text: &'a String) -> Result<Self, EventError> {
                Self::check(Cow::Borrowed(text))
            }
        }

        impl TryFrom<String> for $name<'static> {
            type Error = EventError;

            fn try_from(text: String) -> Result<Self, EventError> {
                Self::check(Cow::Owned(text))
            }
        }

        impl<'a> From<&'a $name<'_>> for $name<'a> {
            fn from(value: &'a $name<'_>) -> Self {
                Self(Cow::Borrowed(&value.0))
            }
        }

        impl AsRef<str> for $name<'_> {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialEq<str> for $name<'_> {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name<'_> {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }
    };
}

one_line!(
    EventType,
    Field::EventType,
    b"\r\n",
    "If the text contains a CR or an LF."
);
one_line!(
    EventId,
    Field::Id,
    b"\r\n\0",
    "If the text contains a CR, an LF or a NUL."
);

macro_rules! id_from_integer {
    ($($integer:ty),*) => {$(
        impl From<$integer> for EventId<'static> {
            fn from(number: $integer) -> Self {
                Self(Cow::Owned(itoa::Buffer::new().format(number).to_owned()))
            }
        }
    )*};
}

id_from_integer!(
    u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize
);

impl From<Infallible> for EventError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
