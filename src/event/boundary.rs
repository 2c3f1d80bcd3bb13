//! Where the events end in a stream that somebody else wrote.

use std::mem;

use memchr::memchr2;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// As much of a line as tells what it is: a byte order mark and `data:`.
const HEAD: usize = 8;

/// An incremental scanner for the boundaries of an event stream: the places between its events.
///
/// A boundary is the start of a line with no field line before it since the last blank line: what
/// is put there is torn out of no event. It comes after a blank line, or after comment lines that
/// follow one. The start of the stream is one too, and needs no finding; after a byte order mark
/// there is none, since the mark counts as the start of the first line.
///
/// Lines end with LF, CR or CRLF, and pieces may be cut anywhere. A CR ends its line at once; an LF
/// that then starts the next piece belongs to that line end, and the boundary moves past it. What
/// is put between the two finds the LF behind it, as a blank line that ends nothing.
#[derive(Clone, Debug)]
pub(crate) struct Boundaries {
    /// The start of a line whose end has not come yet. Empty at the start of a line only.
    head: [u8; HEAD],
    head_len: usize,
    /// The first line has not ended: it may start with a byte order mark.
    is_first: bool,
    /// The last piece ended with CR.
    skip_lf: bool,
    has_fields: bool,
    has_data: bool,
}

/// What a piece of a stream has brought to an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// How long the start of the piece is that ends at the last boundary in it; never 0. `None` if
    /// there is no boundary in it: all of it belongs to what comes later.
    pub(crate) boundary: Option<usize>,
    /// How many events ended in the piece: blocks with data, which a client dispatches. They all
    /// end at the last boundary or before.
    pub(crate) events: usize,
}

enum Line {
    Blank,
    Comment,
    Data,
    OtherField,
}

impl Boundaries {
    pub(crate) fn new() -> Self {
        Self {
            head: [0; HEAD],
            head_len: 0,
            is_first: true,
            skip_lf: false,
            has_fields: false,
            has_data: false,
        }
    }

    /// Takes the next piece of the stream.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Ended {
        let mut ended = Ended::default();
        let mut at = 0;
        if !piece.is_empty() && mem::take(&mut self.skip_lf) && piece[0] == b'\n' {
            at = 1;
            ended.boundary = self.is_at_boundary().then_some(at);
        }
        while let Some(length) = memchr2(b'\n', b'\r', &piece[at..]) {
            let (line, rest) = piece[at..].split_at(length);
            ended.events += usize::from(self.line(line));
            at += length + 1 + usize::from(rest.starts_with(b"\r\n"));
            self.skip_lf = rest == b"\r";
            if self.is_at_boundary() {
                ended.boundary = Some(at);
            }
        }
        self.keep(&piece[at..]);
        ended
    }

    /// Whether the stream, as far as it was fed, ends at a boundary.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.head_len == 0 && !self.has_fields
    }

    /// Takes the rest of a line, and tells whether it ends an event.
    fn line(&mut self, rest: &[u8]) -> bool {
        let line = if self.head_len == 0 {
            classify(rest, self.is_first)
        } else {
            self.keep(rest);
            classify(&self.head[..self.head_len], self.is_first)
        };
        self.head_len = 0;
        self.is_first = false;
        match line {
            Line::Blank => {
                self.has_fields = false;
                return mem::take(&mut self.has_data);
            }
            Line::Comment => {}
            Line::Data => {
                self.has_fields = true;
                self.has_data = true;
            }
            Line::OtherField => self.has_fields = true,
        }
        false
    }

    fn keep(&mut self, line: &[u8]) {
        let room = &mut self.head[self.head_len..];
        let length = line.len().min(room.len());
        room[..length].copy_from_slice(&line[..length]);
        self.head_len += length;
    }
}

