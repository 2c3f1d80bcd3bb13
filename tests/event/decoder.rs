//! The decoder against the HTML standard, section 9.2.6, with the stream whole and cut.

use std::{slice, time::Duration};

use tower_sse::event::{Decoded, Decoder, MessageEvent};

/// Decodes a stream whole, byte by byte with nothing in between, and cut in two at every place, and
/// gives what all of these agree on, with the client's place at the end.
fn decode(stream: impl AsRef<[u8]>) -> (Vec<Decoded>, String) {
    let stream = stream.as_ref();
    let whole = decode_pieces(&[stream]);

    let bytes: Vec<_> = stream.chunks(1).flat_map(|byte| [byte, b""]).collect();
    assert_eq!(decode_pieces(&bytes), whole, "byte by byte: {stream:?}");
    for at in 0..=stream.len() {
        let (first, second) = stream.split_at(at);
        let in_two = decode_pieces(&[first, b"", second]);
        assert_eq!(in_two, whole, "cut at {at}: {stream:?}");
    }
    whole
}

fn decode_pieces(pieces: &[&[u8]]) -> (Vec<Decoded>, String) {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    for piece in pieces {
        decoder.feed(piece).unwrap();
        found.extend(&mut decoder);
    }
    (found, decoder.last_event_id().to_owned())
}

fn found(stream: impl AsRef<[u8]>) -> Vec<Decoded> {
    decode(stream).0
}

fn event(event_type: &str, data: &str, last_event_id: &str) -> Decoded {
    Decoded::Event(MessageEvent {
        event_type: event_type.into(),
        data: data.into(),
        last_event_id: last_event_id.into(),
    })
}

fn message(data: &str) -> Decoded {
    event("message", data, "")
}

fn comment(text: &str) -> Decoded {
    Decoded::Comment(text.into())
}

// ===== the start of the stream =====

#[test]
fn one_byte_order_mark_at_the_start_is_skipped() {
    assert_eq!(found("\u{feff}data: a\n\n"), [message("a")]);
    assert_eq!(found("\u{feff}: a\n"), [comment("a")]);
    assert_eq!(found("\u{feff}\ndata: a\n\n"), [message("a")]);
    assert_eq!(found("\u{feff}"), []);
}

#[test]
fn a_byte_order_mark_elsewhere_is_a_character() {
    assert_eq!(found("\u{feff}\u{feff}data: a\n\n"), []);
    assert_eq!(found("\n\u{feff}data: a\n\n"), []);
    assert_eq!(found("data: a\n\u{feff}data: b\n\n"), [message("a")]);
    assert_eq!(found("data:\u{feff}a\n\n"), [message("\u{feff}a")]);
    assert_eq!(found("data: \u{feff}a\n\n"), [message("\u{feff}a")]);
}

#[test]
fn partial_byte_order_mark_is_not_skipped() {
    assert_eq!(found(b"\xef\xbbdata: a\n\ndata: b\n\n"), [message("b")]);
}

// ===== lines =====

#[test]
fn lines_end_at_lf_cr_and_crlf() {
    for end in ["\n", "\r", "\r\n"] {
        let stream = format!("data: a{end}data: b{end}{end}data: c{end}{end}");
        assert_eq!(found(stream), [message("a\nb"), message("c")], "{end:?}");
    }
    assert_eq!(
        found("data: a\rdata: b\r\ndata: c\n\r"),
        [message("a\nb\nc")]
    );
    assert_eq!(
        found("data: a\n\r\ndata: b\r\n\n"),
        [message("a"), message("b")]
    );
    assert_eq!(
        found("data: a\r\rdata: b\r\r\n"),
        [message("a"), message("b")]
    );
}

#[test]
fn cr_at_the_end_of_a_chunk_ends_its_line_at_once() {
    let mut decoder = Decoder::new();
    decoder.feed(b"data: a\r\r").unwrap();
    assert_eq!(decoder.next(), Some(message("a")));

    decoder.feed(b"\ndata: b\n\n").unwrap();
    assert_eq!(decoder.next(), Some(message("b")));
}

#[test]
fn nothing_but_cr_and_lf_ends_a_line() {
    let data = "a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\u{1c}g\u{1d}h\u{1e}i";
    assert_eq!(found(format!("data: {data}\n\n")), [message(data)]);
}

#[test]
fn event_without_final_blank_line_is_dropped_with_its_id() {
    for stream in ["data: a", "data: a\n", "data: a\r", "id: 1\ndata: a\r\n"] {
        assert_eq!(decode(stream), (vec![], String::new()), "{stream:?}");
    }
    let (events, place) = decode("id: 1\ndata: a\n\nid: 2\ndata: b\n");
    assert_eq!(
        (events, place.as_str()),
        (vec![event("message", "a", "1")], "1")
    );
}

