//! Drains: every stream ends on purpose, spread over time, and its client knows when to come back.

use super::{paths, timed};
use futures_util::future::join_all;
use paths::connection_of;
use std::{collections::HashSet, future::pending, time::Duration};
use support::Held;
use timed::{
    Reading, TICK, answer, bare, connect, handled, read, reader, request, seconds, settle, text,
};
use tokio::time::{Instant, sleep};
use tower_sse::{Broker, CloseReason, Connections, SseConnection, event::EventType};

const DRAINED: &str = r#"reconnect: {"reason":"drained"}"#;

async fn readings(readers: Vec<tokio::task::JoinHandle<Reading>>) -> Vec<Reading> {
    let joined = join_all(readers).await.into_iter();
    joined.map(Result::unwrap).collect()
}

// ===== streams whose handler has answered =====

#[tokio::test(start_paused = true)]
async fn streams_end_cleanly_spread_out_with_a_retry_delay() {
    let connections = Connections::new();
    let layer = bare(&connections);
    let (mut handles, mut readers) = (Vec::new(), Vec::new());
    for _ in 0..1_000 {
        let (sse, events) = connect(&layer).await;
        sse.try_send(text("queued")).unwrap();
        readers.push(tokio::spawn(read(events)));
        handles.push(sse);
    }
    settle().await;
    assert!(!connections.is_draining());
    let began = Instant::now();
    let drain = connections.drain().over(seconds(10)).deadline(seconds(20));
    let drained = drain.retry(seconds(2)..=seconds(4)).await;
    assert_eq!((drained.ended, drained.aborted), (1_000, 0));
    assert!(began.elapsed() <= seconds(10) + TICK);
    assert_eq!(connections.held(), 0);

    let (mut per_second, mut retries) = ([0; 10], HashSet::new());
    for reading in readings(readers).await {
        reading.assert_clean();
        assert_eq!(reading.texts(), ["message: queued", DRAINED]);
        let [retry] = reading.retries[..] else {
            panic!("{reading:?}");
        };
        assert!((seconds(2)..=seconds(4)).contains(&retry), "{retry:?}");
        retries.insert(retry);
        let second = (reading.ended - began).as_secs() as usize;
        per_second[second.min(9)] += 1;
    }
    assert!(retries.len() > 300, "{} different times", retries.len());
    // More than five standard deviations to either side.
    assert!(
        per_second.iter().all(|count| (50..=150).contains(count)),
        "{per_second:?}"
    );
    for sse in handles {
        assert_eq!(sse.closed().await, CloseReason::Drained);
        let error = sse.try_send(text("late")).unwrap_err();
        assert!(error.to_string().contains("shutting down"), "{error}");
    }
    assert_eq!(connections.stats().closed(CloseReason::Drained), 1_000);
}

