//! What stands in a message.

use bytes::Bytes;

use super::api::hash;
use crate::backplane::{
    Record, TopicName,
    envelope::{self, Stored},
};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Record(Record),
    /// A record that cannot be given to anybody, of this topic if that is known.
    Unreadable(Option<TopicName>),
    /// A message of somebody else.
    Foreign,
}

/// How much of a message without a tag of its own goes into the one that it gets.
const HASHED: usize = 4096;

/// What a message holds, and the tag by which it is known: never 0, and the same for all readers.
pub(super) fn find(payload: &Bytes, max_record: usize) -> (u32, Found) {
    let (tag, found) = match envelope::decode(payload) {
        Stored::Record { tag, record } if payload.len() > max_record => {
            (tag, Found::Unreadable(Some(record.topic().clone())))
        }
        Stored::Record { tag, record } => (tag, Found::Record(record)),
        Stored::Unreadable { tag, topic } => (tag, Found::Unreadable(topic)),
        Stored::Foreign => (0, Found::Foreign),
    };
    if tag != 0 {
        return (tag, found);
    }
    let start = &payload[..payload.len().min(HASHED)];
    let hash = hash(start.iter().copied().chain(payload.len().to_be_bytes()));
    ((hash >> 32) as u32 | 1, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_a_tag() {
        let record = Record::new("a".try_into().unwrap(), &b"data: x\n"[..]);
        let ours = Bytes::from(envelope::encode(7, &record));
        let size = ours.len();
        assert_eq!(find(&ours, size), (7, Found::Record(record)));
        let topic = Some("a".try_into().unwrap());
        assert_eq!(find(&ours, size - 1), (7, Found::Unreadable(topic)));

        let others = ["", "x", "y"].map(|text| find(&text.into(), 8));
        for (tag, found) in &others {
            assert!(*tag != 0 && *found == Found::Foreign);
        }
        assert!(others[0].0 != others[1].0 && others[1].0 != others[2].0);
    }
}
