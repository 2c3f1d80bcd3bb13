//! The data of an event on the wire: texts, JSON, and whatever size they have.

use std::{collections::BTreeMap, error::Error, slice};
use support::parsers;

use parsers::{ONE_LINE, arrived, received, wire};
use serde::{Serialize, Serializer, ser};
use serde_json::{json, value::RawValue};
use tower_sse::{Event, event::Field};

// ===== the text =====

#[test]
fn a_text_is_split_at_cr_lf_and_crlf_each_one_break() {
    for (text, expected) in [
        ("a\nb", "data: a\ndata: b\n\n"),
        ("a\rb", "data: a\ndata: b\n\n"),
        ("a\r\nb", "data: a\ndata: b\n\n"),
        ("a\n\rb", "data: a\ndata: \ndata: b\n\n"),
        ("a\r\r\nb", "data: a\ndata: \ndata: b\n\n"),
        ("a\n\nb", "data: a\ndata: \ndata: b\n\n"),
        ("a\rb\nc\r\nd", "data: a\ndata: b\ndata: c\ndata: d\n\n"),
    ] {
        assert_eq!(wire(Event::message(text)), expected, "{text:?}");
    }
}

#[test]
fn leading_and_trailing_line_breaks_are_kept() {
    for (text, arrives_as) in [
        ("a\n", "a\n"),
        ("a\r", "a\n"),
        ("a\r\n", "a\n"),
        ("a\n\n", "a\n\n"),
        ("\na", "\na"),
        ("\r\na", "\na"),
        ("\n", "\n"),
        ("\r", "\n"),
        ("\r\n", "\n"),
        ("\r\n\n\r", "\n\n\n"),
    ] {
        let event = arrived(Event::message(text));
        assert_eq!(event, received("message", arrives_as, ""), "{text:?}");
    }
}

#[test]
fn nothing_but_cr_and_lf_is_a_break() {
    let text = "a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\u{1c}g\u{1d}h\u{1e}i\0j";
    assert_eq!(wire(Event::message(text)), format!("data: {text}\n\n"));
    assert_eq!(arrived(Event::message(text)), received("message", text, ""));
}

#[test]
fn text_round_trips() {
    for text in ONE_LINE {
        assert_eq!(arrived(Event::message(text)), received("message", text, ""));

        let lines = format!("{text}\n{text}\n");
        let event = Event::new("lines", &lines).unwrap();
        assert_eq!(arrived(event), received("lines", &lines, ""));
    }
}

#[test]
fn an_empty_text_is_a_bare_data_line_and_arrives() {
    let event = Event::new("empty", "").unwrap();
    assert_eq!(wire(event.clone()), "event: empty\ndata:\n\n");
    assert_eq!(arrived(event), received("empty", "", ""));
}

#[test]
fn text_cannot_forge_other_fields() {
    let text = "\n\nevent: forged\nid: 1\nretry: 1\ndata: forged\n\n: comment\n\n";
    assert_eq!(arrived(Event::message(text)), received("message", text, ""));
}

#[test]
fn a_byte_order_mark_at_the_start_of_a_stream_arrives() {
    let event = Event::message("\u{feff}text");
    assert!(!event.clone().into_bytes().starts_with(b"\xef\xbb\xbf"));
    assert_eq!(arrived(event), received("message", "\u{feff}text", ""));
}

// ===== JSON =====

#[test]
fn a_value_is_one_line_of_compact_json() {
    let value = json!({"text": "two\nlines\r", "list": [1, 2.5, null]});
    let event = Event::json("placed", &value).unwrap().id("7").unwrap();
    assert_eq!(
        wire(event),
        "event: placed\ndata: {\"list\":[1,2.5,null],\"text\":\"two\\nlines\\r\"}\nid: 7\n\n"
    );
}

#[test]
fn value_larger_than_the_initial_buffer_arrives() {
    for size in [100, 120, 1_000, 100_000] {
        let value = "x".repeat(size);
        let event = Event::json("large", &value).unwrap().id("7").unwrap();
        assert_eq!(
            arrived(event),
            received("large", &format!("{value:?}"), "7")
        );
    }
}