#[tokio::test(start_paused = true)]
async fn reconnect_event_can_be_renamed_or_disabled() {
    let connections = Connections::new();
    let named = bare(&connections).reconnect_event(EventType::from_static("moved"));
    let unnamed = bare(&connections).reconnect_event(None);
    let (_named, events) = connect(&named).await;
    let first = tokio::spawn(read(events));
    let (_unnamed, events) = connect(&unnamed).await;
    let second = tokio::spawn(read(events));
    let drained = connections.drain().over(Duration::ZERO).await;
    assert_eq!((drained.ended, drained.aborted), (2, 0));

    let first = first.await.unwrap();
    assert_eq!(first.texts(), [r#"moved: {"reason":"drained"}"#]);
    assert_eq!(first.retries.len(), 1);
    let second = second.await.unwrap();
    assert_eq!(second.texts(), [""; 0]);
    assert_eq!((second.retries.len(), second.comments), (0, 0));
    first.assert_clean();
    second.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn the_last_event_of_a_numbered_stream_has_the_next_number() {
    let connections = Connections::new();
    let (sse, events) = connect(&bare(&connections).numbered(true)).await;
    sse.try_send(text("a")).unwrap();
    sse.try_send(text("b")).unwrap();
    let reading = tokio::spawn(read(events));
    connections.drain().over(Duration::ZERO).await;
    let reading = reading.await.unwrap();
    assert_eq!(reading.texts(), ["message: a", "message: b", DRAINED]);
    let ids: Vec<_> = reading.events.iter().map(|it| &it.last_event_id).collect();
    // The beginning of a direct stream has the first of all.
    let first = usize::from(paths::is_direct());
    let expected = [first, first + 1, first + 2].map(|number| number.to_string());
    assert_eq!(ids, expected.each_ref());
}

#[tokio::test(start_paused = true)]
async fn close_with_event_carries_the_retry_delay_of_the_drain() {
    let connections = Connections::new();
    let layer = handled(&bare(&connections), async |sse: SseConnection| {
        sse.start();
        sse.ending().await;
        sse.close_with(text("bye")).unwrap();
        Ok(())
    });
    let reading = reader(&layer);
    settle().await;
    connections.drain().over(Duration::ZERO).await;
    let reading = reading.await.unwrap();
    reading.assert_clean();
    assert_eq!(reading.texts(), ["message: bye"]);
    assert_eq!(reading.retries.len(), 1);
    assert_eq!(connections.stats().closed(CloseReason::Drained), 1);
}

#[tokio::test(start_paused = true)]
async fn drained_subscribers_resume_without_loss() {
    let connections = Connections::new();
    let broker = Broker::in_memory();
    let publisher = tokio::spawn({
        let broker = broker.clone();
        async move {
            for number in 0..500 {
                let event = text(&number.to_string());
                broker.publish("a", event).await.unwrap();
                sleep(Duration::from_millis(10)).await;
            }
        }
    });
    let mut readers = Vec::new();
    for _ in 0..50 {
        let (sse, events) = connect(&bare(&connections)).await;
        broker.subscribe(&sse, "a").await.unwrap().start();
        readers.push(tokio::spawn(read(events)));
    }
    sleep(seconds(1)).await;
    let drained = connections.drain().over(seconds(3)).await;
    assert_eq!((drained.ended, drained.aborted), (50, 0));
    publisher.await.unwrap();
    assert_eq!(broker.subscriber_count("a").unwrap(), 0);

    let elsewhere = Connections::new();
    let mut places = HashSet::new();
    for reading in readings(readers).await {
        reading.assert_clean();
        assert_eq!(reading.texts().last().unwrap(), DRAINED);
        let place = reading.events.last().unwrap().last_event_id.clone();
        let texts = |reading: &Reading| {
            let events = reading.events.iter();
            let messages = events.filter(|event| event.event_type == "message");
            messages.map(|it| it.data.clone()).collect::<Vec<_>>()
        };
        let mut got = texts(&reading);
        places.insert(place.clone());

        let mut again = request();
        again
            .headers_mut()
            .insert("last-event-id", place.parse().unwrap());
        let layer = bare(&elsewhere);
        let (sse, events) = connection_of(&layer, again).await;
        let subscribed = broker.subscribe(&sse, "a").await.unwrap();
        assert!(subscribed.is_exact());
        subscribed.start();
        let rest = tokio::spawn(read(events));
        settle().await;
        sse.close();
        got.extend(texts(&rest.await.unwrap()));
        let expected: Vec<_> = (0..500).map(|number| number.to_string()).collect();
        assert_eq!(got, expected[500 - got.len()..]);
    }
    assert!(places.len() > 10, "they left at {} places", places.len());
}

// ===== what comes while it drains =====

#[tokio::test(start_paused = true)]
async fn draining_registry_refuses_new_streams() {
    let connections = Connections::new();
    let layer = bare(&connections);
    let (sse, events) = connect(&layer).await;
    let drain = connections.drain();
    assert!(!connections.is_draining(), "nothing has polled it");
    let drain = tokio::spawn(drain.into_future());
    settle().await;
    assert!(connections.is_draining());
    assert!(!Connections::new().is_draining());

    let refused = read(answer(&layer, request()).await.into_body()).await;
    assert_eq!(refused.texts(), [r#"reconnect: {"reason":"draining"}"#]);
    assert_eq!((connections.len(), connections.stats().refused), (1, 1));
    sse.close();
    drop(events);
    drain.await.unwrap();
    assert!(connections.is_draining(), "it is not taken back");
}

#[tokio::test(start_paused = true)]
async fn an_empty_registry_is_drained_at_once() {
    let connections = Connections::new();
    let began = Instant::now();
    let drained = connections.drain().await;
    assert_eq!((drained.ended, drained.aborted), (0, 0));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(connections.is_draining());
}

#[tokio::test(start_paused = true)]
async fn drain_continues_after_its_future_is_dropped() {
    let connections = Connections::new();
    let (_sse, events) = connect(&bare(&connections)).await;
    let reading = tokio::spawn(read(events));
    let began = Instant::now();
    let drain = connections.drain().over(seconds(3)).into_future();
    let mut drain = tokio_test::task::spawn(drain);
    assert!(drain.poll().is_pending());
    drop(drain);
    let reading = reading.await.unwrap();
    assert_eq!(reading.texts(), [DRAINED]);
    assert!(reading.ended - began <= seconds(3) + TICK);
    assert_eq!(connections.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn earlier_end_of_two_drains_wins() {
    for slow_is_first in [true, false] {
        let connections = Connections::new();
        let mut readers = Vec::new();
        let mut handles = Vec::new();
        for _ in 0..20 {
            let (sse, events) = connect(&bare(&connections)).await;
            handles.push(sse);
            readers.push(tokio::spawn(read(events)));
        }
        let began = Instant::now();
        let slow = connections.drain().over(seconds(10_000));
        let fast = connections.drain().over(seconds(2));
        let (first, second) = if slow_is_first {
            (slow, fast)
        } else {
            (fast, slow)
        };
        let drained = tokio::join!(first.into_future(), second.into_future());
        assert_eq!(drained.0, drained.1);
        assert_eq!((drained.0.ended, drained.0.aborted), (20, 0));
        assert!(began.elapsed() <= seconds(2) + TICK);
        for reading in readings(readers).await {
            assert_eq!(reading.texts(), [DRAINED], "it is told once");
            assert_eq!(reading.retries.len(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn earlier_deadline_of_two_drains_wins() {
    for short_is_first in [true, false] {
        let connections = Connections::new();
        let layer = handled(&bare(&connections), async |sse: SseConnection| {
            sse.start();
            pending().await
        });
        let readers: Vec<_> = (0..20).map(|_| reader(&layer)).collect();
        settle().await;
        let began = Instant::now();
        let short = connections.drain().over(seconds(10)).deadline(seconds(10));
        let long = connections.drain().over(seconds(10)).deadline(seconds(100));
        let (first, second) = if short_is_first {
            (short, long)
        } else {
            (long, short)
        };
        let drained = tokio::join!(first.into_future(), second.into_future());
        assert_eq!((drained.0.ended, drained.0.aborted), (0, 20));
        assert_eq!(drained.0, drained.1);
        for reading in readings(readers).await {
            reading.assert_cut();
            let time = reading.ended - began;
            assert!(time <= seconds(10) + TICK, "{time:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lifetime_ending_in_a_drain_keeps_the_drain_deadline() {
    let connections = Connections::new();
    let layer = handled(
        &bare(&connections).close_timeout(seconds(1_000)),
        async |sse: SseConnection| {
            sse.start();
            sse.close_at(Instant::now() + Duration::from_millis(1));
            pending().await
        },
    );
    let reading = reader(&layer);
    settle().await;
    let began = Instant::now();
    let drain = connections.drain().over(seconds(100));
    let drained = drain.deadline(seconds(100)).await;
    let reading = reading.await.unwrap();
    reading.assert_cut();
    assert!(reading.ended - began <= seconds(100) + TICK);
    assert_eq!(connections.stats().closed(CloseReason::Lifetime), 1);
    assert_eq!((drained.ended, drained.aborted), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn deadline_before_the_last_end_is_raised_to_it() {
    let connections = Connections::new();
    let layer = handled(&bare(&connections), async |sse: SseConnection| {
        sse.start();
        pending().await
    });
    let reading = reader(&layer);
    settle().await;
    let began = Instant::now();
    let drained = connections.drain().over(seconds(5)).deadline(seconds(1));
    assert_eq!(drained.await.aborted, 1);
    assert!(reading.await.unwrap().ended - began <= seconds(5) + TICK);
}
