//! That a stream is the same on both paths, frame by frame: as a response body, and as the direct
//! stream that the crate's own server makes of it. And that the suites which are to run on either
//! do so.

use super::{paths, rules, timed};
use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use proptest::prelude::*;
use tokio::time::sleep;
use tower::{Layer, Service};
use tower_sse::{
    BoxError, Broker, CloseReason, Connections, Event, SseConnection, SseLayer,
    broker::{History, SlowConsumer},
    layer::{OutboxLimits, Welcome},
    test_util::{self, WireBody},
};

// ===== the suites =====

#[tokio::test(start_paused = true)]
async fn streams_of_the_suites_use_the_configured_path() {
    let before = paths::count();
    let layer = SseLayer::new("/events");
    let bare = timed::bare(&Connections::new());
    {
        let (sse, mut stream) = rules::open(&layer);
        sse.try_send(Event::message("a")).unwrap();
        assert!(stream.rest().0.ends_with("data: a\n\n"));
        let (sse, mut stream) = rules::open(&bare);
        sse.try_send(Event::message("b")).unwrap();
        assert_eq!(stream.text(), "data: b\n\n");

        let (sse, mut events) = paths::connection().await;
        sse.send(Event::message("c")).await.unwrap();
        assert_eq!(events.event().await.unwrap().event_type, "welcome");
        assert_eq!(events.event().await.unwrap().data, "c");
        let (sse, mut events) = timed::connect(&bare).await;
        sse.close_with(Event::message("d")).unwrap();
        assert_eq!(events.event().await.unwrap().data, "d");
        assert!(events.end().await.is_ok());
        let layer = layer.hold_open(true);
        let mut events = timed::answer(&layer, timed::request()).await.into_body();
        assert_eq!(events.event().await.unwrap().event_type, "welcome");
        // One that says of itself that it is about bodies.
        let _bodies = paths::bodies_alone();
        let (_sse, mut stream) = rules::open(&layer);
        stream.skip_welcome();
    }
    let after = paths::count();
    let direct = if paths::is_direct() { 5 } else { 0 };
    assert_eq!((after.0 - before.0, after.1 - before.1), (direct, 0));
}

// ===== any script =====

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    /// This many small ones at once.
    Burst(usize),
    /// To a topic, which keeps few.
    Publish {
        size: usize,
        times: usize,
    },
    /// Takes at most this many frames.
    Read(usize),
    /// Long enough for heartbeats; several times, for what has stalled to be found.
    Wait,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    CloseWith(usize),
    Fail,
    LetGo,
    /// Cut at the deadline, if it is not taken before.
    Drain {
        is_read: bool,
    },
    ClientGone,
}

fn step() -> impl Strategy<Value = Step> {
    // Lengths of one to five digits, and their limits; merged frames, and what is larger.
    let size = prop_oneof![
        1..20_usize,
        200..300_usize,
        4000..4200_usize,
        30_000..70_000_usize
    ];
    prop_oneof![
        4 => size.clone().prop_map(Step::Send),
        2 => (1..50_usize).prop_map(Step::Burst),
        3 => (size, 1..12_usize).prop_map(|(size, times)| Step::Publish { size, times }),
        6 => (1..4_usize).prop_map(Step::Read),
        2 => Just(Step::Wait),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        Just(End::Close),
        (1..300_usize).prop_map(End::CloseWith),
        Just(End::Fail),
        Just(End::LetGo),
        any::<bool>().prop_map(|is_read| End::Drain { is_read }),
        Just(End::ClientGone),
    ]
}

fn text(size: usize) -> Event {
    Event::message("x".repeat(size))
}

/// Answers, and leaves its connection here.
#[derive(Clone, Default)]
struct Capture(Arc<Mutex<Option<SseConnection>>>);

impl<R> Service<Request<R>> for Capture {
    type Response = Response<Empty<Bytes>>;
    type Error = BoxError;
    type Future = Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<R>) -> Self::Future {
        *self.0.lock().unwrap() = request.extensions_mut().remove();
        ready(Ok(Response::default()))
    }
}