/// What a line is, by its start or the whole of it.
#[inline]
fn classify(mut line: &[u8], is_first: bool) -> Line {
    if is_first {
        line = line.strip_prefix(BOM).unwrap_or(line);
    }
    match line {
        [] => Line::Blank,
        [b':', ..] => Line::Comment,
        b"data" | [b'd', b'a', b't', b'a', b':', ..] => Line::Data,
        _ => Line::OtherField,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Decoded, Decoder, MessageEvent};
    use proptest::{collection::vec, prelude::*, sample};

    /// What lines are made of and what ends them, and what is nearly that.
    const PARTS: [&str; 26] = [
        "\n", "\n", "\n", "\r", "\r", "\r\n", "\r\n", "\n\n", "\r\r", "\r\n\r\n", "\n\r", "data",
        "data:", "data: x", "datax: 1", "Data: 1", "dat", "a", ":", ": c", "id: 7", "event: e",
        "retry: 1", "\u{feff}", " ", "é",
    ];

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        (any::<bool>(), vec(sample::select(&PARTS[..]), 0..24)).prop_map(|(has_bom, parts)| {
            let bom = if has_bom { BOM } else { &[] };
            [bom, parts.concat().as_bytes()].concat()
        })
    }

    /// Cuts a stream into pieces of these lengths, and what is left over; some are empty.
    fn cut<'a>(mut stream: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        for length in lengths {
            let (piece, rest) = stream.split_at((*length).min(stream.len()));
            pieces.push(piece);
            stream = rest;
        }
        pieces.push(stream);
        pieces
    }

    fn decoded(stream: &[u8]) -> Decoder {
        let mut decoder = Decoder::new();
        decoder.feed(stream).unwrap();
        decoder
    }

    fn count(decoder: Decoder) -> usize {
        decoder
            .filter(|found| matches!(found, Decoded::Event(_)))
            .count()
    }

    /// Where a stream has boundaries, its start left out: line by line, from the whole text.
    fn boundaries(stream: &[u8]) -> Vec<usize> {
        let is_boundary = |at: &usize| {
            let (before, after) = stream.split_at(*at);
            if before.ends_with(b"\r") && after.starts_with(b"\n") {
                return false;
            }
            let before = before.strip_prefix(BOM).unwrap_or(before);
            let text = String::from_utf8_lossy(before);
            let text = text.replace("\r\n", "\n").replace('\r', "\n");
            let mut lines = text.rsplit('\n');
            let is_line_start = lines.next() == Some("") && text.contains('\n');
            is_line_start
                && lines
                    .take_while(|line| !line.is_empty())
                    .all(|line| line.starts_with(':'))
        };
        (1..=stream.len()).filter(is_boundary).collect()
    }

    /// Asserts that a stream that ends here leaves nothing that would become part of an event.
    fn assert_whole(stream: &[u8]) {
        let mut decoder = decoded(stream);
        let place = decoder.last_event_id().to_owned();
        decoder.by_ref().for_each(drop);
        decoder.feed(b"data: probe\n\n").unwrap();
        let probe = MessageEvent {
            event_type: "message".to_owned(),
            data: "probe".to_owned(),
            last_event_id: place,
        };
        assert_eq!(decoder.next(), Some(Decoded::Event(probe)));
    }

    proptest! {
        #[test]
        fn boundaries_enclose_whole_events_for_any_chunking(
            stream in any_stream(),
            lengths in vec(0..9_usize, 0..24),
        ) {
            let mut scanner = Boundaries::new();
            let mut fed = 0;
            let mut passed = 0;
            let mut events = 0;
            for piece in cut(&stream, &lengths) {
                let ended = scanner.feed(piece);
                if let Some(boundary) = ended.boundary {
                    prop_assert!((1..=piece.len()).contains(&boundary));
                    passed = fed + boundary;
                    assert_whole(&stream[..passed]);
                }
                fed += piece.len();
                events += ended.events;
                prop_assert_eq!(events, count(decoded(&stream[..passed])));
                prop_assert_eq!(events, count(decoded(&stream[..fed])));
                prop_assert_eq!(scanner.is_at_boundary(), passed == fed);
                // The place between CR and LF is one only as long as the LF is not known.
                let found = boundaries(&stream[..fed]).last().copied();
                prop_assert_eq!(found.unwrap_or(0), passed);
            }

            let mut at_once = Boundaries::new();
            let ended = at_once.feed(&stream);
            prop_assert_eq!(ended.events, events);
            prop_assert_eq!(ended.boundary.unwrap_or(0), passed);
            prop_assert_eq!(at_once.is_at_boundary(), scanner.is_at_boundary());
        }

        #[test]
        fn chunk_is_scanned_as_its_bytes_one_by_one(
            bytes in vec(sample::select(&b"\n\r:data\xef\xbb\xbf\xff\0"[..]), 0..32),
        ) {
            let ended = Boundaries::new().feed(&bytes);
            let mut scanner = Boundaries::new();
            let mut last = Ended::default();
            for (at, byte) in bytes.iter().enumerate() {
                let one = scanner.feed(&[*byte]);
                last.events += one.events;
                last.boundary = one.boundary.map(|_| at + 1).or(last.boundary);
            }
            prop_assert_eq!(ended, last);
        }
    }

    #[test]
    fn comments_pass_between_events_but_not_within_them() {
        let mut scanner = Boundaries::new();
        assert!(scanner.is_at_boundary());
        let ended = |boundary, events| Ended { boundary, events };
        assert_eq!(scanner.feed(b": one\n"), ended(Some(6), 0));
        assert_eq!(scanner.feed(b"data: x\n: two\n"), ended(None, 0));
        assert!(!scanner.is_at_boundary());
        assert_eq!(scanner.feed(b"\n: three\n: fo"), ended(Some(9), 1));
        assert!(!scanner.is_at_boundary());
        assert_eq!(scanner.feed(b"ur\nid: 7\n\n"), ended(Some(10), 0));
        assert!(scanner.is_at_boundary());
        assert_eq!(scanner.feed(b""), ended(None, 0));
        assert!(scanner.is_at_boundary());
    }

    #[test]
    fn crlf_split_across_chunks_is_one_line_end() {
        let mut scanner = Boundaries::new();
        let ended = |boundary, events| Ended { boundary, events };
        assert_eq!(scanner.feed(b"data: x\r"), ended(None, 0));
        assert_eq!(scanner.feed(b"\n"), ended(None, 0));
        assert_eq!(scanner.feed(b"\r"), ended(Some(1), 1));
        assert_eq!(scanner.feed(b""), ended(None, 0));
        assert_eq!(scanner.feed(b"\ndata: y"), ended(Some(1), 0));
        assert_eq!(scanner.feed(b"\n\n"), ended(Some(2), 1));
    }
}
