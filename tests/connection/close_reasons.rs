//! Every reason for which a connection closes, by name: all who are told of it are told the same.

use super::rules;
use rules::{Answer, Call, Notes, Stream, call_sse, forever, plain, status};
use std::{cell::RefCell, rc::Rc, time::Duration};
use support::Held;
use tokio::time::{Instant, sleep};
use tower_sse::{
    Broker, CloseReason, Event, SseConnection, SseLayer,
    broker::{History, SlowConsumer},
};

/// What is there to end: a connection, its response future until it is polled to its end, and then
/// its body.
struct Case {
    layer: SseLayer,
    notes: Notes,
    sse: SseConnection,
    call: Option<Call>,
    body: Option<Stream>,
}

impl Case {
    /// Calls a handler, polls until it waits, and takes a stream that has started then.
    fn new<F>(layer: SseLayer, handler: impl FnOnce(SseConnection) -> F + 'static) -> Self
    where
        F: Future<Output = Answer> + 'static,
    {
        let notes = Notes::default();
        let layer = notes.on(layer.stall_timeout(Duration::from_secs(5)));
        let place = Rc::new(RefCell::new(None));
        let (kept, own) = (Rc::clone(&place), notes.own());
        let mut call = call_sse(&layer, async move |sse| {
            sse.on_close(own);
            kept.replace(Some(sse.clone()));
            handler(sse).await
        });
        let polled = call.poll();
        let sse = place.take().expect("the handler has begun");
        let mut case = Self {
            layer,
            notes,
            sse,
            call: Some(call),
            body: None,
        };
        if let std::task::Poll::Ready(response) = polled {
            case.call = None;
            case.body = response.ok().map(http::Response::into_body);
        }
        case
    }

    /// A stream whose handler has answered.
    fn answered() -> Self {
        Self::answered_by(SseLayer::new("/events"))
    }

    fn answered_by(layer: SseLayer) -> Self {
        let mut case = Self::new(layer, async |sse| {
            sse.start();
            plain()
        });
        case.body.as_mut().expect("it has answered").begin();
        case
    }

    fn rest(&mut self) {
        if let Some(body) = &mut self.body {
            body.rest();
        }
    }

    /// Asserts that it has ended for this reason, and that everybody heard of it once.
    async fn assert_closed(self, reason: CloseReason, has_started: bool) {
        let began = Instant::now();
        while self.layer.registered().held() > 0 {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "it is open still"
            );
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.sse.closed().await, reason);
        let (name, stats) = (reason.as_str(), self.layer.registered().stats());
        assert_eq!((stats.open, stats.opened), (0, 1));
        for (other, count) in stats.closed_by_reason() {
            assert_eq!(count, u64::from(other == reason), "{other} of {name}");
            assert_eq!(count, stats.closed(other));
        }
        let Self {
            notes,
            call,
            body,
            sse,
            ..
        } = self;
        drop((call, body, sse));
        let mut expected = vec![format!("own: {name}")];
        if has_started {
            expected.insert(0, "open".into());
            expected.push(format!("close: {name}"));
        }
        assert_eq!(notes.take(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn client_gone() {
    let mut case = Case::answered();
    case.body = None;
    case.assert_closed(CloseReason::ClientGone, true).await;

    let mut case = Case::new(SseLayer::new("/events"), async |_| {
        forever().await;
        plain()
    });
    case.call = None;
    case.assert_closed(CloseReason::ClientGone, false).await;
}

#[tokio::test(start_paused = true)]
async fn closed() {
    let ends: [fn(&Case); 3] = [
        |case| case.sse.close(),
        |case| case.sse.close_with(Event::message("bye")).unwrap(),
        |case| assert_eq!(case.layer.registered().close_where(|_| true), 1),
    ];
    for end in ends {
        let mut case = Case::answered();
        end(&case);
        case.rest();
        case.assert_closed(CloseReason::Closed, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn stream_without_handles_is_closed() {
    let notes = Notes::default();
    let layer = notes.on(SseLayer::new("/events"));
    let own = notes.own();
    let mut stream = call_sse(&layer, async move |sse| {
        sse.on_close(own);
        sse.start();
        plain()
    })
    .stream();
    stream.rest().1.assert_ended();
    assert_eq!(notes.take(), ["open", "own: closed", "close: closed"]);
    assert_eq!(layer.registered().stats().closed(CloseReason::Closed), 1);
}

#[tokio::test(start_paused = true)]
async fn declined() {
    for code in [204, 301, 304, 401, 404, 500] {
        let case = Case::new(SseLayer::new("/events"), async move |_| status(code));
        case.assert_closed(CloseReason::Declined, false).await;
    }
    let case = Case::new(SseLayer::new("/events"), async |sse| {
        sse.decline();
        plain()
    });
    case.assert_closed(CloseReason::Declined, false).await;
}

#[tokio::test(start_paused = true)]
async fn refused() {
    let case = Case::new(SseLayer::new("/events"), async |sse| {
        sse.limit(&7, 0).unwrap_err();
        plain()
    });
    assert_eq!(case.layer.registered().stats().refused, 1);
    case.assert_closed(CloseReason::Refused, false).await;

    let mut case = Case::answered();
    case.sse.limit(&7, 0).unwrap_err();
    case.rest();
    case.assert_closed(CloseReason::Refused, true).await;
}

#[tokio::test(start_paused = true)]
async fn drained() {
    for is_taken in [true, false] {
        let mut case = Case::answered();
        let drain = case.layer.registered().drain().over(Duration::ZERO);
        let drain = tokio::spawn(drain.deadline(Duration::from_secs(1)).into_future());
        sleep(Duration::from_millis(200)).await;
        if is_taken {
            case.rest();
        }
        let drained = drain.await.unwrap();
        assert_eq!(drained.ended, usize::from(is_taken));
        case.assert_closed(CloseReason::Drained, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lifetime() {
    let mut case = Case::answered();
    case.sse.close_at(Instant::now());
    sleep(Duration::from_millis(200)).await;
    case.rest();
    case.assert_closed(CloseReason::Lifetime, true).await;

    let layer = SseLayer::new("/events").max_lifetime(Duration::from_secs(2));
    let mut case = Case::answered_by(layer);
    case.rest();
    sleep(Duration::from_secs(3)).await;
    case.rest();
    case.assert_closed(CloseReason::Lifetime, true).await;
}

#[tokio::test(start_paused = true)]
async fn slow_consumer() {
    let case = Case::answered();
    case.sse.try_send(Event::message("never taken")).unwrap();
    case.assert_closed(CloseReason::SlowConsumer, true).await;

    let builder = Broker::builder().history(History::default().events(1));
    let broker = builder.slow_consumer(SlowConsumer::Disconnect).in_memory();
    let mut case = Case::answered();
    broker.subscribe(&case.sse, "a").await.unwrap().start();
    for text in ["1", "2", "3"] {
        broker.publish("a", Event::message(text)).await.unwrap();
    }
    case.rest();
    case.assert_closed(CloseReason::SlowConsumer, true).await;
}

#[tokio::test(start_paused = true)]
async fn failed() {
    let mut case = Case::answered();
    case.sse.fail("broken");
    case.rest();
    case.assert_closed(CloseReason::Failed, true).await;

    let mut case = Case::new(SseLayer::new("/events"), async |sse| {
        sse.send(Event::message("sent")).await.unwrap();
        status(500)
    });
    case.rest();
    case.assert_closed(CloseReason::Failed, true).await;

    let case = Case::new(SseLayer::new("/events"), async |_| Err(rules::Failure));
    case.assert_closed(CloseReason::Failed, false).await;
}

#[test]
fn reason_names_are_stable() {
    let stats = SseLayer::new("/events").registered().stats();
    let names: Vec<_> = stats
        .closed_by_reason()
        .map(|(reason, _)| reason.as_str())
        .collect();
    let expected = [
        "client_gone",
        "closed",
        "declined",
        "refused",
        "drained",
        "lifetime",
        "slow_consumer",
        "failed",
    ];
    assert_eq!(names, expected);
}
