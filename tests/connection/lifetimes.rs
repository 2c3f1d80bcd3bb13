//! Lifetimes: streams end by themselves after a time, cleanly where they can.

use super::timed;
use http::{StatusCode, request::Parts};
use std::{
    collections::HashSet,
    future::pending,
    time::{Duration, Instant as StdInstant},
};
use support::Held;
use timed::{TICK, about, answer, bare, connect, handled, read, reader, request, seconds, text};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tower_sse::{CloseReason, Connections, SseConnection, SseLayer};

fn layer() -> SseLayer {
    bare(&Connections::new())
}

// ===== max_lifetime =====

#[tokio::test(start_paused = true)]
async fn stream_ends_in_the_last_tenth_of_its_lifetime() {
    let layer = layer().max_lifetime(seconds(1_000));
    let began = Instant::now();
    let (mut handles, mut readers) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let (sse, events) = connect(&layer).await;
        sse.try_send(text("a")).unwrap();
        handles.push(sse);
        readers.push(tokio::spawn(read(events)));
    }
    let (mut times, mut halves) = (HashSet::new(), [0, 0]);
    for reading in readers {
        let reading = reading.await.unwrap();
        reading.assert_clean();
        assert_eq!(
            reading.texts(),
            ["message: a"],
            "nothing of the layer's own"
        );
        let time = reading.ended - began;
        assert!(
            (seconds(900)..=seconds(1_000) + TICK).contains(&time),
            "{time:?}"
        );
        times.insert(time);
        halves[usize::from(time > seconds(950))] += 1;
    }
    assert!(times.len() > 300, "{} different times", times.len());
    assert!(halves.iter().all(|half| *half > 180), "{halves:?}");
    for sse in handles {
        assert_eq!(sse.closed().await, CloseReason::Lifetime);
    }
    assert_eq!(
        layer.registered().stats().closed(CloseReason::Lifetime),
        500
    );
}

#[tokio::test(start_paused = true)]
async fn lifetime_begins_with_the_request() {
    let layer = handled(
        &layer().max_lifetime(seconds(100)),
        async |sse: SseConnection| {
            sleep(seconds(50)).await;
            sse.start();
            std::mem::forget(sse);
            Ok(())
        },
    );
    let began = Instant::now();
    let reading = read(answer(&layer, request()).await.into_body()).await;
    reading.assert_clean();
    assert!(reading.ended - began <= seconds(100) + TICK);
}

