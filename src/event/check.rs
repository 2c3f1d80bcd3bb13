//! Looks at the lines of an event that another program may have written, before a client gets them.

use memchr::memchr;

use super::encode::MAX_RETRY;

/// Whether these are the lines of one event that a client would dispatch: UTF-8, each line ended by
/// one LF, no other line break, no blank line, no `id`, and some data. Its types have to be admitted.
pub(crate) fn are_of_one_event(lines: &[u8], mut admits_type: impl FnMut(&str) -> bool) -> bool {
    let Ok(text) = std::str::from_utf8(lines) else {
        return false;
    };
    let Some(text) = text.strip_suffix('\n') else {
        return false;
    };
    let mut has_data = false;
    let mut is_fit = |line: &str| {
        let Some((name, value)) = line.split_once(':') else {
            return false;
        };
        match name {
            "" => true,
            "data" => {
                has_data = true;
                true
            }
            "event" => admits_type(value.strip_prefix(' ').unwrap_or(value)),
            "retry" => is_retry(value.strip_prefix(' ').unwrap_or(value)),
            _ => false,
        }
    };
    memchr(b'\r', lines).is_none() && text.split('\n').all(&mut is_fit) && has_data
}

fn is_retry(value: &str) -> bool {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    let millis: Option<u128> = value.parse().ok();
    is_number && millis.is_some_and(|millis| millis <= MAX_RETRY.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;
    use proptest::prelude::*;
    use std::time::Duration;

    fn is_admitted(lines: &[u8]) -> bool {
        are_of_one_event(lines, |event_type| event_type != "gap")
    }

    #[test]
    fn lines_that_are_not_exactly_one_event_are_refused() {
        let bad: [&[u8]; 24] = [
            b"",
            b"\n",
            b"data: x",
            b"data: x\r\n",
            b"data: x\rdata: y\n",
            b"data: x\n\n",
            b"\ndata: x\n",
            b"data: x\n\ndata: y\n",
            b"data: \xff\n",
            b"event: x\n",
            b": comment\n",
            b"data\n",
            b"id: 1\ndata: x\n",
            b"data: x\nid\n",
            b"Data: x\n",
            b" data: x\n",
            b"\xef\xbb\xbfdata: x\n",
            b"other: x\ndata: x\n",
            b"event: gap\ndata: x\n",
            b"event:gap\ndata: x\n",
            b"event: x\nevent: gap\ndata: x\n",
            b"retry: 1s\ndata: x\n",
            b"retry: +1\ndata: x\n",
            b"retry: 99999999999\ndata: x\n",
        ];
        for lines in bad {
            assert!(!is_admitted(lines), "{:?}", String::from_utf8_lossy(lines));
        }
    }

    proptest! {
        #[test]
        fn every_built_event_passes_the_check(
            event_type in "[^\r\n]{0,20}",
            text in "(?s).{0,100}",
            comment in prop::option::of("(?s).{0,20}"),
            retry in prop::option::of(any::<u64>()),
        ) {
            prop_assume!(event_type != "gap");
            let mut event = Event::new(&event_type, text).unwrap();
            if let Some(retry) = retry {
                event = event.retry(Duration::from_millis(retry));
            }
            let mut lines = comment.map(|it| Event::comment(it).into_lines().to_vec()).unwrap_or_default();
            lines.extend_from_slice(&event.into_lines());
            prop_assert!(is_admitted(&lines), "{:?}", String::from_utf8_lossy(&lines));
        }
    }
}