// ===== fields =====

#[test]
fn one_space_after_the_colon_is_removed() {
    assert_eq!(found("data:a\n\n"), [message("a")]);
    assert_eq!(found("data: a\n\n"), [message("a")]);
    assert_eq!(found("data:  a\n\n"), [message(" a")]);
    assert_eq!(found("data:\ta\n\n"), [message("\ta")]);
    assert_eq!(found("data: a \n\n"), [message("a ")]);
}

#[test]
fn only_the_first_colon_separates_name_and_value() {
    assert_eq!(found("data: a: b\n\n"), [message("a: b")]);
    assert_eq!(found("data::\n\n"), [message(":")]);
}

#[test]
fn a_line_without_a_colon_is_a_field_with_an_empty_value() {
    assert_eq!(found("data\n\n"), [message("")]);
    assert_eq!(found("data\ndata\n\n"), [message("\n")]);
    assert_eq!(found("event: a\nevent\ndata: b\n\n"), [message("b")]);
    let (events, place) = decode("id: 1\nid\ndata: a\n\n");
    assert_eq!((events, place.as_str()), (vec![message("a")], ""));
}

#[test]
fn unknown_fields_are_ignored_and_names_match_exactly() {
    let stream = "Data: a\nDATA: a\n data: a\ndata : a\ndat: a\ndatas: a\n\u{2028}data: a\nfoo\n\n";
    assert_eq!(found(stream), []);
    assert_eq!(found("foo: a\ndata: b\nbar\n\n"), [message("b")]);
}

#[test]
fn data_lines_are_joined_by_lf() {
    assert_eq!(found("data: a\ndata: b\n\n"), [message("a\nb")]);
    assert_eq!(found("data: a\ndata:\n\n"), [message("a\n")]);
    assert_eq!(found("data:\ndata:\ndata: a\n\n"), [message("\n\na")]);
}

#[test]
fn empty_data_is_dispatched_and_no_data_is_not() {
    assert_eq!(found("data:\n\n"), [message("")]);
    assert_eq!(found("event: a\n\n\n\n: b\n\n"), [comment("b")]);
}

#[test]
fn event_type_is_reset_after_each_block() {
    assert_eq!(
        found("event: a\ndata: 1\n\ndata: 2\n\n"),
        [event("a", "1", ""), message("2")]
    );
    assert_eq!(found("event: a\n\ndata: 1\n\n"), [message("1")]);
    assert_eq!(
        found("event: a\nevent: b\ndata: 1\n\n"),
        [event("b", "1", "")]
    );
    assert_eq!(found("event:\ndata: 1\n\n"), [message("1")]);
}

#[test]
fn a_nul_in_data_or_type_is_kept() {
    assert_eq!(
        found("event: a\0\ndata: b\0\n\n"),
        [event("a\0", "b\0", "")]
    );
}

// ===== ids =====

#[test]
fn an_id_persists_until_the_next_one() {
    let (events, place) = decode("id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\ndata: d\n\n");
    let expected = [
        event("message", "a", "1"),
        event("message", "b", "1"),
        message("c"),
        message("d"),
    ];
    assert_eq!(
        (events.as_slice(), place.as_str()),
        (expected.as_slice(), "")
    );
}

#[test]
fn an_id_with_a_nul_is_ignored() {
    let (events, place) = decode("id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n");
    let expected = [event("message", "a", "1"), event("message", "b", "1")];
    assert_eq!(
        (events.as_slice(), place.as_str()),
        (expected.as_slice(), "1")
    );
}

#[test]
fn id_without_data_updates_last_event_id_without_event() {
    assert_eq!(decode("id: 7\n\n"), (vec![], "7".into()));
    assert_eq!(found("id: 7\n\ndata: a\n\n"), [event("message", "a", "7")]);
}

// ===== retry =====

#[test]
fn retry_accepts_only_ascii_digits() {
    for (value, millis) in [("0", 0), ("3000", 3000), ("0007", 7)] {
        let time = Decoded::Retry(Duration::from_millis(millis));
        assert_eq!(found(format!("retry: {value}\n")), [time], "{value:?}");
    }
    for value in [
        "", " 1", "1 ", "+1", "-1", "1.5", "1e3", "0x1", "1_000", "1\0", "\u{ff11}", "\u{661}",
    ] {
        assert_eq!(found(format!("retry: {value}\n\n")), [], "{value:?}");
    }
}