#[test]
fn raw_json_with_line_breaks_arrives_as_the_same_value() {
    for text in [
        "{\n  \"a\": 1,\r\n  \"b\": [\r]\n}",
        "[\r1,\r\r2]",
        "[\n\n\"data: x\"\n\n,\n\nnull]",
    ] {
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        let event = arrived(Event::json("raw", &raw).unwrap());
        let lines = text.replace("\r\n", "\n").replace('\r', "\n");
        assert_eq!(event, received("raw", &lines, ""));
    }
}

#[test]
fn unserializable_value_is_an_error_with_its_cause() {
    struct Failing;

    impl Serialize for Failing {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(ser::Error::custom("out of ink"))
        }
    }

    let odd_keys = BTreeMap::from([([1, 2], "not a string")]);
    let failing_halfway = (1, "one", Failing);
    for (error, cause) in [
        (Event::json("x", &odd_keys), "key must be a string"),
        (Event::json("x", &failing_halfway), "out of ink"),
        (Event::envelope("x", &Failing), "out of ink"),
    ] {
        let error = error.unwrap_err();
        assert_eq!(error.field(), Field::Data);
        assert_eq!(
            error.to_string(),
            "event data could not be serialised as JSON"
        );
        assert_eq!(error.source().unwrap().to_string(), cause);
    }
}

#[test]
fn an_envelope_names_the_event_in_its_data() {
    let event = Event::envelope("two\nlines", &json!({"a": 1})).unwrap();
    assert_eq!(
        wire(event),
        "event: event\ndata: {\"eventName\":\"two\\nlines\",\"eventPayload\":{\"a\":1}}\n\n"
    );
}

// ===== size =====

#[test]
fn sixteen_mebibytes_arrive() {
    let text = "sixteen bytes, _".repeat(1 << 20);
    let event = Event::new("large", &text).unwrap().id("7").unwrap();
    let bytes = event.into_bytes();
    assert_eq!(
        bytes.len(),
        text.len() + "event: large\ndata: \nid: 7\n\n".len()
    );

    let expected = received("large", &text, "7");
    assert_eq!(parsers::ours(&[&bytes]).0, slice::from_ref(&expected));
    let pieces: Vec<_> = bytes.chunks(10_007).collect();
    assert_eq!(parsers::ours(&pieces).0, slice::from_ref(&expected));
    assert_eq!(parsers::sse_stream(&pieces).0, [expected]);
}

#[test]
fn a_million_lines_arrive() {
    for (line, arrives_as) in [("\n", "\n"), ("é\r\n", "é\n")] {
        let bytes = Event::message(line.repeat(1_000_000)).into_bytes();
        let expected = received("message", &arrives_as.repeat(1_000_000), "");
        let pieces: Vec<_> = bytes.chunks(10_007).collect();
        // No `assert_eq!`: it would print them.
        assert!(
            parsers::ours(&pieces).0 == slice::from_ref(&expected),
            "{line:?}"
        );
        assert!(parsers::sse_stream(&pieces).0 == [expected], "{line:?}");
    }
}

#[test]
fn line_breaks_arrive_at_any_offset_of_a_large_text() {
    const KIB: usize = 1024;
    for at in [1, 4 * KIB, 8 * KIB, 16 * KIB, 24 * KIB, 32 * KIB] {
        for at in at - 1..at + 2 {
            for line_break in ["\n", "\r", "\r\n", "\r\n\r\n\n"] {
                let (before, after) = ("x".repeat(at), "y".repeat(33 * KIB - at));
                let text = format!("{before}{line_break}{after}{line_break}");
                let normal = text.replace("\r\n", "\n").replace('\r', "\n");

                let event = Event::message(&text).id("7").unwrap();
                let (events, _) = parsers::ours(&[&event.into_bytes()]);
                let expected = [received("message", &normal, "7")];
                assert!(events == expected, "{line_break:?} at {at}");

                let comment = wire(Event::comment(&text));
                let expected = format!(": {}\n", normal.replace('\n', "\n: "));
                assert!(comment == expected, "comment, {line_break:?} at {at}");
            }
        }
    }
}
