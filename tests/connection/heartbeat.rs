//! Heartbeats: when nothing else was sent, and only then.

use super::{paths, rules};
use http::Request;
use rules::{Notes, open};
use std::{ops::RangeInclusive, time::Duration};
use support::Held;
use tokio::{
    runtime,
    time::{Instant, timeout},
};
use tower_sse::{
    Connections, Event, SseConnection, SseLayer,
    test_util::{EventReader, ReadError},
};

const BEAT: &[u8] = b":\n";
const TICK: Duration = Duration::from_millis(64);

fn layer() -> SseLayer {
    paths::without_welcome(SseLayer::new("/")).stall_timeout(None)
}

async fn connect(layer: &SseLayer) -> (SseConnection, EventReader) {
    let (sse, events) = paths::connection_of(layer, Request::default()).await;
    (sse, events.time_limit(Duration::from_secs(1_000_000)))
}

/// A heartbeat is never early, and at most one tick of the clock late.
fn about(time: Duration) -> RangeInclusive<Duration> {
    time..=time + TICK
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn heartbeat_is_an_empty_comment_after_15_silent_seconds() {
    let (_sse, mut events) = connect(&layer()).await;
    for _ in 0..5 {
        let since = Instant::now();
        assert_eq!(events.frame().await.unwrap(), BEAT);
        let time = since.elapsed();
        assert!(about(seconds(15)).contains(&time), "{time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeat_interval_is_configurable() {
    for time in [64, 100, 1_000, 60_000, 3_600_000] {
        let time = Duration::from_millis(time);
        let (_sse, mut events) = connect(&layer().keep_alive(time)).await;
        let since = Instant::now();
        assert_eq!(events.frame().await.unwrap(), BEAT);
        let passed = since.elapsed();
        assert!(about(time).contains(&passed), "{time:?}: {passed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn interval_is_kept_to_one_tick_of_the_clock() {
    let short = layer().keep_alive(Duration::from_nanos(1));
    let (_sse, mut events) = connect(&short).await;
    let since = Instant::now();
    assert_eq!(events.frame().await.unwrap(), BEAT);
    assert!(about(TICK).contains(&since.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn interval_of_two_days_is_kept() {
    let (_sse, mut events) = connect(&layer().keep_alive(seconds(2 * 86_400))).await;
    let since = Instant::now();
    assert_eq!(events.frame().await.unwrap(), BEAT);
    assert!(about(seconds(2 * 86_400)).contains(&since.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn silence_is_measured_from_the_last_bytes() {
    let (sse, mut events) = connect(&layer()).await;
    for after in [1, 14, 7] {
        tokio::time::sleep(seconds(after)).await;
        sse.send(Event::message("a")).await.unwrap();
        assert_eq!(events.frame().await.unwrap(), "data: a\n\n");
    }
    let since = Instant::now();
    assert_eq!(events.frame().await.unwrap(), BEAT);
    let time = since.elapsed();
    assert!(about(seconds(15)).contains(&time), "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn silence_is_measured_from_the_welcome() {
    let (_sse, mut events) = connect(&SseLayer::new("/")).await;
    assert!(events.frame().await.unwrap().starts_with(b"event: welcome"));
    let since = Instant::now();
    assert_eq!(events.frame().await.unwrap(), BEAT);
    assert!(about(seconds(15)).contains(&since.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_never_silent_has_no_heartbeats() {
    let (sse, mut events) = connect(&layer()).await;
    for _ in 0..100 {
        tokio::time::sleep(seconds(14)).await;
        sse.send(Event::message("a")).await.unwrap();
        assert_eq!(events.frame().await.unwrap(), "data: a\n\n");
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_one_heartbeat_is_queued_while_unpolled() {
    let (_sse, mut events) = connect(&layer()).await;
    tokio::time::sleep(seconds(1_000)).await;
    assert_eq!(events.frame().await.unwrap(), BEAT);
    let since = Instant::now();
    assert_eq!(events.frame().await.unwrap(), BEAT);
    let time = since.elapsed();
    assert!(about(seconds(15)).contains(&time), "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn queued_heartbeat_is_replaced_by_an_event() {
    let (sse, mut events) = connect(&layer()).await;
    tokio::time::sleep(seconds(20)).await;
    sse.send(Event::message("a")).await.unwrap();
    assert_eq!(events.frame().await.unwrap(), "data: a\n\n");
    let since = Instant::now();
    assert_eq!(events.frame().await.unwrap(), BEAT);
    assert!(about(seconds(15)).contains(&since.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_closed_sends_no_heartbeat_before_its_end() {
    let (sse, mut events) = connect(&layer()).await;
    tokio::time::sleep(seconds(10)).await;
    sse.close();
    tokio::time::sleep(seconds(100)).await;
    assert!(matches!(events.frame().await, Err(ReadError::Ended)));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_extend_the_time_limit_of_a_reader() {
    let (_sse, events) = connect(&layer()).await;
    let mut events = events.time_limit(seconds(100));
    let begin = Instant::now();
    let event = timeout(seconds(1000), events.event()).await;
    assert!(
        matches!(event, Ok(Err(ReadError::TimedOut(_)))),
        "{event:?}"
    );
    assert_eq!(begin.elapsed(), seconds(100));
    let end = timeout(seconds(1000), events.end()).await;
    assert!(matches!(end, Ok(Err(ReadError::TimedOut(_)))), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn no_heartbeats_without_keep_alive() {
    let (_sse, events) = connect(&layer().keep_alive(None)).await;
    let mut events = events.time_limit(seconds(100_000));
    assert!(matches!(events.frame().await, Err(ReadError::TimedOut(_))));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_begin_at_start_while_the_handler_runs() {
    let notes = Notes::default();
    let layer = notes.on(layer()).accept(async |sse, _| {
        tokio::time::sleep(seconds(100)).await;
        sse.start();
        tokio::time::sleep(seconds(40)).await;
        let _ = sse.send(Event::message("done")).await;
        Ok(())
    });
    let inner = tower::service_fn(async |_: Request<()>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Empty::new()))
    });
    let service = tower::Layer::layer(&layer, inner);
    let response = paths::read(service, Request::default()).await.unwrap();
    let mut events = response.into_body().time_limit(seconds(100));
    for expected in [BEAT, BEAT, b"data: done\n\n"] {
        assert_eq!(events.frame().await.unwrap(), expected);
    }
    assert!(matches!(events.frame().await, Err(ReadError::Ended)));
}

#[tokio::test(start_paused = true)]
async fn each_connection_keeps_its_own_heartbeat_interval() {
    let connections = Connections::new();
    let slow = layer().registry(&connections).keep_alive(seconds(40));
    let fast = layer().registry(&connections).keep_alive(seconds(7));
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..200_u64 {
        let (layer, time) = if number % 2 == 0 {
            (&slow, 40)
        } else {
            (&fast, 7)
        };
        let (sse, mut events) = connect(layer).await;
        let opened = Instant::now();
        readers.spawn(async move {
            let _sse = sse;
            for beat in 1..=10_u32 {
                assert_eq!(events.frame().await.unwrap(), BEAT);
                let expected = seconds(time) * beat;
                let passed = opened.elapsed();
                let range = expected..=expected + TICK * beat;
                assert!(range.contains(&passed), "{expected:?}: {passed:?}");
            }
        });
        tokio::time::sleep(Duration::from_millis(37)).await;
    }
    while let Some(joined) = readers.join_next().await {
        joined.unwrap();
    }
    assert_eq!(connections.held(), 0);
}

// ===== runtimes =====

fn paused_runtime() -> runtime::Runtime {
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

#[test]
fn registry_outlives_the_runtime_of_its_heartbeats() {
    let layer = layer();
    let first = paused_runtime();
    let (kept, mut events) = first.block_on(async {
        let (sse, mut events) = connect(&layer).await;
        assert_eq!(events.frame().await.unwrap(), BEAT);
        (sse, events)
    });
    drop(first);
    kept.try_send(Event::message("between")).unwrap();

    paused_runtime().block_on(async {
        assert_eq!(events.frame().await.unwrap(), "data: between\n\n");
        let (_sse, mut others) = connect(&layer).await;
        assert_eq!(others.frame().await.unwrap(), BEAT);
        assert_eq!(
            events.frame().await.unwrap(),
            BEAT,
            "the old one beats again, too"
        );
    });
}

#[test]
fn connection_without_a_runtime_works_without_heartbeats() {
    let layer = paths::without_welcome(SseLayer::new("/events"));
    let (sse, mut stream) = open(&layer);
    stream.assert_waits();
    sse.try_send(Event::message("a")).unwrap();
    assert_eq!(stream.text(), "data: a\n\n");
    drop(sse);
    stream.rest().1.assert_ended();
    assert_eq!(layer.registered().held(), 0);
}

#[test]
fn connection_in_a_stopped_runtime_works_without_heartbeats() {
    let runtime = paused_runtime();
    let handle = runtime.handle().clone();
    drop(runtime);
    let layer = paths::without_welcome(SseLayer::new("/events"));
    let (opened, done) = std::sync::mpsc::channel();
    // On a thread of its own, so that a hang is a failure.
    std::thread::spawn(move || {
        let _entered = handle.enter();
        let (sse, mut stream) = open(&layer);
        sse.try_send(Event::message("a")).unwrap();
        let frame = stream.text();
        drop(stream);
        opened.send((frame, layer.registered().len())).unwrap();
    });
    let done = done.recv_timeout(seconds(30)).expect("it does not hang");
    assert_eq!(done, ("data: a\n\n".to_owned(), 0));
}

#[test]
fn connection_without_timers_works_without_heartbeats() {
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let layer = paths::without_welcome(SseLayer::new("/events"));
    runtime.block_on(async {
        for _ in 0..2 {
            let (sse, mut stream) = open(&layer);
            tokio::task::yield_now().await;
            sse.try_send(Event::message("a")).unwrap();
            assert_eq!(stream.text(), "data: a\n\n");
            drop(sse);
            stream.rest().1.assert_ended();
        }
    });
    assert_eq!(layer.registered().held(), 0);
}
