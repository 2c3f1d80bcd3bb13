//! What holds for every event and every stream of bytes.
//!
//! What is sent is asked back from parsers that are not ours, in pieces cut at arbitrary places.
//! Our own decoder is compared with a model of the HTML standard, written after its text, that
//! takes the whole stream at once.

use std::time::Duration;
use support::parsers;

use parsers::{PARSERS, Received, received};
use proptest::{collection::vec, option, prelude::*, sample};
use tower_sse::{
    Event,
    event::{Decoded, Decoder, Field, MessageEvent},
};

/// What breaks encoders and parsers, between which arbitrary characters stand.
const AWKWARD: [&str; 24] = [
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\0",
    " ",
    ":",
    "",
    "\u{feff}",
    "\u{2028}",
    "\u{2029}",
    "\u{85}",
    "\u{b}",
    "\u{c}",
    "\u{1e}",
    "\u{fffd}",
    "\u{10ffff}",
    "é",
    "data: ",
    "\ndata: x\n\n",
    "\nid: 1",
    "\nevent: x",
    "\nretry: 1",
    "\n:",
];

fn any_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        sample::select(&AWKWARD[..]).prop_map(String::from),
        any::<char>().prop_map(String::from),
    ];
    vec(part, 0..12).prop_map(|parts| parts.concat())
}

fn one_line() -> impl Strategy<Value = String> {
    any_text().prop_map(|text| text.replace(['\r', '\n'], ""))
}

