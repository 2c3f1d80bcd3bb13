//! `cargo +nightly fuzz run decode`: any bytes, cut anywhere, decode to the same as when they come
//! whole, and nothing panics.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tower_sse::event::{Decoded, Decoder};

#[derive(Arbitrary, Debug)]
struct Input {
    /// How long the pieces are; after the last one comes the rest.
    pieces: Vec<u8>,
    limit: Option<u8>,
    stream: Vec<u8>,
}

/// What was found, and the client's place, or that an event was too long.
type Outcome = (Vec<Decoded>, Option<String>);

fn decode<'a>(mut decoder: Decoder, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    for piece in pieces {
        if decoder.feed(piece).is_err() {
            return (decoder.collect(), None);
        }
    }
    let found = decoder.by_ref().collect();
    (found, Some(decoder.last_event_id().to_owned()))
}

fuzz_target!(|input: Input| {
    let decoder = match input.limit {
        Some(limit) => Decoder::with_limit(limit.into()),
        None => Decoder::new(),
    };
    let whole = decode(decoder.clone(), [input.stream.as_slice()].into_iter());

    let mut rest = input.stream.as_slice();
    let mut pieces = Vec::new();
    for length in input.pieces {
        let (piece, after) = rest.split_at(rest.len().min(length.into()));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    assert_eq!(decode(decoder.clone(), pieces.into_iter()), whole);
    assert_eq!(decode(decoder, input.stream.chunks(1)), whole);
});
