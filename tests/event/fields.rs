//! The fields of an event on the wire, and what cannot become one.

use std::time::Duration;
use support::parsers;

use parsers::{ONE_LINE, all_receive, arrived, received, wire};
use tower_sse::{
    Event,
    event::{Decoder, EventError, EventId, EventType, Field},
};

fn with_id(id: &str) -> Result<Event, EventError> {
    Event::message("text").id(id)
}

// ===== the type =====

#[test]
fn a_type_with_a_line_break_is_refused_by_name() {
    for (event_type, message) in [
        ("\n", "event type contains a line feed at byte 0"),
        ("a\r", "event type contains a carriage return at byte 1"),
        ("é\r\nb", "event type contains a carriage return at byte 2"),
        ("tick\ndata: x", "event type contains a line feed at byte 4"),
    ] {
        for error in [
            Event::new(event_type, "text").unwrap_err(),
            Event::new(String::from(event_type), "text").unwrap_err(),
            Event::json(event_type, &1).unwrap_err(),
            EventType::try_from(event_type).unwrap_err(),
            EventType::try_from(String::from(event_type)).unwrap_err(),
            EventType::try_from(&String::from(event_type)).unwrap_err(),
        ] {
            assert_eq!(error.field(), Field::EventType);
            assert_eq!(error.to_string(), message);
        }
    }
}

#[test]
fn event_type_round_trips() {
    for event_type in ONE_LINE.iter().filter(|text| !text.is_empty()) {
        let event = Event::new(*event_type, "text").unwrap();
        assert_eq!(arrived(event), received(event_type, "text", ""));
    }
}

#[test]
fn a_type_may_have_a_nul_and_be_long() {
    let long = "long".repeat(16 * 1024);
    for event_type in ["\0", "a\0b", &long] {
        let event = Event::new(event_type, "text").unwrap();
        assert_eq!(arrived(event), received(event_type, "text", ""));
    }
}

#[test]
fn an_empty_type_is_message() {
    let event = Event::new("", "text").unwrap();
    assert_eq!(wire(event.clone()), "data: text\n\n");
    assert_eq!(arrived(event), received("message", "text", ""));
    assert_eq!(wire(Event::message("text")), "data: text\n\n");
}

#[test]
fn event_type_applies_to_one_event_only() {
    let mut stream = Event::new("tick", "1").unwrap().into_bytes().to_vec();
    stream.extend(Event::message("2").into_bytes());
    let events = [received("tick", "1", ""), received("message", "2", "")];
    assert_eq!(all_receive(&stream), events);
}

#[test]
fn types_and_ids_can_be_constants() {
    const TICK: EventType<'static> = EventType::from_static("tick");
    const FIRST: EventId<'static> = EventId::from_static("first");

    let event = Event::new(TICK, "1").unwrap().id(FIRST).unwrap();
    assert_eq!(wire(event), "event: tick\ndata: 1\nid: first\n\n");
    let event = Event::new(&TICK, "1").unwrap().id(&FIRST).unwrap();
    assert_eq!(wire(event), "event: tick\ndata: 1\nid: first\n\n");
}

#[test]
#[should_panic = "a CR or an LF"]
fn a_literal_type_with_a_line_break_panics() {
    let _ = EventType::from_static("two\nlines");
}

#[test]
#[should_panic = "a CR, an LF or a NUL"]
fn a_literal_id_with_a_nul_panics() {
    let _ = EventId::from_static("a\0b");
}

// ===== the id =====

#[test]
fn an_id_with_a_line_break_or_a_nul_is_refused_by_name() {
    for (id, message) in [
        ("\n", "event id contains a line feed at byte 0"),
        ("7\r", "event id contains a carriage return at byte 1"),
        ("7\r\n", "event id contains a carriage return at byte 1"),
        ("é\0", "event id contains a NUL at byte 2"),
    ] {
        for error in [
            with_id(id).unwrap_err(),
            Event::message("text").id(String::from(id)).unwrap_err(),
            EventId::try_from(id).unwrap_err(),
            EventId::try_from(String::from(id)).unwrap_err(),
            EventId::try_from(&String::from(id)).unwrap_err(),
        ] {
            assert_eq!(error.field(), Field::Id);
            assert_eq!(error.to_string(), message);
        }
    }
}

#[test]
fn event_id_round_trips() {
    let long = "7".repeat(64 * 1024);
    for id in ONE_LINE.into_iter().chain([long.as_str()]) {
        assert_eq!(
            arrived(with_id(id).unwrap()),
            received("message", "text", id)
        );
    }
}

#[test]
fn event_id_persists_until_an_empty_one_resets_it() {
    let events = [
        with_id("7").unwrap(),
        Event::message("text"),
        with_id("").unwrap(),
        Event::message("text"),
    ];
    assert_eq!(wire(events[2].clone()), "data: text\nid: \n\n");

    let stream: Vec<_> = events.into_iter().flat_map(Event::into_bytes).collect();
    let ids: Vec<_> = all_receive(&stream)
        .into_iter()
        .map(|event| event.last_event_id)
        .collect();
    assert_eq!(ids, ["7", "7", "", ""]);
}

