//! Frames through the whole layer and body, and requests that are not ours, without a socket.
//!
//! The rival is axum's `Sse` over a bounded `tokio::sync::mpsc` channel, behind the same router,
//! with the same events: built, sent, and taken from the response body until there is nothing left,
//! as a server does.

#[path = "support/counting.rs"]
mod counting;
#[path = "support/goals.rs"]
mod goals;

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use axum::{
    Router,
    body::Body,
    extract::Request as AxumRequest,
    response::sse::{Event as AxumEvent, Sse},
    routing::get,
};
use bytes::Bytes;
use criterion::{Criterion, Throughput};
use http::{Method, Request, Response, header::ACCEPT};
use http_body::Body as _;
use http_body_util::Full;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tower::{Layer, Service, ServiceExt};
use tower_sse::{Event, SseConnection, SseLayer, layer::OutboxLimits, layer::SseService};

use goals::{Wanted, goal, medians};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const BURST: u64 = 200;
const CAPACITY: usize = 256;

/// 100 bytes.
const DATA: &str = "0123456789012345678901234567890123456789\
                    012345678901234567890123456789012345678901234567890123456789";

// ===== frames =====

/// An open stream, and what sends to it.
struct Rival<T> {
    sender: T,
    body: Body,
}

trait Sender {
    fn push(&self);
}

impl Sender for SseConnection {
    fn push(&self) {
        let event = Event::new("tick", DATA).expect("a plain type");
        self.try_send(event).expect("room for a burst");
    }
}

impl Sender for mpsc::Sender<AxumEvent> {
    fn push(&self) {
        let event = AxumEvent::default().event("tick").data(DATA);
        self.try_send(event).expect("room for a burst");
    }
}

impl<T: Sender> Rival<T> {
    /// Answers this request to `/events`, and takes what the stream begins with.
    async fn open(router: Router, senders: &mut mpsc::Receiver<T>) -> Self {
        let request = AxumRequest::get("/events").body(Body::empty());
        let request = request.expect("a plain request");
        let response = router.oneshot(request).await.expect("an answer");
        let sender = senders.recv().await.expect("the handler's sender");
        let body = response.into_body();
        let mut rival = Self { sender, body };
        rival.take_all();
        rival
    }

    /// Takes frames until there is none. Gives their size.
    fn take_all(&mut self) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut size = 0;
        while let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(&mut cx) {
            let frame = frame.expect("a stream that goes on").expect("no failure");
            size += black_box(frame).data_ref().map_or(0, Bytes::len);
        }
        size
    }

    /// Sends so many events, so many at a time.
    fn run(&mut self, events: u64, burst: u64) {
        for _ in 0..events / burst {
            for _ in 0..burst {
                self.sender.push();
            }
            black_box(self.take_all());
        }
    }
}

async fn ours() -> Rival<SseConnection> {
    let (tx, mut rx) = mpsc::channel(1);
    let handler = async move |sse: SseConnection| {
        let _ = tx.send(sse).await;
    };
    let router = Router::new().route("/events", get(handler)).layer(
        SseLayer::new("/events").outbox(OutboxLimits::new().events(CAPACITY).bytes(1 << 20)),
    );
    Rival::open(router, &mut rx).await
}

async fn axums() -> Rival<mpsc::Sender<AxumEvent>> {
    let (tx, mut rx) = mpsc::channel(1);
    let handler = async move || {
        let (sender, events) = mpsc::channel(CAPACITY);
        let _ = tx.send(sender).await;
        Sse::new(ReceiverStream::new(events).map(Ok::<_, Infallible>))
    };
    let router = Router::new().route("/events", get(handler));
    Rival::open(router, &mut rx).await
}

