//! What a broker costs: publishing, waking many, waiting, and topics that are gone.

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

#[path = "support/counting.rs"]
mod counting;
#[path = "support/goals.rs"]
mod goals;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, service_fn};
use tower_sse::{Broker, Connections, Event, SseConnection, SseLayer, broker::History};

use goals::{Wanted, goal, medians};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const SUBSCRIBERS: usize = 10_000;

const DATA: &str = "0123456789012345678901234567890123456789\
                    012345678901234567890123456789012345678901234567890123456789";

/// The handles that the application keeps.
static KEPT: Mutex<Vec<SseConnection>> = Mutex::new(Vec::new());

fn keep(sse: SseConnection) {
    KEPT.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(sse);
}

fn event() -> Event {
    Event::new("tick", DATA).expect("a plain type")
}

fn one_thread() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

async fn publish(broker: &Broker, events: u64) {
    for _ in 0..events {
        let position = broker.publish("ticks", event()).await;
        position.expect("a position");
    }
}

/// Lets the broker's task do what there is to do.
async fn settle() {
    for _ in 0..SUBSCRIBERS / 100 {
        tokio::task::yield_now().await;
    }
}

// ===== publishing to nobody =====

fn publishing() {
    let one = one_thread();
    let many = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (broker, brokers) = (Broker::in_memory(), Broker::in_memory());
    let [of_one, of_many] = medians(
        31,
        10_000,
        [
            &mut |events| one.block_on(publish(&broker, events)),
            &mut |events| many.block_on(publish(&brokers, events)),
        ],
    );
    goal("publish_to_nobody_ns", of_one, Wanted::AtMost(1000.0));
    goal(
        "publish_to_nobody_many_threads_ns",
        of_many,
        Wanted::AtMost(1000.0),
    );
    let allocations = counting::allocations(|| one.block_on(publish(&broker, 10_000)));
    println!(
        "publish to nobody: {:.2} allocations an event",
        allocations as f64 / 10_000.0
    );
}

// ===== many subscribers =====

/// Counts how often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Opens a stream with this service. Takes what it begins with.
fn open<S, B>(service: &mut S, cx: &mut Context<'_>) -> Pin<Box<B>>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    assert!(service.poll_ready(cx).is_ready());
    let request = Request::get("/events").body(()).expect("a plain request");
    let mut future = Box::pin(service.call(request));
    let Poll::Ready(Ok(response)) = future.as_mut().poll(cx) else {
        panic!("no response yet");
    };
    let mut body = Box::pin(response.into_body());
    take_all(body.as_mut(), cx);
    body
}

/// Takes frames until there is none. Gives how many there were.
fn take_all<B: Body<Data = Bytes>>(mut body: Pin<&mut B>, cx: &mut Context<'_>) -> usize {
    let mut frames = 0;
    while let Poll::Ready(frame) = body.as_mut().poll_frame(cx) {
        assert!(matches!(frame, Some(Ok(_))), "the stream has ended");
        frames += 1;
    }
    frames
}

/// Answers, with a subscription to these topics.
async fn subscribe(
    broker: &Broker,
    topics: &[&str],
    mut request: Request<()>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let sse: SseConnection = request.extensions_mut().remove().expect("a connection");
    if !topics.is_empty() {
        let subscription = broker.subscribe(&sse, topics.to_vec()).await;
        subscription.expect("a subscription").start();
    }
    keep(sse);
    Ok(Response::default())
}

