//! How a record is stored in a log that other programs, and other versions of this one, may read
//! and write.
//!
//! ```text
//! 0     version            1
//! 1     "sse"              with the version, tells our records from others'
//! 4     tag                4 bytes, big-endian
//! 8     length of topic    2 bytes, big-endian
//! 10    topic              UTF-8
//! ..    lines              to the end
//! ```
//!
//! Everything up to the topic stays where it is in all versions, so that a node which does not
//! understand a record can still say whose it is.

use bytes::Bytes;

use super::{Record, TopicName};

const VERSION: u8 = 1;

const MAGIC: &[u8; 3] = b"sse";

/// Where the topic begins.
const HEAD: usize = 10;

/// What was found in a log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Record {
        tag: u32,
        record: Record,
    },
    /// One of ours, of a later version or damaged. The tag is 0, and there is no topic, where they
    /// cannot be read.
    Unreadable {
        tag: u32,
        topic: Option<TopicName>,
    },
    /// Written by someone else.
    Foreign,
}

/// How many bytes [`encode`] gives.
pub(super) fn size(record: &Record) -> usize {
    HEAD + record.topic().as_str().len() + record.lines().len()
}

pub(super) fn encode(tag: u32, record: &Record) -> Vec<u8> {
    let topic = record.topic().as_str().as_bytes();
    // A topic's name has at most 256 bytes.
    let len = u16::try_from(topic.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(size(record));
    bytes.push(VERSION);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&tag.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(topic);
    bytes.extend_from_slice(record.lines());
    bytes
}

/// Reads what was stored. Any bytes may stand there.
pub(super) fn decode(bytes: &Bytes) -> Stored {
    let Some((version, rest)) = bytes.split_first() else {
        return Stored::Foreign;
    };
    let Some(rest) = rest.strip_prefix(MAGIC) else {
        return Stored::Foreign;
    };
    let tag = rest.first_chunk().map_or(0, |tag| u32::from_be_bytes(*tag));
    match (*version, topic(bytes)) {
        (VERSION, Some((topic, end))) => Stored::Record {
            tag,
            record: Record::new(topic, bytes.slice(end..)),
        },
        (_, topic) => Stored::Unreadable {
            tag,
            topic: topic.map(|(topic, _)| topic),
        },
    }
}

/// The topic, and where it ends.
fn topic(bytes: &[u8]) -> Option<(TopicName, usize)> {
    let len = bytes.get(HEAD - 2..)?.first_chunk()?;
    let end = HEAD + usize::from(u16::from_be_bytes(*len));
    let topic = std::str::from_utf8(bytes.get(HEAD..end)?).ok()?;
    Some((topic.try_into().ok()?, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(topic: &str, lines: &[u8]) -> Record {
        Record::new(topic.try_into().unwrap(), lines.to_vec())
    }

    #[test]
    fn later_version_still_yields_tag_and_topic() {
        let mut bytes = encode(7, &record("a", b"data: x\n"));
        bytes[0] = VERSION + 1;
        let topic = Some("a".try_into().unwrap());
        assert_eq!(decode(&bytes.into()), Stored::Unreadable { tag: 7, topic });
    }

    #[test]
    fn bytes_without_the_magic_are_foreign() {
        for bytes in [
            &b""[..],
            b"\x01",
            b"sse",
            b"\x01ss",
            b"{\"sse\":1}",
            b"data: x\n",
        ] {
            let bytes = Bytes::copy_from_slice(bytes);
            assert_eq!(decode(&bytes), Stored::Foreign, "{bytes:?}");
        }
    }

    #[test]
    fn truncated_record_is_not_a_record() {
        let whole = Bytes::from(encode(0x0102_0304, &record("topic", b"")));
        for end in 0..whole.len() {
            match decode(&whole.slice(..end)) {
                Stored::Foreign => assert!(end < 4),
                Stored::Unreadable { tag, topic } => {
                    assert_eq!(tag, if end < 8 { 0 } else { 0x0102_0304 });
                    assert_eq!(topic, None);
                }
                Stored::Record { .. } => panic!("a record of {end} bytes"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_topic_and_lines_round_trip(
            tag: u32,
            topic in "\\PC{1,64}",
            lines in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let record = record(&topic, &lines);
            let bytes = encode(tag, &record);
            prop_assert_eq!(bytes.len(), size(&record));
            prop_assert_eq!(decode(&bytes.into()), Stored::Record { tag, record });
        }

        #[test]
        fn decoding_arbitrary_bytes_never_fails(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            head in prop::option::of(Just(*b"\x01sse\0\0\0\0\0\x02")),
        ) {
            let bytes = [head.as_ref().map_or(&[][..], |head| head), &bytes].concat();
            let is_ours = bytes.get(1..4) == Some(MAGIC);
            let stored = decode(&bytes.clone().into());
            prop_assert_eq!(stored == Stored::Foreign, !is_ours);
            if let Stored::Record { tag, record } = stored {
                prop_assert_eq!(encode(tag, &record), bytes);
            }
        }
    }
}
