//! The two shapes that the wire of the Node class had which this crate began from, byte for byte.

use super::rules;
use rules::{call_sse, open, plain};
use serde::Serialize;
use tower_sse::{Event, SseLayer, layer::OutboxLimits};

#[derive(Serialize)]
struct Order {
    id: u32,
    item: &'static str,
}

const ORDER: Order = Order { id: 7, item: "tea" };

#[test]
fn numbered_events_count_from_the_welcome() {
    let (sse, mut stream) = open(&SseLayer::new("/events").numbered(true));
    let uuid = sse.uuid();
    let welcome = format!("id: 0\nevent: welcome\ndata: {{\"uuid\":\"{uuid}\"}}\n\n");
    assert_eq!(stream.text(), welcome);

    sse.try_send(Event::json("placed", &ORDER).unwrap())
        .unwrap();
    let placed = "id: 1\nevent: placed\ndata: {\"id\":7,\"item\":\"tea\"}\n\n";
    assert_eq!(stream.text(), placed);

    sse.try_send(Event::message("two\nlines")).unwrap();
    sse.close_with(Event::json("closed", &()).unwrap()).unwrap();
    let (text, rest) = stream.rest();
    let expected = "id: 2\ndata: two\ndata: lines\n\nid: 3\nevent: closed\ndata: null\n\n";
    assert_eq!(text, expected);
    rest.assert_ended();
}

#[test]
fn the_welcome_is_number_0_also_when_a_send_starts_the_stream() {
    let layer = SseLayer::new("/events").numbered(true);
    let mut stream = call_sse(&layer, async |sse| {
        sse.try_send(Event::message("a")).unwrap();
        plain()
    })
    .stream();
    let (text, _) = stream.rest();
    assert!(text.starts_with("id: 0\nevent: welcome\n"), "{text}");
    assert!(text.ends_with("\n\nid: 1\ndata: a\n\n"), "{text}");
}

#[test]
fn without_a_welcome_the_first_event_is_number_0() {
    let layer = SseLayer::new("/events").numbered(true).welcome(None);
    let (sse, mut stream) = open(&layer);
    sse.try_send(Event::message("a")).unwrap();
    sse.try_send(Event::message("b")).unwrap();
    assert_eq!(stream.text(), "id: 0\ndata: a\n\nid: 1\ndata: b\n\n");
}

#[test]
fn event_numbers_are_per_connection() {
    let layer = SseLayer::new("/events").numbered(true);
    for _ in 0..2 {
        let (sse, mut stream) = open(&layer);
        assert!(stream.text().starts_with("id: 0\n"));
        sse.try_send(Event::message("a")).unwrap();
        assert_eq!(stream.text(), "id: 1\ndata: a\n\n");
    }
}

#[test]
fn refused_event_uses_no_number() {
    let layer = SseLayer::new("/events")
        .numbered(true)
        .outbox(OutboxLimits::new().events(1).bytes(1));
    let (sse, mut stream) = open(&layer);
    stream.frame();
    sse.try_send(Event::message("a")).unwrap();
    sse.try_send(Event::message("refused")).unwrap_err();
    assert_eq!(stream.text(), "id: 1\ndata: a\n\n");
    sse.try_send(Event::message("b")).unwrap();
    assert_eq!(stream.text(), "id: 2\ndata: b\n\n");
}

#[test]
fn comments_and_events_with_an_id_are_not_numbered() {
    let (sse, mut stream) = open(&SseLayer::new("/events").numbered(true));
    stream.frame();
    sse.try_send(Event::comment("no number")).unwrap();
    let own = Event::message("own").id("x").unwrap();
    sse.try_send(own).unwrap();
    sse.try_send(Event::message("a")).unwrap();
    let expected = ": no number\ndata: own\nid: x\n\nid: 1\ndata: a\n\n";
    assert_eq!(stream.text(), expected);
}

#[test]
fn events_are_not_numbered_by_default() {
    let (sse, mut stream) = open(&SseLayer::new("/events"));
    sse.try_send(Event::message("a")).unwrap();
    assert!(!stream.rest().0.contains("id: "));
}

#[test]
fn envelope_is_sent_as_type_event_with_the_name_inside() {
    let layer = SseLayer::new("/events").welcome(None);
    let (sse, mut stream) = open(&layer);
    sse.try_send(Event::envelope("placed", &ORDER).unwrap())
        .unwrap();
    let expected = "event: event\n\
         data: {\"eventName\":\"placed\",\"eventPayload\":{\"id\":7,\"item\":\"tea\"}}\n\n";
    assert_eq!(stream.text(), expected);

    sse.try_send(Event::envelope("two\nlines", &[1]).unwrap())
        .unwrap();
    let expected = "event: event\n\
         data: {\"eventName\":\"two\\nlines\",\"eventPayload\":[1]}\n\n";
    assert_eq!(stream.text(), expected);
}
