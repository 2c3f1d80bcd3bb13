//! `cargo +nightly fuzz run encode`: every event is refused for a reason, or decodes to what was
//! sent, and to nothing else.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tower_sse::{
    Event,
    event::{Decoded, Decoder, EventError, Field, MessageEvent},
};

#[derive(Arbitrary, Debug)]
enum Sent {
    Comment(String),
    Event {
        event_type: String,
        /// Written so many times: breaks behind the first few KiB take another way.
        text: (String, u16),
        id: Option<String>,
        retry: Option<Duration>,
    },
}

fn text_of((text, times): &(String, u16)) -> String {
    text.repeat(usize::from(*times).min(1 + 40_000 / text.len().max(1)))
}

fn event(sent: &Sent) -> Result<Event, EventError> {
    match sent {
        Sent::Comment(text) => Ok(Event::comment(text)),
        Sent::Event {
            event_type,
            text,
            id,
            retry,
        } => {
            let mut event = Event::new(event_type, text_of(text))?;
            if let Some(id) = id {
                event = event.id(id)?;
            }
            if let Some(time) = retry {
                event = event.retry(*time);
            }
            Ok(event)
        }
    }
}

fn is_justified(error: &EventError, sent: &Sent) -> bool {
    let Sent::Event { event_type, id, .. } = sent else {
        return false;
    };
    match error.field() {
        Field::EventType => event_type.contains(['\r', '\n']),
        Field::Id => id
            .as_ref()
            .is_some_and(|id| id.contains(['\r', '\n', '\0'])),
        _ => false,
    }
}

fn with_lf(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fuzz_target!(|all: Vec<Sent>| {
    let mut stream = Vec::new();
    let mut expected = Vec::new();
    let mut last_event_id = String::new();
    for sent in all {
        let event = match event(&sent) {
            Ok(event) => event,
            Err(error) => {
                assert!(is_justified(&error, &sent), "{error}: {sent:?}");
                continue;
            }
        };
        stream.extend_from_slice(&event.into_bytes());
        match sent {
            Sent::Comment(text) => {
                let text = with_lf(&text);
                let lines = text.split('\n');
                expected.extend(lines.map(|line| Decoded::Comment(line.to_owned())));
            }
            Sent::Event {
                mut event_type,
                text,
                id,
                retry,
            } => {
                if event_type.is_empty() {
                    event_type.push_str("message");
                }
                if let Some(id) = id {
                    last_event_id = id;
                }
                let longest = Duration::from_millis(i32::MAX as u64);
                expected.extend(retry.map(|time| {
                    let millis = time.min(longest).as_millis();
                    Decoded::Retry(Duration::from_millis(millis as u64))
                }));
                expected.push(Decoded::Event(MessageEvent {
                    event_type,
                    data: with_lf(&text_of(&text)),
                    last_event_id: last_event_id.clone(),
                }));
            }
        }
    }

    let mut decoder = Decoder::new();
    decoder.feed(&stream).unwrap();
    let found: Vec<_> = decoder.by_ref().collect();
    assert_eq!(found, expected);
    assert_eq!(decoder.last_event_id(), last_event_id);
});