#[test]
fn every_integer_is_an_id() {
    assert_eq!(EventId::from(u8::MAX), "255");
    assert_eq!(EventId::from(0_u16), "0");
    assert_eq!(EventId::from(u64::MAX), "18446744073709551615");
    assert_eq!(EventId::from(usize::MIN), "0");
    assert_eq!(EventId::from(i64::MIN), "-9223372036854775808");
    assert_eq!(EventId::from(i128::MIN), i128::MIN.to_string().as_str());
    assert_eq!(EventId::from(u128::MAX), u128::MAX.to_string().as_str());

    let event = Event::message("text").id(7_u32).unwrap();
    assert_eq!(wire(event), "data: text\nid: 7\n\n");
}

#[test]
fn last_id_and_last_retry_win() {
    let event = with_id("1").unwrap().id("2").unwrap();
    assert_eq!(arrived(event), received("message", "text", "2"));

    let event = Event::message("text")
        .retry(Duration::from_secs(1))
        .retry(Duration::from_secs(2));
    for (name, parser) in parsers::PARSERS {
        let (_, times) = parser(&[&event.clone().into_bytes()]);
        assert_eq!(times.last(), Some(&Duration::from_secs(2)), "{name}");
    }
}

#[test]
fn id_on_a_comment_is_refused() {
    let error = Event::comment("text").id("7").unwrap_err();
    assert_eq!(error.field(), Field::Id);
    assert_eq!(
        error.to_string(),
        "event id on a comment: an id needs data to ride on"
    );
}

// ===== retry =====

#[test]
fn retry_is_truncated_to_milliseconds_and_capped() {
    for (time, millis) in [
        (Duration::ZERO, "0"),
        (Duration::from_micros(999), "0"),
        (Duration::from_micros(1_999), "1"),
        (Duration::from_millis(1_005), "1005"),
        (Duration::from_secs(3), "3000"),
        (Duration::from_millis(2_147_483_647), "2147483647"),
        (Duration::from_millis(2_147_483_648), "2147483647"),
        (Duration::MAX, "2147483647"),
    ] {
        let event = Event::message("text").retry(time);
        assert_eq!(
            wire(event.clone()),
            format!("data: text\nretry: {millis}\n\n")
        );
        for (name, parser) in parsers::PARSERS {
            let (_, times) = parser(&[&event.clone().into_bytes()]);
            let time = Duration::from_millis(millis.parse().unwrap());
            assert_eq!(times, [time], "{name}");
        }
    }
}

// ===== comments =====

#[test]
fn comment_is_encoded_as_comment_lines_only() {
    for (text, expected) in [
        ("", ":\n"),
        ("text", ": text\n"),
        (" text", ":  text\n"),
        ("a\rb\nc\r\nd", ": a\n: b\n: c\n: d\n"),
        ("a\n", ": a\n: \n"),
        ("\r", ": \n: \n"),
        ("\u{feff}a\u{2028}b\0", ": \u{feff}a\u{2028}b\0\n"),
    ] {
        assert_eq!(wire(Event::comment(text)), expected, "{text:?}");
    }
}

#[test]
fn comment_dispatches_no_event_and_keeps_the_next_intact() {
    let comment = Event::comment("\n\ndata: forged\r\rid: 1\r\n\r\n");
    let mut stream = comment.into_bytes().to_vec();
    assert_eq!(all_receive(&stream), []);

    stream.extend(Event::new("tick", "1").unwrap().into_bytes());
    assert_eq!(all_receive(&stream), [received("tick", "1", "")]);
}

#[test]
fn retry_on_a_comment_ends_with_a_blank_line() {
    let event = Event::comment("text").retry(Duration::from_secs(3));
    assert_eq!(wire(event), ": text\nretry: 3000\n\n");
}

// ===== together =====

#[test]
fn debug_output_shows_the_wire_format() {
    let event = Event::new("tick", "1").unwrap();
    assert_eq!(format!("{event:?}"), r#"Event("event: tick\ndata: 1\n")"#);
}

#[test]
fn the_frames_of_events_can_be_joined() {
    let frames = [
        Event::comment("first"),
        Event::message("1").retry(Duration::from_secs(1)),
        Event::comment(""),
        Event::new("tick", "2\n").unwrap().id("2").unwrap(),
    ];
    let stream: Vec<_> = frames.into_iter().flat_map(Event::into_bytes).collect();
    let expected = [received("message", "1", ""), received("tick", "2\n", "2")];
    assert_eq!(all_receive(&stream), expected);

    let mut decoder = Decoder::new();
    decoder.feed(&stream).unwrap();
    assert_eq!(decoder.last_event_id(), "2");
}