fn frames(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (mut ours, mut axums) = runtime.block_on(async { (ours().await, axums().await) });

    for burst in [1, BURST] {
        ours.sender.push();
        axums.sender.push();
        assert_eq!(ours.take_all(), axums.take_all(), "not the same events");

        let mut group = criterion.benchmark_group(format!("stream/{burst}_at_a_time"));
        group.throughput(Throughput::Elements(burst));
        group.bench_function("tower-sse", |bencher| {
            bencher.iter(|| ours.run(burst, burst));
        });
        group.bench_function("axum", |bencher| bencher.iter(|| axums.run(burst, burst)));
        group.finish();

        let [of_ours, of_axum] = medians(
            101,
            BURST * 20,
            [&mut |events| ours.run(events, burst), &mut |events| {
                axums.run(events, burst);
            }],
        );
        println!("stream, {burst} at a time: {of_ours:.0} ns an event, axum {of_axum:.0} ns");
        let (name, wanted) = match burst {
            1 => ("stream_one_at_a_time_axum_over_ours", 1.0),
            _ => ("stream_bursts_axum_over_ours", 3.0),
        };
        goal(name, of_axum / of_ours, Wanted::AtLeast(wanted));
    }
}

// ===== requests that are not ours =====

/// Answers at once, without an allocation, and keeps the request to be used again.
struct Inner {
    request: Option<Request<()>>,
}

impl Service<Request<()>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.request = Some(request);
        ready(Ok(Response::new(Full::from("not a stream"))))
    }
}

trait AsInner {
    fn as_inner(&mut self) -> &mut Inner;
}

impl AsInner for Inner {
    fn as_inner(&mut self) -> &mut Inner {
        self
    }
}

impl AsInner for SseService<Inner> {
    fn as_inner(&mut self) -> &mut Inner {
        self.as_inner_mut()
    }
}

/// Calls the service again and again, and reads its whole answers.
fn pass<S, B>(service: &mut S, requests: u64)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + AsInner,
    B: http_body::Body<Data = Bytes>,
{
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..requests {
        let request = service.as_inner().request.take().expect("the request");
        assert!(service.poll_ready(&mut cx).is_ready());
        let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else {
            panic!("not ready");
        };
        let mut body = pin!(black_box(response).into_body());
        while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
            let _ = black_box(frame.is_ok());
        }
    }
}

fn pass_through(criterion: &mut Criterion) {
    let request = |method: Method, path: &str, accept: &str| {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(ACCEPT, accept).body(());
        request.expect("a plain request")
    };
    let event_stream = "text/event-stream";
    let cases = [
        ("path", request(Method::GET, "/index.html", event_stream)),
        (
            "method",
            request(Method::POST, "/rooms/blue/events", event_stream),
        ),
        (
            "accept",
            request(
                Method::GET,
                "/rooms/blue/events",
                "text/html, application/json",
            ),
        ),
    ];
    for (name, request) in cases {
        let inner = || Inner {
            request: Some(request.clone()),
        };
        let mut bare = inner();
        let mut layered = SseLayer::new("/rooms/{room}/events").layer(inner());

        let mut group = criterion.benchmark_group(format!("pass_through/{name}"));
        group.bench_function("bare", |bencher| bencher.iter(|| pass(&mut bare, 1)));
        group.bench_function("layered", |bencher| bencher.iter(|| pass(&mut layered, 1)));
        group.finish();

        let [of_bare, of_layered] = medians(
            101,
            10_000,
            [&mut |requests| pass(&mut bare, requests), &mut |requests| {
                pass(&mut layered, requests);
            }],
        );
        println!("pass through, other {name}: {of_layered:.1} ns, bare {of_bare:.1} ns");
        goal(
            &format!("pass_through_{name}_ns_more_than_bare"),
            of_layered - of_bare,
            Wanted::AtMost(100.0),
        );
        let of_bare = counting::allocations(|| pass(&mut bare, 1_000));
        let of_layered = counting::allocations(|| pass(&mut layered, 1_000));
        goal(
            &format!("pass_through_{name}_allocations_in_1000"),
            of_layered as f64 - of_bare as f64,
            Wanted::AtMost(0.0),
        );
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    frames(&mut criterion);
    pass_through(&mut criterion);
    criterion.final_summary();
}