#[test]
fn retry_overflow_saturates() {
    let longest = Decoded::Retry(Duration::from_millis(u64::MAX));
    for value in ["18446744073709551615", "18446744073709551616"] {
        assert_eq!(
            found(format!("retry: {value}\n")),
            slice::from_ref(&longest)
        );
    }
    assert_eq!(found(format!("retry: {}\n", "9".repeat(1_000))), [longest]);
}

#[test]
fn retry_applies_without_an_event() {
    let time = Decoded::Retry(Duration::from_millis(5));
    assert_eq!(found("retry: 5\n\n"), slice::from_ref(&time));
    assert_eq!(found("data: a\nretry: 5\n\n"), [time, message("a")]);
}

// ===== comments =====

#[test]
fn comments_are_decoded_line_by_line_outside_the_event() {
    assert_eq!(
        found(":\n: a\n:b\n:  c\n:d: e\n"),
        [
            comment(""),
            comment("a"),
            comment("b"),
            comment(" c"),
            comment("d: e")
        ]
    );
    assert_eq!(
        found("event: a\n: b\ndata: 1\n:\ndata: 2\n\n"),
        [comment("b"), comment(""), event("a", "1\n2", "")]
    );
}

// ===== bytes that are no text =====

#[test]
fn invalid_utf_8_becomes_replacement_characters() {
    for (bytes, expected) in [
        (&b"a\xffb"[..], "a\u{fffd}b"),
        (b"\xc3", "\u{fffd}"),
        (b"\xe2\x80", "\u{fffd}"),
        (b"\xe2\x80a", "\u{fffd}a"),
        (b"\xf0\x9f\x98", "\u{fffd}"),
        (b"\xc0\xaf", "\u{fffd}\u{fffd}"),
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\xf5\x80", "\u{fffd}\u{fffd}"),
    ] {
        let stream = [b"data: ", bytes, b"\nid: ", bytes, b"\n\n"].concat();
        let expected = event("message", expected, expected);
        assert_eq!(found(stream), [expected], "{bytes:?}");
    }
}

#[test]
fn character_may_be_split_across_chunks() {
    // `decode` cuts it.
    assert_eq!(found("data: é€😀\n\n"), [message("é€😀")]);
}

// ===== the limit =====

/// How many pieces were taken before an error.
fn taken(limit: usize, pieces: &[&[u8]]) -> Result<Vec<Decoded>, String> {
    let mut decoder = Decoder::with_limit(limit);
    let mut found = Vec::new();
    for piece in pieces {
        decoder.feed(piece).map_err(|error| error.to_string())?;
        found.extend(&mut decoder);
    }
    Ok(found)
}

#[test]
fn event_over_the_limit_is_an_error_for_any_chunking() {
    for (stream, longest) in [
        ("data: 1234\n\n", 10),
        (": 123456789\n", 11),
        ("event: 12345678\n", 15),
        ("unknown 12345678\r\n", 16),
        // The first line has become its value and an LF.
        ("data: 1234\ndata: 5678\n\n", 15),
        ("data: 1234\n: 5678\n\n", 11),
        ("no end", 6),
    ] {
        let bytes: Vec<_> = stream.as_bytes().chunks(1).collect();
        let whole = [stream.as_bytes()];

        assert_eq!(taken(longest, &whole), Ok(found(stream)), "{stream:?}");
        assert_eq!(taken(longest, &bytes), Ok(found(stream)), "{stream:?}");

        let limit = longest - 1;
        let error = Err(format!("event is longer than the limit of {limit} bytes"));
        assert_eq!(taken(limit, &whole), error, "{stream:?}");
        assert_eq!(taken(limit, &bytes), error, "{stream:?}");
    }
}

#[test]
fn limit_applies_to_one_event_not_to_the_stream() {
    let stream = "event: a\ndata: 1234\nid: 7\n\n".repeat(1_000);
    let events = taken(12, &[stream.as_bytes()]).unwrap();
    assert_eq!(events.len(), 1_000);
}

#[test]
fn events_before_an_oversized_event_are_returned() {
    let mut decoder = Decoder::with_limit(10);
    decoder.feed(b"data: a\n\ndata: 12345\n\n").unwrap_err();
    assert_eq!(decoder.next(), Some(message("a")));
    assert_eq!(decoder.next(), None);
}

#[test]
fn unterminated_line_is_not_buffered_beyond_the_limit() {
    let mut decoder = Decoder::with_limit(1 << 20);
    for _ in 0..16 {
        decoder.feed(&[b'x'; 1 << 16]).unwrap();
    }
    for _ in 0..1_000 {
        decoder.feed(&[b'x'; 1 << 16]).unwrap_err();
    }
    // All that was kept is the mebibyte that was taken.
    decoder.feed(b"").unwrap();
    decoder.feed(b"x").unwrap_err();
}
