//! Three parsers of event streams, of which two are not ours, with one face.

#![allow(dead_code)] // Each test file uses its part.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use eventsource_stream::Eventsource;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tower_sse::{
    Event,
    event::{Decoded, Decoder},
};

/// Texts of one line that are easily broken on their way.
pub const ONE_LINE: [&str; 17] = [
    "",
    " ",
    " leading space",
    "  two of them",
    "trailing space ",
    ":",
    ": no comment",
    "data: no field",
    "\u{feff}byte order mark",
    "line\u{2028}separator",
    "paragraph\u{2029}separator",
    "next\u{85}line",
    "vertical\u{b}tab, form\u{c}feed",
    "\u{1c}\u{1d}\u{1e} separators",
    "\t",
    "ünïcödé 😀 e\u{301}",
    "[DONE]",
];

/// What a client was told: all that its code can see of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub event_type: String,
    pub data: String,
    pub last_event_id: String,
}

pub fn received(event_type: &str, data: &str, last_event_id: &str) -> Received {
    Received {
        event_type: event_type.into(),
        data: data.into(),
        last_event_id: last_event_id.into(),
    }
}

/// A parser: takes the stream in pieces, gives the events and the reconnection times.
pub type Parser = fn(&[&[u8]]) -> (Vec<Received>, Vec<Duration>);

pub const PARSERS: [(&str, Parser); 3] = [
    ("tower-sse", ours),
    ("eventsource-stream", eventsource_stream),
    ("sse-stream", sse_stream),
];

pub fn ours(pieces: &[&[u8]]) -> (Vec<Received>, Vec<Duration>) {
    let (mut events, mut times) = (Vec::new(), Vec::new());
    let mut decoder = Decoder::new();
    for piece in pieces {
        decoder.feed(piece).unwrap();
        for decoded in &mut decoder {
            match decoded {
                Decoded::Event(event) => {
                    events.push(received(
                        &event.event_type,
                        &event.data,
                        &event.last_event_id,
                    ));
                }
                Decoded::Retry(time) => times.push(time),
                _ => {}
            }
        }
    }
    (events, times)
}

pub fn eventsource_stream(pieces: &[&[u8]]) -> (Vec<Received>, Vec<Duration>) {
    let events: Vec<_> = stream::iter(pieces)
        .map(|piece| Ok::<_, Infallible>(*piece))
        .eventsource()
        .try_collect()
        .now_or_never()
        .expect("all pieces are there")
        .expect("eventsource-stream understands the stream");
    let times = events.iter().filter_map(|event| event.retry).collect();
    let events = events
        .iter()
        .map(|event| received(&event.event, &event.data, &event.id))
        .collect();
    (events, times)
}

pub fn sse_stream(pieces: &[&[u8]]) -> (Vec<Received>, Vec<Duration>) {
    let pieces =
        stream::iter(pieces).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)));
    let blocks: Vec<_> = sse_stream::SseByteStream::new(pieces)
        .try_collect()
        .now_or_never()
        .expect("all pieces are there")
        .expect("sse-stream understands the stream");

    // It gives the blocks as they are; what a client makes of them is left to us.
    let (mut events, mut times) = (Vec::new(), Vec::new());
    let mut last_event_id = String::new();
    for block in blocks {
        times.extend(block.retry.map(Duration::from_millis));
        if let Some(id) = block.id {
            last_event_id = id;
        }
        if let Some(data) = block.data {
            let event_type = block.event.filter(|event_type| !event_type.is_empty());
            let event_type = event_type.as_deref().unwrap_or("message");
            events.push(received(event_type, &data, &last_event_id));
        }
    }
    (events, times)
}

/// Asks all parsers, with the stream whole and byte by byte (a long one in sixteen pieces, since
/// one of the parsers reads a line anew with each piece), and gives the events on which they agree.
pub fn all_receive(wire: &[u8]) -> Vec<Received> {
    let size = if wire.len() < 1024 {
        1
    } else {
        wire.len() / 16
    };
    let pieces: Vec<_> = wire.chunks(size).collect();
    let (expected, _) = ours(&[wire]);
    for (name, parser) in PARSERS {
        assert_eq!(parser(&[wire]).0, expected, "{name}, whole: {wire:?}");
        assert_eq!(parser(&pieces).0, expected, "{name}, in pieces: {wire:?}");
    }
    expected
}

/// An event as it stands on the wire.
pub fn wire(event: Event) -> String {
    String::from_utf8(event.into_bytes().to_vec()).expect("the wire is UTF-8")
}

/// The one event that all parsers read.
pub fn arrived(event: Event) -> Received {
    let mut events = all_receive(&event.into_bytes());
    let event = events.pop().expect("an event");
    assert_eq!(events, []);
    event
}
