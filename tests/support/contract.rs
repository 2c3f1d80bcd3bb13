//! What every backplane has to do: the laws in the documentation of `Backplane`, as tests.
//!
//! `contract!(constructor)` makes them for one backplane; the constructor is an async function that
//! gives a log of its own, new and empty, each time, of which clones are handles. It may be told how
//! many records to retain at least.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use tower_sse::{
    backplane::{Backplane, Read, ReadError, Record, RecordStream, Start},
    broker::{Epoch, Position, TopicName},
};

/// How long each operation of a log may take: generous, because some logs are across a network and
/// machines are busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes a test of each law for the logs of a constructor.
#[macro_export]
macro_rules! contract {
    ($constructor:expr; $($law:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $law() {
            $crate::contract::$law($constructor(1000).await).await;
        }
    )*};
    ($constructor:expr) => {
        $crate::contract!($constructor;
            a_new_log_has_its_head_before_the_first_record,
            records_are_read_in_order_as_they_were_appended,
            every_reader_gets_the_same_records,
            late_reader_gets_the_retained_records,
            reader_resumes_after_its_last_record,
            a_reader_that_waits_is_woken,
            concurrent_appends_are_all_stored_in_one_order,
            an_append_that_is_not_polled_does_nothing,
            impossible_position_is_reported_as_rewritten,
            log_keeps_its_epoch_and_tags_each_record,
            any_topic_name_and_bytes_round_trip,
        );
        #[tokio::test]
        async fn loss_is_reported_before_the_next_record() {
            $crate::contract::loss_is_reported_before_the_next_record($constructor(4).await).await;
        }
        #[tokio::test]
        async fn two_logs_share_no_records() {
            let logs = ($constructor(1000).await, $constructor(1000).await);
            $crate::contract::two_logs_share_no_records(logs.0, logs.1).await;
        }
    };
}

fn record(topic: &str, text: &str) -> Record {
    Record::new(
        TopicName::try_from(topic).unwrap(),
        format!("data: {text}\n").into_bytes(),
    )
}

async fn within<F: Future>(what: F) -> F::Output {
    timeout(LIMIT, what).await.expect("the log takes too long")
}

async fn append(log: &impl Backplane, text: &str) -> Position {
    within(log.append(record("topic", text))).await.unwrap()
}

async fn read(log: &impl Backplane, start: Start) -> RecordStream {
    within(log.read(start)).await.unwrap()
}

async fn next(stream: &mut RecordStream) -> Result<Read, ReadError> {
    within(stream.next()).await.expect("the log has ended")
}

async fn next_record(stream: &mut RecordStream) -> (Position, Record) {
    match next(stream).await.unwrap() {
        Read::Record(position, record) => (position, record),
        other => panic!("{other:?} where a record was to come"),
    }
}

async fn records(stream: &mut RecordStream, count: usize) -> Vec<(Position, Record)> {
    let mut got = Vec::new();
    for _ in 0..count {
        got.push(next_record(stream).await);
    }
    got
}

pub async fn a_new_log_has_its_head_before_the_first_record(log: impl Backplane) {
    let head = within(log.head()).await.unwrap();
    assert_eq!((head.offset(), head.tag()), (0, 0));
    let first = append(&log, "1").await;
    assert_eq!(first.epoch(), head.epoch());
    assert!(first.offset() > 0);
    assert_eq!(within(log.head()).await.unwrap(), first);
}

pub async fn records_are_read_in_order_as_they_were_appended(log: impl Backplane) {
    let mut stream = read(&log, Start::Window).await;
    let mut appended = Vec::new();
    for number in 0..100 {
        let record = record(["a", "b"][number % 2], &number.to_string());
        let position = within(log.append(record.clone())).await.unwrap();
        appended.push((position, record));
    }
    assert!(appended.is_sorted_by(|a, b| a.0.offset() < b.0.offset()));
    assert_eq!(records(&mut stream, 100).await, appended);
}

pub async fn every_reader_gets_the_same_records(log: impl Backplane) {
    let mut first = read(&log, Start::Window).await;
    append(&log, "1").await;
    let mut second = read(&log, Start::Window).await;
    append(&log, "2").await;
    let got = records(&mut first, 2).await;
    assert_eq!(records(&mut second, 2).await, got);
}

pub async fn late_reader_gets_the_retained_records(log: impl Backplane) {
    for text in ["1", "2", "3"] {
        append(&log, text).await;
    }
    let mut stream = read(&log, Start::Window).await;
    let got = records(&mut stream, 3).await;
    let lines: Vec<_> = got.iter().map(|(_, record)| &record.lines()[..]).collect();
    assert_eq!(lines, [b"data: 1\n", b"data: 2\n", b"data: 3\n"]);
    // It reaches the head without anything being appended.
    assert_eq!(got[2].0, within(log.head()).await.unwrap());
}

pub async fn reader_resumes_after_its_last_record(log: impl Backplane) {
    let start = within(log.head()).await.unwrap();
    append(&log, "1").await;
    let mut stream = read(&log, Start::After(start)).await;
    let (last, _) = next_record(&mut stream).await;
    drop(stream);
    append(&log, "2").await;
    append(&log, "3").await;
    let mut stream = read(&log, Start::After(last)).await;
    let got = records(&mut stream, 2).await;
    assert_eq!(&got[0].1.lines()[..], b"data: 2\n");
    assert_eq!(&got[1].1.lines()[..], b"data: 3\n");
    // At the head there is nothing to get again.
    let mut stream = read(&log, Start::After(got[1].0)).await;
    let fourth = append(&log, "4").await;
    assert_eq!(next_record(&mut stream).await.0, fourth);
}

