//! Drains: handlers that still run, that have not answered, and clients that take nothing.

use super::timed;
use http::{Request, StatusCode};
use std::{future::pending, time::Duration};
use support::Held;
use timed::{
    LONG, Reading, TICK, about, answer, bare, connect, emptied, handled, read, reader, request,
    seconds, settle, text,
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower_sse::{
    CloseReason, Connections, SseConnection, SseLayer, connection::Drained, layer::OutboxLimits,
    test_util::EventReader,
};

const DRAINED: &str = r#"reconnect: {"reason":"drained"}"#;

fn begin(connections: &Connections, over: u64, deadline: u64) -> JoinHandle<Drained> {
    let drain = connections.drain().over(seconds(over));
    tokio::spawn(drain.deadline(seconds(deadline)).into_future())
}

#[track_caller]
fn assert_drained(drained: Drained, ended: usize, cut: usize) {
    assert_eq!((drained.ended, drained.aborted), (ended, cut));
}

// ===== running handlers =====

#[tokio::test(start_paused = true)]
async fn running_handler_is_notified_and_ends_cleanly() {
    let connections = Connections::new();
    let layer = handled(&bare(&connections), async |sse: SseConnection| {
        sse.send(text("working")).await.unwrap();
        assert_eq!(sse.ending().await, CloseReason::Drained);
        assert!(!sse.is_closed(), "it may go on");
        sleep(seconds(4)).await;
        sse.send(text("finished")).await.unwrap();
        Ok(())
    });
    let reading = reader(&layer);
    settle().await;
    let began = Instant::now();
    assert_drained(begin(&connections, 0, 5).await.unwrap(), 1, 0);
    let reading = reading.await.unwrap();
    reading.assert_clean();
    let expected = ["message: working", "message: finished", DRAINED];
    assert_eq!(reading.texts(), expected);
    assert_eq!(reading.retries.len(), 1);
    let time = reading.ended - began;
    assert!(about(seconds(4)).contains(&time), "{time:?}");
    assert_eq!(connections.stats().closed(CloseReason::Drained), 1);
}

#[tokio::test(start_paused = true)]
async fn unfinished_handler_is_aborted_at_the_deadline() {
    let connections = Connections::new();
    let (closed, mut reasons) = mpsc::channel(1);
    let layer = bare(&connections).on_close(move |_, reason| closed.try_send(reason).unwrap());
    let layer = handled(&layer, async |sse: SseConnection| {
        for number in 0.. {
            sse.send(text(&number.to_string())).await.unwrap();
            sleep(seconds(1)).await;
        }
        Ok(())
    });
    let reading = reader(&layer);
    settle().await;
    let began = Instant::now();
    assert_drained(begin(&connections, 0, 5).await.unwrap(), 0, 1);
    let reading = reading.await.unwrap();
    reading.assert_cut();
    let time = reading.ended - began;
    assert!(about(seconds(5)).contains(&time), "{time:?}");
    let texts = reading.texts();
    assert_eq!(texts.len(), 7, "{texts:?}");
    assert_eq!(texts[6], DRAINED);
    assert_eq!(reasons.recv().await, Some(CloseReason::Drained));
}

#[tokio::test(start_paused = true)]
async fn aborts_are_spread_over_the_drain() {
    let connections = Connections::new();
    let layer = handled(&bare(&connections), async |sse: SseConnection| {
        sse.start();
        pending().await
    });
    let readers: Vec<_> = (0..200).map(|_| reader(&layer)).collect();
    settle().await;
    assert_eq!(connections.held(), 200);
    let began = Instant::now();
    assert_drained(begin(&connections, 10, 14).await.unwrap(), 0, 200);
    let mut halves = [0, 0];
    for reading in readers {
        let reading = reading.await.unwrap();
        reading.assert_cut();
        let time = reading.ended - began;
        let range = seconds(4)..=seconds(14) + TICK;
        assert!(range.contains(&time), "{time:?}");
        halves[usize::from(time > seconds(9))] += 1;
    }
    assert!(halves.iter().all(|half| *half > 60), "{halves:?}");
}

// ===== completions =====

async fn completion(layer: &SseLayer) -> EventReader {
    let response = answer(layer, Request::post("/chat").body(()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body()
}

#[tokio::test(start_paused = true)]
async fn drain_aborts_only_unfinished_completions() {
    let connections = Connections::new();
    let layer = SseLayer::completions("/chat").registry(&connections);
    let of = |words: u64| {
        handled(&layer, move |sse: SseConnection| async move {
            for number in 0..words {
                sse.send(text(&number.to_string())).await.unwrap();
                sleep(seconds(1)).await;
            }
            sse.send(text("[DONE]")).await.unwrap();
            Ok(())
        })
    };
    let short = tokio::spawn(read(completion(&of(3)).await));
    let endless = tokio::spawn(read(completion(&of(1_000)).await));
    settle().await;
    assert_drained(begin(&connections, 0, 5).await.unwrap(), 1, 1);

    let short = short.await.unwrap();
    short.assert_clean();
    let expected = ["message: 0", "message: 1", "message: 2", "message: [DONE]"];
    assert_eq!(short.texts(), expected, "nothing of the layer's own");
    let endless = endless.await.unwrap();
    endless.assert_cut();
    let expected: Vec<_> = (0..6).map(|number| format!("message: {number}")).collect();
    assert_eq!(endless.texts(), expected, "nothing of the layer's own");
    for reading in [short, endless] {
        assert_eq!((reading.retries.len(), reading.comments), (0, 0));
    }
}

// ===== handlers that have not answered =====

/// What a client reads whose handler answers as late as this, in a drain of 5 seconds.
async fn late(time: u64, status: StatusCode) -> (Reading, StatusCode, Drained, Connections) {
    let connections = Connections::new();
    let layer = bare(&connections).hold_open(true);
    let layer = handled(&layer, move |_| async move {
        sleep(seconds(time)).await;
        if status == StatusCode::OK {
            Ok(())
        } else {
            Err(status)
        }
    });
    let reading = tokio::spawn(async move {
        let response = answer(&layer, request()).await;
        (response.status(), read(response.into_body()).await)
    });
    settle().await;
    assert_eq!(connections.held(), 1);
    let drained = begin(&connections, 0, 5).await.unwrap();
    let (status, reading) = reading.await.unwrap();
    (reading, status, drained, connections)
}

#[tokio::test(start_paused = true)]
async fn response_during_a_drain_is_a_stream_ending_at_once() {
    let (reading, status, drained, connections) = late(3, StatusCode::OK).await;
    assert_eq!(status, StatusCode::OK);
    reading.assert_clean();
    assert_eq!(reading.texts(), [DRAINED]);
    assert_eq!(reading.retries.len(), 1);
    assert_drained(drained, 1, 0);
    assert_eq!(connections.stats().closed(CloseReason::Drained), 1);
}

#[tokio::test(start_paused = true)]
async fn handler_may_decline_during_a_drain() {
    let (_, status, drained, connections) = late(3, StatusCode::UNAUTHORIZED).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_drained(drained, 1, 0);
    assert_eq!(connections.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn response_after_the_drain_is_a_stream_ending_at_once() {
    let began = Instant::now();
    let (reading, status, drained, connections) = late(60, StatusCode::OK).await;
    assert!(began.elapsed() >= seconds(60));
    assert_eq!(status, StatusCode::OK);
    reading.assert_clean();
    assert_eq!(reading.texts(), [DRAINED]);
    assert_drained(drained, 0, 1);
    assert_eq!(connections.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn handler_before_response_is_notified_of_end_and_close() {
    let connections = Connections::new();
    let (told, mut hears) = mpsc::channel(2);
    let layer = handled(&bare(&connections), move |sse: SseConnection| {
        let told = told.clone();
        async move {
            told.try_send(sse.ending().await).unwrap();
            told.try_send(sse.closed().await).unwrap();
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
    });
    let answered = tokio::spawn(async move { answer(&layer, request()).await.status() });
    settle().await;
    let began = Instant::now();
    let drain = begin(&connections, 0, 5);
    assert_eq!(hears.recv().await, Some(CloseReason::Drained));
    assert!(began.elapsed() <= TICK);
    assert_eq!(hears.recv().await, Some(CloseReason::Drained));
    assert!(about(seconds(5)).contains(&began.elapsed()));
    assert_eq!(answered.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    assert_drained(drain.await.unwrap(), 0, 1);
}

#[tokio::test(start_paused = true)]
async fn drain_completes_without_a_handler_that_never_responds() {
    let connections = Connections::new();
    let layer = handled(&bare(&connections), async |_| pending().await);
    let answered = tokio::spawn(async move { answer(&layer, request()).await });
    settle().await;
    let began = Instant::now();
    assert_drained(begin(&connections, 2, 5).await.unwrap(), 0, 1);
    assert!(began.elapsed() <= seconds(6) + TICK);
    answered.abort();
    emptied(&connections).await;
}

// ===== clients that take nothing =====

#[tokio::test(start_paused = true)]
async fn unread_streams_are_aborted_at_the_deadline() {
    let connections = Connections::new();
    let layer = bare(&connections).stall_timeout(None);
    let (idle, mut first) = connect(&layer).await;
    let (full, mut second) = connect(&layer).await;
    full.try_send(text("queued")).unwrap();
    // Closed long before, with a grace that ends long after.
    let patient = layer.clone().close_timeout(LONG);
    let (closed, mut third) = connect(&patient).await;
    closed.try_send(text("queued")).unwrap();
    closed.close();
    sleep(seconds(60)).await;

    let began = Instant::now();
    let drain = begin(&connections, 2, 5);
    let emptied = emptied(&connections).await - began;
    assert!(emptied <= seconds(5) + TICK, "{emptied:?}");
    assert!(emptied >= seconds(3), "{emptied:?}");
    assert_drained(drain.await.unwrap(), 0, 3);
    assert_eq!(idle.closed().await, CloseReason::Drained);
    assert_eq!(full.closed().await, CloseReason::Drained);
    assert_eq!(closed.closed().await, CloseReason::Closed);
    assert_eq!(connections.stats().queued_bytes, 0);
    for events in [&mut first, &mut second, &mut third] {
        let error = events.frame().await.unwrap_err();
        assert_eq!(error.to_string(), "event stream has broken off");
        let error = events.frame().await.unwrap_err();
        assert_eq!(error.to_string(), "event stream has ended");
    }
}

#[tokio::test(start_paused = true)]
async fn handler_of_an_unread_stream_is_aborted_with_it() {
    let connections = Connections::new();
    let layer = bare(&connections)
        .stall_timeout(None)
        .outbox(OutboxLimits::new().events(1).bytes(1));
    let layer = handled(&layer, async |sse: SseConnection| {
        while sse.send(text("more")).await.is_ok() {}
        Ok(())
    });
    let body = answer(&layer, request()).await.into_body();
    let began = Instant::now();
    assert_drained(begin(&connections, 0, 5).await.unwrap(), 0, 1);
    let time = began.elapsed();
    // It is given half a second to take the end.
    let expected = Duration::from_millis(5_500);
    assert!((expected..=expected + 2 * TICK).contains(&time), "{time:?}");
    read(body).await.assert_cut();
}

#[tokio::test(start_paused = true)]
async fn outcome_of_each_stream_is_counted() {
    let connections = Connections::new();
    let layer = bare(&connections).stall_timeout(None);
    let (mut handles, mut readers, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..4 {
        let (sse, events) = connect(&layer).await;
        handles.push(sse);
        readers.push(tokio::spawn(read(events)));
    }
    for _ in 0..3 {
        let (sse, events) = connect(&layer).await;
        sse.try_send(text("queued")).unwrap();
        handles.push(sse);
        bodies.push(events);
    }
    let hangs = handled(&layer, async |sse: SseConnection| {
        sse.start();
        pending().await
    });
    let finishes = handled(&layer, async |sse: SseConnection| {
        sse.start();
        sse.ending().await;
        Ok(())
    });
    readers.push(reader(&hangs));
    readers.push(reader(&finishes));
    // Cut before the drain: it is not counted.
    let (before, body) = connect(&layer.clone().close_timeout(Duration::ZERO)).await;
    before.try_send(text("queued")).unwrap();
    before.close_at(Instant::now());
    settle().await;
    assert_eq!(connections.stats().closed(CloseReason::Lifetime), 0);
    sleep(seconds(1)).await;
    assert_eq!(connections.stats().closed(CloseReason::Lifetime), 1);
    drop(body);

    let drain = begin(&connections, 4, 8);
    settle().await;
    // One of those that are not taken leaves, and another one is taken again.
    bodies.pop();
    readers.push(tokio::spawn(read(bodies.pop().unwrap())));
    assert_drained(drain.await.unwrap(), 4 + 1 + 1 + 1, 1 + 1);
    let mut cut = 0;
    for reading in readers {
        cut += usize::from(reading.await.unwrap().error.is_some());
    }
    assert_eq!(cut, 1);
}