#[tokio::test(start_paused = true)]
async fn lifetime_over_before_the_response_ends_the_stream() {
    let (told, mut hears) = mpsc::channel(1);
    let layer = layer().max_lifetime(seconds(10)).hold_open(true);
    let layer = handled(&layer, move |sse: SseConnection| {
        let told = told.clone();
        async move {
            told.try_send((sse.ending().await, Instant::now())).unwrap();
            sleep(seconds(3)).await;
            Ok(())
        }
    });
    let began = Instant::now();
    let response = answer(&layer, request()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let (reason, told_at) = hears.recv().await.unwrap();
    assert_eq!(reason, CloseReason::Lifetime);
    assert!((seconds(9)..=seconds(10) + TICK).contains(&(told_at - began)));
    let reading = read(response.into_body()).await;
    reading.assert_clean();
    assert_eq!(reading.ended, told_at + seconds(3));
    assert_eq!(layer.registered().stats().closed(CloseReason::Lifetime), 1);
}

#[tokio::test(start_paused = true)]
async fn late_handler_still_chooses_its_response() {
    for code in [StatusCode::OK, StatusCode::NOT_FOUND] {
        let layer = layer()
            .max_lifetime(seconds(10))
            .close_timeout(seconds(5))
            .hold_open(true);
        let layer = handled(&layer, move |sse: SseConnection| async move {
            // It hears of the end, although there is no stream yet.
            assert_eq!(sse.closed().await, CloseReason::Lifetime);
            sleep(seconds(100)).await;
            if code == StatusCode::OK {
                Ok(())
            } else {
                Err(code)
            }
        });
        let response = answer(&layer, request()).await;
        assert_eq!(response.status(), code);
        let reading = read(response.into_body()).await;
        reading.assert_clean();
        assert_eq!(reading.texts(), [""; 0]);
        assert_eq!(layer.registered().held(), 0);
        let stats = layer.registered().stats();
        assert_eq!(stats.closed(CloseReason::Lifetime), 1);
    }
}

// ===== running handlers =====

#[tokio::test(start_paused = true)]
async fn running_handler_is_notified_and_may_finish() {
    let layer = layer()
        .max_lifetime(seconds(100))
        .close_timeout(seconds(20));
    let layer = handled(&layer, async |sse: SseConnection| {
        sse.send(text("working")).await.unwrap();
        let before = Instant::now();
        assert_eq!(sse.ending().await, CloseReason::Lifetime);
        assert!((seconds(90)..=seconds(100) + TICK).contains(&before.elapsed()));
        assert!(!sse.is_closed());
        sleep(seconds(19)).await;
        sse.send(text("finished")).await.unwrap();
        Ok(())
    });
    let reading = reader(&layer).await.unwrap();
    reading.assert_clean();
    assert_eq!(reading.texts(), ["message: working", "message: finished"]);
    assert!(reading.retries.is_empty());
    assert_eq!(layer.registered().stats().closed(CloseReason::Lifetime), 1);
}

#[tokio::test(start_paused = true)]
async fn handler_error_after_the_end_notice_is_a_failure() {
    let layer = handled(&layer(), async |sse: SseConnection| {
        sse.send(text("working")).await.unwrap();
        sse.close_at(Instant::now());
        sse.ending().await;
        Err(StatusCode::BAD_GATEWAY)
    });
    let reading = reader(&layer).await.unwrap();
    let error = reading.error.as_ref().unwrap().to_string();
    assert!(error.contains("answered 502"), "{error}");
    assert_eq!(layer.registered().stats().closed(CloseReason::Failed), 1);
}

#[tokio::test(start_paused = true)]
async fn handler_is_aborted_after_grace_and_queued_events() {
    let (closed, mut reasons) = mpsc::channel(2);
    let own = closed.clone();
    let layer = layer().close_timeout(seconds(7));
    let layer = layer.on_close(move |_, reason| closed.try_send(reason).unwrap());
    let layer = handled(&layer, move |sse: SseConnection| {
        let own = own.clone();
        async move {
            sse.on_close(move |reason| own.try_send(reason).unwrap());
            sse.start();
            sse.close_at(Instant::now() + seconds(30));
            // So it sends in the poll in which it is cut, or just before.
            let other = sse.clone();
            tokio::spawn(async move {
                sleep(seconds(36)).await;
                for _ in 0..3 {
                    other.try_send(text("queued")).unwrap();
                }
            });
            pending().await
        }
    });
    let began = Instant::now();
    let body = answer(&layer, request()).await.into_body();
    // A client that takes nothing until the cut has come.
    sleep(seconds(37) + 2 * TICK).await;
    let reading = read(body).await;
    reading.assert_cut();
    assert_eq!(reading.texts(), ["message: queued"; 3]);
    assert_eq!(reading.ended - began, seconds(37) + 2 * TICK);
    for _ in 0..2 {
        assert_eq!(reasons.recv().await, Some(CloseReason::Lifetime));
    }
    assert!(reasons.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn handler_is_aborted_in_time_while_its_client_reads() {
    for grace in [0, 1, 10, 1_000] {
        let layer = handled(
            &layer().close_timeout(seconds(grace)),
            async |sse: SseConnection| {
                sse.close_at(Instant::now() + seconds(5));
                for _ in 0.. {
                    sse.send(text("tick")).await.unwrap();
                    sleep(Duration::from_millis(250)).await;
                }
                Ok(())
            },
        );
        let began = Instant::now();
        let reading = reader(&layer).await.unwrap();
        reading.assert_cut();
        let time = reading.ended - began;
        let expected = seconds(5 + grace);
        assert!((expected..=expected + 2 * TICK).contains(&time), "{time:?}");
    }
}

// ===== close_at =====

#[tokio::test(start_paused = true)]
async fn close_at_ends_a_stream_at_that_time() {
    let (sse, events) = connect(&layer()).await;
    sse.close_at(Instant::now() + seconds(100));
    let began = Instant::now();
    let reading = read(events).await;
    reading.assert_clean();
    assert!(about(seconds(100)).contains(&(reading.ended - began)));
    assert_eq!(sse.closed().await, CloseReason::Lifetime);
}

#[tokio::test(start_paused = true)]
async fn close_at_in_the_past_ends_the_stream_now() {
    let (sse, events) = connect(&layer()).await;
    sleep(seconds(100)).await;
    sse.try_send(text("queued")).unwrap();
    sse.close_at(Instant::now() - seconds(50));
    let began = Instant::now();
    let reading = read(events).await;
    reading.assert_clean();
    assert_eq!(reading.texts(), ["message: queued"]);
    assert!(reading.ended - began <= TICK);
}

#[tokio::test(start_paused = true)]
async fn close_at_accepts_a_std_instant() {
    let (sse, events) = connect(&layer()).await;
    let now: StdInstant = Instant::now().into_std();
    sse.close_at(now + seconds(100));
    let began = Instant::now();
    let reading = read(events).await;
    assert!(about(seconds(100)).contains(&(reading.ended - began)));
}

#[tokio::test(start_paused = true)]
async fn earliest_end_wins() {
    for (life, times, expected) in [
        (1_000, vec![50], 50),
        (10, vec![50], 10),
        (1_000, vec![50, 20, 70], 20),
        (1_000, vec![2_000], 1_000),
    ] {
        let layer = layer().max_lifetime(seconds(life));
        let (sse, events) = connect(&layer).await;
        let began = Instant::now();
        for time in &times {
            sse.close_at(began + seconds(*time));
        }
        let time = read(events).await.ended - began;
        let range = seconds(expected).mul_f64(0.9)..=seconds(expected) + TICK;
        assert!(range.contains(&time), "{life}, {times:?}: {time:?}");
        if expected != life {
            assert!(about(seconds(expected)).contains(&time), "{time:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn accept_functions_and_hooks_may_call_close_at() {
    let accept = layer().accept(async |sse: SseConnection, _: Parts| {
        sse.close_at(Instant::now() + seconds(10));
        std::mem::forget(sse);
        Ok(())
    });
    let hook = layer().on_open(|sse| sse.close_at(Instant::now() + seconds(10)));
    let hook = handled(&hook, async |sse| {
        std::mem::forget(sse);
        Ok(())
    });
    for layer in [accept, hook] {
        let began = Instant::now();
        let reading = reader(&layer.stall_timeout(None)).await.unwrap();
        assert!(about(seconds(10)).contains(&(reading.ended - began)));
    }
}