/// A stream on one of the paths, and what a test sees of it.
struct Path<B> {
    layer: SseLayer,
    notes: rules::Notes,
    sse: Option<SseConnection>,
    body: Option<B>,
    frames: Vec<Bytes>,
    /// How it has ended, if it has: cleanly, or with this error.
    end: Option<Option<String>>,
}

impl<B> Path<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    fn new(layer: SseLayer, notes: rules::Notes, capture: &Capture, body: B) -> Self {
        let sse = capture.0.lock().unwrap().take();
        let mut path = Self {
            layer,
            notes,
            sse,
            body: Some(body),
            frames: Vec::new(),
            end: None,
        };
        path.read(1);
        path
    }

    fn sse(&self) -> &SseConnection {
        self.sse.as_ref().expect("it is held")
    }

    fn read(&mut self, frames: usize) {
        let cx = &mut Context::from_waker(Waker::noop());
        let wanted = self.frames.len().saturating_add(frames);
        let mut looks_again = true;
        while self.frames.len() < wanted && self.end.is_none() {
            let body = self.body.as_mut().expect("the client is there");
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.frames.push(frame.into_data().unwrap()),
                Poll::Ready(Some(Err(error))) => self.end = Some(Some(error.to_string())),
                Poll::Ready(None) => self.end = Some(None),
                // It may have woken its task, for what comes behind.
                Poll::Pending if looks_again => looks_again = false,
                Poll::Pending => return,
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Send(size) => drop(self.sse().try_send(text(size))),
            Step::Burst(count) => {
                for number in 0..count {
                    let _ = self.sse().try_send(Event::message(number.to_string()));
                }
            }
            Step::Read(frames) => self.read(frames),
            Step::Publish { .. } | Step::Wait => {}
        }
    }

    fn end(&mut self, end: End) {
        match end {
            End::Close => self.sse().close(),
            End::CloseWith(size) => drop(self.sse().close_with(text(size))),
            End::Fail => self.sse().fail("broken"),
            End::LetGo => drop(self.sse.take()),
            End::Drain { is_read } => {
                let drain = self.layer.registered().drain().over(Duration::ZERO);
                tokio::spawn(drain.deadline(Duration::from_secs(1)).into_future());
                if !is_read {
                    return;
                }
            }
            End::ClientGone => {
                self.body = None;
                return;
            }
        }
        self.read(usize::MAX);
    }

    /// All that can be told of it.
    fn outcome(self) -> Outcome {
        let stats = self.layer.registered().stats();
        Outcome {
            frames: self.frames.iter().map(Bytes::len).collect(),
            end: self.end,
            notes: self.notes.take(),
            open: stats.open,
            events: stats.events_sent,
            bytes: stats.bytes_sent,
            closed: stats.closed_by_reason().collect(),
        }
    }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    /// Their lengths.
    frames: Vec<usize>,
    end: Option<Option<String>>,
    notes: Vec<String>,
    open: u64,
    events: u64,
    bytes: u64,
    closed: Vec<(CloseReason, u64)>,
}

/// The error of a direct stream that its server has cut.
const SOCKET_CLOSED: &str = "the socket was closed";

fn layer(notes: &rules::Notes) -> SseLayer {
    let layer = SseLayer::any_path()
        .welcome(Welcome::new(|_| Event::message("hello")))
        .reconnect_event(None)
        .outbox(OutboxLimits::new().events(64).bytes(200_000))
        .stall_timeout(Duration::from_secs(40));
    notes.on(layer)
}

