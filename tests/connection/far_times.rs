//! Times that are meant as "never". No sum with them may overflow, least of all in a request.

use super::paths;
use paths::connection_of;
use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{CloseReason, Event, SseLayer, connection::Refusal, layer::Limits};

const NEVER: Duration = Duration::MAX;
const HOUR: Duration = Duration::from_secs(60 * 60);

#[tokio::test(start_paused = true)]
async fn stream_with_unlimited_times_stays_open_until_closed() {
    let layer = SseLayer::any_path()
        .max_lifetime(NEVER)
        .close_timeout(NEVER)
        .stall_timeout(NEVER)
        .keep_alive(NEVER)
        .retry(NEVER);
    let (sse, mut events) = connection_of(&layer, Request::default()).await;
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    sleep(HOUR).await;
    sse.send(Event::message("still here")).await.unwrap();
    assert_eq!(events.event().await.unwrap().data, "still here");

    sse.close_at(farthest());
    sleep(HOUR).await;
    assert!(!sse.is_closed());
    sse.close_at(Instant::now() + HOUR);
    events.time_limit(2 * HOUR).end().await.unwrap();
    assert_eq!(sse.closed().await, CloseReason::Lifetime);
}

#[tokio::test(start_paused = true)]
async fn unlimited_drain_waits_for_its_streams() {
    let layer = SseLayer::any_path().stall_timeout(None);
    let (sse, mut events) = connection_of(&layer, Request::default()).await;
    assert_eq!(events.event().await.unwrap().event_type, "welcome");
    let drain = layer.registered().drain();
    let mut drain = drain
        .over(NEVER)
        .deadline(NEVER)
        .retry(NEVER..=NEVER)
        .into_future();
    assert!(timeout(HOUR, &mut drain).await.is_err());
    assert!(!sse.is_closed());

    sse.close();
    events.end().await.unwrap();
    assert_eq!(drain.await.ended, 1);
}

#[tokio::test]
async fn refusal_with_unlimited_retry_is_a_valid_response() {
    for (refusal, status) in [(Refusal::RetryLater, 200), (Refusal::Unavailable, 503)] {
        let inner =
            service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
        let layer = SseLayer::any_path()
            .max_connections(0)
            .limits(Limits::new().refusal(refusal))
            .limits(Limits::new().refusal_retry(NEVER..=NEVER));
        let response = layer.layer(inner).oneshot(Request::default()).await;
        assert_eq!(response.unwrap().status(), status);
    }
}

/// The last moment that the clock can tell.
fn farthest() -> Instant {
    let mut last = Instant::now();
    let mut step = NEVER;
    while !step.is_zero() {
        match last.checked_add(step) {
            Some(later) => last = later,
            None => step /= 2,
        }
    }
    last
}