pub async fn a_reader_that_waits_is_woken(log: impl Backplane) {
    let mut stream = read(&log, Start::Window).await;
    let waiting = tokio::spawn(async move { next_record(&mut stream).await.0 });
    tokio::task::yield_now().await;
    let position = append(&log, "1").await;
    assert_eq!(waiting.await.unwrap(), position);
}

pub async fn concurrent_appends_are_all_stored_in_one_order(log: impl Backplane) {
    let mut stream = read(&log, Start::Window).await;
    let texts: Vec<_> = (0..50).map(|number| number.to_string()).collect();
    let appends = texts.iter().map(|text| append(&log, text));
    let positions = futures_util::future::join_all(appends).await;
    let mut appended: Vec<_> = positions.into_iter().zip(&texts).collect();
    appended.sort_by_key(|(position, _)| position.offset());
    let got = records(&mut stream, 50).await;
    for ((position, record), expected) in got.iter().zip(appended) {
        let text = std::str::from_utf8(record.lines()).unwrap();
        assert_eq!(
            (*position, text),
            (expected.0, &*format!("data: {}\n", expected.1))
        );
    }
}

pub async fn an_append_that_is_not_polled_does_nothing(log: impl Backplane) {
    let mut stream = read(&log, Start::Window).await;
    drop(log.append(record("topic", "dropped")));
    let position = append(&log, "1").await;
    assert_eq!(next_record(&mut stream).await.0, position);
}

pub async fn impossible_position_is_reported_as_rewritten(log: impl Backplane) {
    append(&log, "1").await;
    let head = append(&log, "2").await;
    let other_epoch = Epoch::new(head.epoch().value() ^ 1);
    let places = [
        Position::new(other_epoch, head.offset(), head.tag()),
        Position::new(head.epoch(), head.offset() + 10, head.tag()),
        Position::new(head.epoch(), head.offset(), head.tag() ^ 1),
    ];
    // A log that is never rewritten within an epoch need not know its tags.
    let count = if log.may_be_rewritten() { 3 } else { 2 };
    for place in &places[..count] {
        let error = match within(log.read(Start::After(*place))).await {
            Ok(mut stream) => next(&mut stream).await.err(),
            Err(error) => Some(error),
        };
        let is_rewritten = error.as_ref().is_some_and(ReadError::is_rewritten);
        assert!(is_rewritten, "{place}: {error:?}");
    }
}

pub async fn log_keeps_its_epoch_and_tags_each_record(log: impl Backplane) {
    let mut tags = Vec::new();
    let mut last = within(log.head()).await.unwrap();
    for number in 0..20 {
        let position = append(&log, &number.to_string()).await;
        assert_eq!(position.epoch(), last.epoch());
        tags.push(position.tag());
        last = position;
    }
    tags.sort_unstable();
    tags.dedup();
    // Random: two may be the same, once in many million runs.
    assert!(tags.len() >= 19, "{tags:?}");
}

pub async fn any_topic_name_and_bytes_round_trip(log: impl Backplane) {
    let long = "x".repeat(256);
    let names = [
        "*", ">", "a.b..c", "{x}", " ", "a b", "\u{e4}", "a\0b", "a\r\nb", "$", "..", &long,
    ];
    let mut stream = read(&log, Start::Window).await;
    let bytes: Vec<u8> = (0..=255).collect();
    for name in names {
        let record = Record::new(TopicName::try_from(name).unwrap(), bytes.clone());
        within(log.append(record.clone())).await.unwrap();
        assert_eq!(next_record(&mut stream).await.1, record);
    }
}

/// Of a log that retains four records, or some more.
pub async fn loss_is_reported_before_the_next_record(log: impl Backplane) {
    let first = append(&log, "first").await;
    let mut positions = vec![first];
    // Logs may drop in blocks, and late.
    for number in 0..1000 {
        positions.push(append(&log, &number.to_string()).await);
    }
    for start in [Start::Window, Start::After(first)] {
        let mut stream = read(&log, start).await;
        let lost = match next(&mut stream).await.unwrap() {
            Read::Lost(position) => position,
            other => panic!("{other:?} where a loss was to be told"),
        };
        let at = positions.iter().position(|it| it.offset() > lost.offset());
        let rest = &positions[at.expect("four are retained")..];
        assert!((4..=500).contains(&rest.len()), "{} retained", rest.len());
        let got = records(&mut stream, rest.len()).await;
        assert!(got.iter().map(|(position, _)| position).eq(rest));
    }
}

pub async fn two_logs_share_no_records(one: impl Backplane, other: impl Backplane) {
    let mut stream = read(&one, Start::Window).await;
    let elsewhere = append(&other, "elsewhere").await;
    let here = append(&one, "here").await;
    assert_ne!(here.epoch(), elsewhere.epoch());
    assert_eq!(next_record(&mut stream).await.0, here);
}