async fn run(steps: Vec<Step>, end: End, is_subscribed: bool, disconnects: bool) {
    let history = History::default().events(8);
    let policy = if disconnects {
        SlowConsumer::Disconnect
    } else {
        SlowConsumer::Announce
    };
    let builder = Broker::builder().history(history).slow_consumer(policy);
    let broker = builder.in_memory();

    let (notes, capture) = (rules::Notes::default(), Capture::default());
    let of_body = layer(&notes);
    let mut service = of_body.layer(capture.clone());
    let request = Request::new(Empty::<Bytes>::new());
    let response = service.call(request.clone()).await.unwrap();
    let mut body = Path::new(of_body, notes, &capture, response.into_body());

    let (notes, capture) = (rules::Notes::default(), Capture::default());
    let of_direct = layer(&notes);
    let mut service = test_util::served(of_direct.layer(capture.clone()));
    let response = service.call(request).await.unwrap();
    let mut direct = Path::new(of_direct, notes, &capture, response.into_body());
    assert!(direct.body.as_ref().is_some_and(WireBody::is_direct));

    if is_subscribed {
        for sse in [body.sse(), direct.sse()] {
            broker.subscribe(sse, "topic").await.unwrap().start();
        }
    }
    for step in &steps {
        body.step(step);
        direct.step(step);
        match *step {
            Step::Wait => sleep(Duration::from_secs(16)).await,
            Step::Publish { size, times } => {
                for _ in 0..times {
                    broker.publish("topic", text(size)).await.unwrap();
                }
            }
            _ => {}
        }
    }
    body.end(end);
    direct.end(end);
    // Long enough for whatever is still to come of it.
    sleep(Duration::from_secs(100)).await;
    assert!(body.frames == direct.frames, "the frames differ");
    let (body, mut direct) = (body.outcome(), direct.outcome());
    if direct.end == Some(Some(SOCKET_CLOSED.to_owned())) {
        // The stream ended while its client read nothing: its socket is closed at once.
        let ended = [CloseReason::SlowConsumer, CloseReason::Drained];
        let count = |reason: &CloseReason| body.closed.contains(&(*reason, 1));
        assert!(ended.iter().any(count), "{body:?}");
        direct.end.clone_from(&body.end);
    }
    assert_eq!(body, direct);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_paths_send_equal_frames(
        steps in prop::collection::vec(step(), 0..30),
        end in end(),
        is_subscribed in any::<bool>(),
        disconnects in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps, end, is_subscribed, disconnects));
    }
}

// ===== layers outside =====

/// What a layer outside puts around a body: something that is held for as long.
struct Holding {
    body: Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>,
    _held: Box<dyn std::any::Any>,
}

impl Body for Holding {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Opens a stream with a layer outside that holds something, and reads its welcome.
async fn held(layer: &SseLayer, notes: &rules::Notes) -> (SseConnection, WireBody<Holding>) {
    let capture = Capture::default();
    let mut service = layer.layer(capture.clone());
    let notes = notes.clone();
    let outside = tower::service_fn(move |request: Request<Empty<Bytes>>| {
        let held = Box::new(notes.on_drop("let go"));
        let called = service.call(request);
        async {
            let response = called.await?;
            Ok::<_, BoxError>(response.map(|body| Holding {
                body: Box::pin(body),
                _held: held,
            }))
        }
    });
    let request = Request::new(Empty::new());
    let response = test_util::served(outside).call(request).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    assert!(body.is_direct());
    let sse = capture.0.lock().unwrap().take().unwrap();
    (sse, body)
}

#[tokio::test]
async fn state_of_an_outer_layer_is_dropped_at_the_stream_end() {
    type End = fn(&SseConnection);
    let ends: [(End, &str); 3] = [
        (|sse| sse.close(), "closed"),
        (|sse| sse.fail("broken"), "failed"),
        (|sse| drop(sse.close_with(Event::message("bye"))), "closed"),
    ];
    for (end, reason) in ends {
        let notes = rules::Notes::default();
        let layer = notes.on(SseLayer::any_path());
        let (sse, mut body) = held(&layer, &notes).await;
        sse.try_send(Event::message("a")).unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(notes.take(), ["open"]);
        end(&sse);
        while let Some(Ok(_)) = body.frame().await {}
        let closed = format!("close: {reason}");
        assert_eq!(notes.take(), [&*closed, "let go"]);
        assert!(body.frame().await.is_none() && body.is_end_stream());
    }
}

#[tokio::test]
async fn state_of_an_outer_layer_is_dropped_on_disconnect() {
    for frames in [0, 1, 2] {
        let notes = rules::Notes::default();
        let layer = notes.on(SseLayer::any_path());
        let (sse, mut body) = held(&layer, &notes).await;
        for number in 0..frames {
            sse.try_send(Event::message(number.to_string())).unwrap();
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!(notes.take(), ["open", "close: client_gone", "let go"]);
        assert_eq!(sse.closed().await, CloseReason::ClientGone);
    }
}
