//! A position in the log, as carried in the `id` of an event.

use std::fmt;

use bytes::Bytes;

/// One generation of a log. It is random and created with the log: a log that was lost, wiped or
/// recreated has another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// Returns an epoch with this value. A log draws it at random when it is created.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// Returns the epoch's value.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// A position in the log of a broker. Each topic event carries its position as its `id`.
///
/// Its text is `<epoch>-<offset>-<tag>`: 16 lower-case hexadecimal digits, a decimal number without
/// leading zeros, 8 lower-case hexadecimal digits. An id is therefore visible ASCII of at most 46
/// bytes, and each position has exactly one text.
///
/// # Example
///
/// ```
/// use tower_sse::broker::Position;
///
/// let position = Position::parse(b"00000000000000ff-42-0000002a").unwrap();
/// assert_eq!(position.offset(), 42);
/// assert_eq!(position.to_string(), "00000000000000ff-42-0000002a");
/// assert_eq!(Position::parse(b"42"), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    epoch: Epoch,
    offset: u64,
    tag: u32,
}

/// The longest text of a position.
const MAX_LEN: usize = 16 + 1 + 20 + 1 + 8;

impl Position {
    /// Returns a position in a log: `offset` counts the records from 1, and `tag` is the record's
    /// own random number. Offset 0 with tag 0 is the position before the first record.
    pub const fn new(epoch: Epoch, offset: u64, tag: u32) -> Self {
        Self { epoch, offset, tag }
    }

    /// Returns the generation of the log.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the number of the record in the log.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the record's random number. It distinguishes a log that was rewritten from the one
    /// that a client has seen.
    pub const fn tag(&self) -> u32 {
        self.tag
    }

    /// Parses the text of a position. Returns `None` if it is not exactly such a text.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > MAX_LEN {
            return None;
        }
        let mut parts = text.split(|byte| *byte == b'-');
        let (epoch, offset, tag) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || epoch.len() != 16 || tag.len() != 8 {
            return None;
        }
        Some(Self {
            epoch: Epoch(hexadecimal(epoch)?),
            offset: decimal(offset)?,
            tag: u32::try_from(hexadecimal(tag)?).ok()?,
        })
    }

    /// Encodes an event of these lines, with this position as its id.
    pub(crate) fn frame(&self, lines: &[u8]) -> Bytes {
        let digits = self.offset.checked_ilog10().unwrap_or(0) as usize + 1;
        let id = b"id: ".len() + 16 + 1 + digits + 1 + 8 + 1;
        // Exactly: a buffer with room to spare costs an allocation more.
        let mut frame = Vec::with_capacity(lines.len() + id + 1);
        frame.extend_from_slice(lines);
        self.write_id(&mut frame);
        frame.push(b'\n');
        frame.into()
    }

    /// Appends the `id` line that carries this position.
    fn write_id(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"id: ");
        out.extend_from_slice(self.write(&mut [0; MAX_LEN]));
        out.push(b'\n');
    }

    /// Writes the text and returns the used part of the buffer. This runs for each event and each
    /// connection, for which `fmt` is slow.
    fn write<'a>(&self, buffer: &'a mut [u8; MAX_LEN]) -> &'a [u8] {
        let mut digits = itoa::Buffer::new();
        let offset = digits.format(self.offset).as_bytes();
        let tag = 17 + offset.len() + 1;
        write_hexadecimal(&mut buffer[..16], self.epoch.0);
        buffer[16] = b'-';
        buffer[17..tag - 1].copy_from_slice(offset);
        buffer[tag - 1] = b'-';
        write_hexadecimal(&mut buffer[tag..tag + 8], u64::from(self.tag));
        &buffer[..tag + 8]
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0; MAX_LEN];
        let text = std::str::from_utf8(self.write(&mut buffer));
        f.write_str(text.map_err(|_| fmt::Error)?)
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value: u64, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_canonical = matches!(digits, [b'0'] | [b'1'..=b'9', ..]);
    if !is_canonical {
        return None;
    }
    digits.iter().try_fold(0, |value: u64, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

fn write_hexadecimal(out: &mut [u8], mut value: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for digit in out.iter_mut().rev() {
        *digit = DIGITS[(value & 15) as usize];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_position_is_rejected() {
        let long = [b'1'; 65536];
        let bad: [&[u8]; 24] = [
            b"",
            b"1",
            b"-1",
            b"+1",
            b"01",
            b" 1",
            b"1 ",
            b"18446744073709551616",
            b"\xff\xfe",
            b"$",
            b"*",
            b">",
            b"0-0",
            "１".as_bytes(),
            b"1e3",
            b"0x1",
            b"../",
            &long,
            b"00000000000000ff-042-0000002a",
            b"00000000000000FF-42-0000002a",
            b"00000000000000ff-18446744073709551616-0000002a",
            b"00000000000000ff-42-0000002a-",
            b"00000000000000ff--42-0000002a",
            b"00000000000000ff-42-0000002a\0",
        ];
        for text in bad {
            assert_eq!(
                Position::parse(text),
                None,
                "{:?}",
                String::from_utf8_lossy(text)
            );
        }
    }

    proptest! {
        #[test]
        fn position_round_trips_through_its_id(epoch: u64, offset: u64, tag: u32) {
            let position = Position::new(Epoch::new(epoch), offset, tag);
            let mut line = Vec::new();
            position.write_id(&mut line);
            let text = line.strip_prefix(b"id: ").unwrap().strip_suffix(b"\n").unwrap();
            prop_assert_eq!(position.to_string(), String::from_utf8_lossy(text));
            prop_assert!(text.len() <= 64 && text.iter().all(u8::is_ascii_graphic));
            prop_assert_eq!(Position::parse(text), Some(position));
        }

        #[test]
        fn each_position_has_one_textual_form(text in "[0-9a-f]{15,17}-[0-9]{1,21}-[0-9a-f]{7,9}") {
            if let Some(position) = Position::parse(text.as_bytes()) {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }
}
