//! What can be wrong with an event.

use std::{error::Error, fmt};

/// The part of an event that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Field {
    /// The event's type (`event:` on the wire).
    EventType,
    /// The event's id (`id:` on the wire).
    Id,
    /// The event's data (`data:` on the wire): its value could not be serialised.
    Data,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EventType => "event type",
            Self::Id => "event id",
            Self::Data => "event data",
        })
    }
}

/// An event could not be built: a field has a character that cannot be sent in it, or a value
/// could not be serialised.
///
/// [`field`](Self::field) tells which field it was. Where `serde_json` refused a value, its error
/// is the [`source`](Error::source).
#[derive(Debug)]
pub struct EventError {
    kind: EventErrorCause,
}

#[derive(Debug)]
enum EventErrorCause {
    Forbidden { field: Field, byte: u8, at: usize },
    IdWithoutData,
    Json(serde_json::Error),
}

impl EventError {
    pub(super) fn forbidden(field: Field, byte: u8, at: usize) -> Self {
        Self {
            kind: EventErrorCause::Forbidden { field, byte, at },
        }
    }

    pub(super) fn id_without_data() -> Self {
        Self {
            kind: EventErrorCause::IdWithoutData,
        }
    }

    pub(super) fn json(error: serde_json::Error) -> Self {
        Self {
            kind: EventErrorCause::Json(error),
        }
    }

    /// The field that was refused.
    pub fn field(&self) -> Field {
        match self.kind {
            EventErrorCause::Forbidden { field, .. } => field,
            EventErrorCause::IdWithoutData => Field::Id,
            EventErrorCause::Json(_) => Field::Data,
        }
    }
}

impl fmt::Display for EventError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            EventErrorCause::Forbidden { field, byte, at } => {
                let name = match byte {
                    b'\r' => "carriage return",
                    b'\n' => "line feed",
                    _ => "NUL",
                };
                write!(f, "{field} contains a {name} at byte {at}")
            }
            EventErrorCause::IdWithoutData => {
                f.write_str("event id on a comment: an id needs data to ride on")
            }
            EventErrorCause::Json(_) => f.write_str("event data could not be serialised as JSON"),
        }
    }
}

impl Error for EventError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            EventErrorCause::Json(error) => Some(error),
            _ => None,
        }
    }
}
