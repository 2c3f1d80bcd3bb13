//! Values that could be taken for "off": each is either a documented panic or a documented limit.

use std::time::Duration;
use tower_sse::{
    SseLayer,
    layer::{KeepAlive, Limits, OutboxLimits},
};

fn layer() -> SseLayer {
    SseLayer::new("/events")
}

#[test]
fn none_turns_options_off() {
    let _ = layer()
        .keep_alive(None)
        .retry(None)
        .welcome(None)
        .reconnect_event(None)
        .max_lifetime(None)
        .stall_timeout(None)
        .limits(Limits::new().connections(None));
}

#[test]
fn keep_alive_accepts_a_time_an_option_or_a_value() {
    let time = Duration::from_secs(15);
    let every = KeepAlive::every(time);
    assert_eq!(KeepAlive::from(time), every);
    assert_eq!(KeepAlive::from(Some(time)), every);
    let _ = layer()
        .keep_alive(time)
        .keep_alive(Some(time))
        .keep_alive(every);
}

#[test]
#[should_panic(expected = "keep-alive interval is zero")]
fn keep_alive_of_zero_panics() {
    let _ = layer().keep_alive(Duration::ZERO);
}

#[test]
#[should_panic(expected = "stall timeout is zero")]
fn stall_timeout_of_zero_panics() {
    let _ = layer().stall_timeout(Duration::ZERO);
}

#[test]
#[should_panic(expected = "maximum lifetime is zero")]
fn lifetime_of_zero_panics() {
    let _ = layer().max_lifetime(Duration::ZERO);
}

#[test]
#[should_panic(expected = "an outbox holds at least one event")]
fn outbox_of_zero_events_panics() {
    let _ = OutboxLimits::new().events(0);
}

#[test]
#[should_panic(expected = "range of retry delays is inverted")]
fn inverted_range_of_retry_delays_panics() {
    let _ = Limits::new().refusal_retry(Duration::from_secs(2)..=Duration::from_secs(1));
}