fn waking() {
    const EVENTS: u64 = 200;
    let runtime = one_thread();
    let _guard = runtime.enter();
    let broker = Broker::in_memory();
    let turn = |events: u64| {
        runtime.block_on(async {
            for _ in 0..events {
                publish(&broker, 1).await;
                settle().await;
            }
        });
    };
    turn(2000);
    let of_nobody = counting::allocations(|| turn(EVENTS));

    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);
    let subscribe = service_fn(|request| subscribe(&broker, &["ticks"], request));
    let mut service = SseLayer::new("/events").layer(subscribe);
    let bodies = (0..SUBSCRIBERS).map(|_| open(&mut service, &mut cx));
    let mut bodies: Vec<_> = bodies.collect();
    wakes.0.store(0, Relaxed);

    let encodings = broker.stats().records;
    let (mut of_publishing, mut of_taking) = (0, 0);
    for _ in 0..EVENTS {
        of_publishing += counting::allocations(|| turn(1));
        of_taking += counting::allocations(|| {
            let frames = bodies.iter_mut().map(|it| take_all(it.as_mut(), &mut cx));
            assert_eq!(frames.sum::<usize>(), SUBSCRIBERS, "each event once");
        });
    }
    assert_eq!(wakes.0.load(Relaxed), SUBSCRIBERS * EVENTS as usize);

    let each = |all: u64| all as f64 / EVENTS as f64;
    let encodings = each(broker.stats().records - encodings);
    goal("encodings_a_publish", encodings, Wanted::AtMost(1.0));
    // A few, for the list of wakers; not one for each.
    let more = each(of_publishing) - each(of_nobody);
    let name = "allocations_of_waking_10000";
    goal(name, more, Wanted::AtMost(20.0));
    println!("publish: {:.2} allocations to nobody", each(of_nobody));
    let of_taking = each(of_taking) / SUBSCRIBERS as f64;
    goal("allocations_of_a_delivery", of_taking, Wanted::AtMost(0.0));

    let [of_publish, of_round] = medians(
        21,
        2,
        [
            &mut |events| runtime.block_on(publish(&broker, events)),
            &mut |events| {
                for _ in 0..events {
                    turn(1);
                    bodies.iter_mut().for_each(|it| {
                        take_all(it.as_mut(), &mut cx);
                    });
                }
            },
        ],
    );
    println!(
        "{SUBSCRIBERS} subscribers: publish {of_publish:.0} ns, a delivery {:.0} ns",
        of_round / SUBSCRIBERS as f64
    );
    drop(bodies);
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

// ===== waiting =====

/// The heap that each of many idle connections takes.
fn idle_heap(broker: &Broker, topics: &[&str]) -> f64 {
    let connections = Connections::new();
    let subscribe = service_fn(|request| subscribe(broker, topics, request));
    let mut service = SseLayer::new("/events")
        .registry(&connections)
        .layer(subscribe);
    let mut kept = Vec::new();
    kept.reserve_exact(SUBSCRIBERS);
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    let mut bodies = Vec::with_capacity(SUBSCRIBERS);
    let mut cx = Context::from_waker(Waker::noop());

    let before = counting::live_bytes();
    bodies.extend((0..SUBSCRIBERS).map(|_| open(&mut service, &mut cx)));
    let bytes = counting::live_bytes() - before;
    assert_eq!(connections.len(), SUBSCRIBERS);
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).clear();
    bytes as f64 / SUBSCRIBERS as f64
}

fn waiting() {
    let runtime = one_thread();
    let _guard = runtime.enter();
    let broker = Broker::in_memory();
    let bare = idle_heap(&broker, &[]);
    let before = counting::live_bytes();
    let subscribed = idle_heap(&broker, &["orders", "alerts", "news"]);
    let left = counting::live_bytes() - before;
    println!("idle: {subscribed:.0} bytes with 3 topics, {bare:.0} without");
    let name = "idle_subscriber_of_3_topics_bytes";
    goal(name, subscribed - bare, Wanted::AtMost(512.0));
    println!("idle: {left} bytes left when the subscribers are gone");
    assert_eq!(broker.topic_count(), 0);
}

// ===== topics that are gone =====

fn gone() {
    const TOPICS: usize = 1_000_000;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let start = counting::live_bytes();
        let history = History::default().age(Duration::from_secs(60));
        let broker = Broker::builder().history(history).in_memory();
        let mut peak = 0;
        let begin = Instant::now();
        for number in 0..TOPICS {
            let topic = format!("job:{number}");
            let position = broker.publish(topic, event()).await;
            position.expect("a position");
            if number % 1000 == 0 {
                peak = peak.max(counting::live_bytes() - start);
                settle().await;
            }
        }
        let time = begin.elapsed().as_nanos() as usize / TOPICS;
        let topics = broker.topic_count();
        tokio::time::sleep(Duration::from_secs(120)).await;
        settle().await;
        assert_eq!(broker.topic_count(), 0, "topics are kept");
        let left = counting::live_bytes() - start;
        const MIB: f64 = (1 << 20) as f64;
        println!(
            "{TOPICS} topics used once: {time} ns each, {topics} kept at last, {:.1} MiB at the peak",
            peak as f64 / MIB
        );
        // The tags of the latest 65,536 records stay: half a MiB.
        let name = "a_million_topics_gone_mib_left";
        goal(name, left as f64 / MIB, Wanted::AtMost(1.0));
        // The broker's bound is 64 MiB, reckoned roughly.
        let name = "a_million_topics_mib_at_the_peak";
        goal(name, peak as f64 / MIB, Wanted::AtMost(80.0));
    });
}

fn main() {
    publishing();
    waking();
    counting::start();
    waiting();
    gone();
}