/// How a text arrives: each break is an LF.
fn with_lf(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

#[derive(Clone, Debug)]
enum Sent {
    Comment(String),
    Event {
        event_type: String,
        text: String,
        id: Option<String>,
        retry: Option<u32>,
    },
}

fn sent() -> impl Strategy<Value = Sent> {
    let id = one_line().prop_map(|id| id.replace('\0', ""));
    let retry = option::of(0..=i32::MAX as u32);
    prop_oneof![
        1 => any_text().prop_map(Sent::Comment),
        4 => (one_line(), any_text(), option::of(id), retry).prop_map(
            |(event_type, text, id, retry)| Sent::Event { event_type, text, id, retry }
        ),
    ]
}

impl Sent {
    fn event(&self) -> Event {
        match self {
            Self::Comment(text) => Event::comment(text),
            Self::Event {
                event_type,
                text,
                id,
                retry,
            } => {
                let mut event = Event::new(event_type, text).unwrap();
                if let Some(id) = id {
                    event = event.id(id).unwrap();
                }
                if let Some(millis) = retry {
                    event = event.retry(Duration::from_millis((*millis).into()));
                }
                event
            }
        }
    }
}

/// What a client has to see of what was sent.
fn expected(sent: &[Sent]) -> (Vec<Received>, Vec<Duration>) {
    let (mut events, mut times) = (Vec::new(), Vec::new());
    let mut last_event_id = "";
    for sent in sent {
        if let Sent::Event {
            event_type,
            text,
            id,
            retry,
        } = sent
        {
            let event_type = match event_type.as_str() {
                "" => "message",
                event_type => event_type,
            };
            last_event_id = id.as_deref().unwrap_or(last_event_id);
            events.push(received(event_type, &with_lf(text), last_event_id));
            times.extend(retry.map(|millis| Duration::from_millis(millis.into())));
        }
    }
    (events, times)
}

/// The pieces of a stream, none of them empty, cut at these places.
fn cut<'a>(stream: &'a [u8], places: &[sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = places
        .iter()
        .map(|place| place.index(stream.len() + 1))
        .collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in places.into_iter().chain([stream.len()]) {
        if start < end {
            pieces.push(&stream[start..end]);
        }
        start = end;
    }
    pieces
}

fn places() -> impl Strategy<Value = Vec<sample::Index>> {
    vec(any::<sample::Index>(), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sent_events_arrive_exactly_for_any_chunking(
        sent in vec(sent(), 0..6),
        places in places(),
    ) {
        let stream: Vec<_> = sent.iter().flat_map(|sent| sent.event().into_bytes()).collect();
        let pieces = cut(&stream, &places);
        let bytes: Vec<_> = stream.chunks(1).collect();
        let expected = expected(&sent);
        for (name, parser) in PARSERS {
            for pieces in [&[&stream[..]][..], &pieces, &bytes] {
                prop_assert_eq!(&parser(pieces), &expected, "{}: {:?}", name, pieces);
            }
        }
    }

    #[test]
    fn event_type_and_id_round_trip_or_are_refused(text in any_text()) {
        let has_break = text.contains(['\r', '\n']);
        match Event::new(&text, "") {
            Err(error) => {
                prop_assert!(has_break);
                prop_assert_eq!(error.field(), Field::EventType);
            }
            Ok(event) => {
                prop_assert!(!has_break);
                let event_type = if text.is_empty() { "message" } else { &text };
                let expected = [received(event_type, "", "")];
                prop_assert_eq!(parsers::all_receive(&event.into_bytes()), expected);
            }
        }
        match Event::message("").id(&text) {
            Err(error) => {
                prop_assert!(has_break || text.contains('\0'));
                prop_assert_eq!(error.field(), Field::Id);
            }
            Ok(event) => {
                prop_assert!(!has_break && !text.contains('\0'));
                let expected = [received("message", "", &text)];
                prop_assert_eq!(parsers::all_receive(&event.into_bytes()), expected);
            }
        }
    }

    #[test]
    fn a_comment_arrives_line_by_line(text in any_text()) {
        let mut decoder = Decoder::new();
        decoder.feed(&Event::comment(&text).into_bytes()).unwrap();
        let expected: Vec<_> = with_lf(&text)
            .split('\n')
            .map(|line| Decoded::Comment(line.into()))
            .collect();
        prop_assert_eq!(decoder.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn json_arrives_as_the_same_value(value in json(), event_type in one_line()) {
        let event = Event::json(&event_type, &value).unwrap().id("7").unwrap();
        let events = parsers::all_receive(&event.into_bytes());
        prop_assert_eq!(events.len(), 1);
        let arrived: serde_json::Value = serde_json::from_str(&events[0].data).unwrap();
        prop_assert_eq!(arrived, value);
    }

    #[test]
    fn decoder_agrees_with_the_standard(stream in any_stream(), places in places()) {
        let expected = model(&stream);
        for pieces in [vec![&stream[..]], cut(&stream, &places), stream.chunks(1).collect()] {
            let mut decoder = Decoder::new();
            for piece in &pieces {
                decoder.feed(piece).unwrap();
            }
            let found: Vec<_> = decoder.by_ref().collect();
            prop_assert_eq!(&found, &expected.0, "{:?}", pieces);
            prop_assert_eq!(decoder.last_event_id(), &expected.1, "{:?}", pieces);
        }
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;

    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |value| {
        prop_oneof![
            vec(value.clone(), 0..4).prop_map(Value::from),
            vec((any_text(), value), 0..4).prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

/// Bytes that come near to an event stream.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let tokens: [&[u8]; 23] = [
        b"data",
        b"event",
        b"id",
        b"retry",
        b"data: a",
        b"id: 1",
        b"event: e",
        b"retry: 5",
        b":",
        b": ",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"7",
        b"+",
        b"\xef\xbb\xbf",
        b"\xef",
        b"\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\xf0\x9f",
    ];
    let token = prop_oneof![
        8 => sample::select(tokens.to_vec()).prop_map(<[u8]>::to_vec),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

/// The HTML standard's section 9.2.6, word by word: what a stream dispatches, and the last event
/// id at its end.
fn model(stream: &[u8]) -> (Vec<Decoded>, String) {
    let text = String::from_utf8_lossy(stream);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = with_lf(text);
    // What follows the last line end is not a line.
    let lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let lines = if text.contains('\n') {
        lines.split('\n').collect()
    } else {
        vec![]
    };

    let mut found = Vec::new();
    let (mut data, mut event_type, mut id) = (String::new(), String::new(), String::new());
    let mut last_event_id = String::new();
    for line in lines {
        if line.is_empty() {
            last_event_id.clone_from(&id);
            if let Some(data) = data.strip_suffix('\n') {
                if event_type.is_empty() {
                    event_type.push_str("message");
                }
                found.push(Decoded::Event(MessageEvent {
                    event_type: event_type.clone(),
                    data: data.into(),
                    last_event_id: id.clone(),
                }));
            }
            data.clear();
            event_type.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => found.push(Decoded::Comment(value.into())),
            "event" => event_type = value.into(),
            "data" => data = data + value + "\n",
            "id" if !value.contains('\0') => id = value.into(),
            "retry" if !value.is_empty() && value.chars().all(|c| c.is_ascii_digit()) => {
                let millis = value.parse().unwrap_or(u64::MAX);
                found.push(Decoded::Retry(Duration::from_millis(millis)));
            }
            _ => {}
        }
    }
    (found, last_event_id)
}
