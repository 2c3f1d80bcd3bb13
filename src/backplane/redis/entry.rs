//! Entries of the stream, as Redis gives them.

use bytes::Bytes;
use redis::Value;

use super::connection::bytes_of;
use crate::log::Epoch;

/// An id: milliseconds and sequence, to Redis. To us the first is the offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(pub(super) u64, pub(super) u64);

impl Id {
    fn parse(text: &[u8]) -> Option<Self> {
        let (offset, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(offset.parse().ok()?, sequence.parse().ok()?))
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct StreamEntry {
    pub(super) id: Id,
    /// The record as we store it, where there is one.
    pub(super) envelope: Bytes,
    pub(super) previous: Option<Predecessor>,
}

/// The record before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Predecessor {
    pub(super) epoch: Epoch,
    pub(super) tag: u32,
    pub(super) offset: u64,
}

impl Predecessor {
    /// Reads the link of the entry with this id. One that was written for another is none.
    fn parse(bytes: &[u8], id: Id) -> Option<Self> {
        let (epoch, rest) = bytes.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        let offsets = Id::parse(rest).filter(|offsets| Id(offsets.1, 0) == id && offsets.0 < id.0);
        Some(Self {
            epoch: Epoch::new(u64::from_be_bytes(*epoch)),
            tag: u32::from_be_bytes(*tag),
            offset: offsets?.0,
        })
    }
}

/// The entries that `XREAD` gives of one stream. None: that is no answer to `XREAD`.
pub(super) fn of_xread(reply: Value) -> Option<Vec<StreamEntry>> {
    match reply {
        Value::Nil => Some(Vec::new()),
        Value::Array(streams) => {
            let Some(Value::Array(stream)) = streams.into_iter().next() else {
                return None;
            };
            of_xrange(stream.into_iter().nth(1)?)
        }
        // RESP3.
        Value::Map(streams) => of_xrange(streams.into_iter().next()?.1),
        _ => None,
    }
}

/// The entries that `XRANGE` gives.
pub(super) fn of_xrange(reply: Value) -> Option<Vec<StreamEntry>> {
    let Value::Array(entries) = reply else {
        return None;
    };
    entries.into_iter().map(entry).collect()
}

fn entry(value: Value) -> Option<StreamEntry> {
    let Value::Array(parts) = value else {
        return None;
    };
    let mut parts = parts.into_iter();
    let id = Id::parse(&bytes_of(parts.next()?)?)?;
    let mut entry = StreamEntry {
        id,
        envelope: Bytes::new(),
        previous: None,
    };
    // An entry that was deleted while it was read has none.
    let Some(Value::Array(fields)) = parts.next() else {
        return Some(entry);
    };
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match (name, bytes_of(value)) {
            (Value::BulkString(name), Some(value)) if name == b"r" => entry.envelope = value.into(),
            (Value::BulkString(name), Some(value)) if name == b"p" => {
                entry.previous = Predecessor::parse(&value, id);
            }
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_ids_and_links_are_rejected() {
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "a-0",
            "1-0-0",
            "18446744073709551616-0",
        ] {
            assert_eq!(Id::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Id::parse(b"18446744073709551615-1"), Some(Id(u64::MAX, 1)));
        let head = b"\0\0\0\0\0\0\0\x07\0\0\0\x02";
        let parse = |rest: &[u8], id| Predecessor::parse(&[head, rest].concat(), id);
        for rest in [
            &b""[..],
            b"42",
            b"42-",
            b"42-44",
            b"43-43",
            b"44-43",
            b"\xff-43",
        ] {
            assert_eq!(parse(rest, Id(43, 0)), None, "{rest:?}");
        }
        assert_eq!(parse(b"42-43", Id(43, 1)), None);
        assert_eq!(Predecessor::parse(&head[..11], Id(43, 0)), None);
        let previous = parse(b"42-43", Id(43, 0)).unwrap();
        assert_eq!(
            (previous.epoch, previous.tag, previous.offset),
            (Epoch::new(7), 2, 42)
        );
    }

    #[test]
    fn reply_of_unexpected_shape_is_rejected() {
        let text = |text: &str| Value::BulkString(text.into());
        let array = Value::Array;
        for reply in [
            Value::Okay,
            Value::Int(1),
            array(vec![]),
            array(vec![text("key")]),
            array(vec![array(vec![text("key"), text("no entries")])]),
            array(vec![array(vec![
                text("key"),
                array(vec![text("no entry")]),
            ])]),
            array(vec![array(vec![
                text("key"),
                array(vec![array(vec![text("no id"), array(vec![])])]),
            ])]),
        ] {
            assert_eq!(of_xread(reply.clone()), None, "{reply:?}");
        }
        assert_eq!(of_xread(Value::Nil), Some(vec![]));
    }
}
