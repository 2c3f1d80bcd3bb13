//! A crowd that comes back: thousands of clients at once, each some events behind, while others go
//! on publishing.

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

#[path = "support/counting.rs"]
mod counting;
#[path = "support/goals.rs"]
mod goals;

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Barrier,
    task::JoinSet,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    broker::{Outcome, Position},
};

use goals::{Wanted, goal};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const CLIENTS: usize = 5_000;
const BEHIND: usize = 100;
const ROUNDS: usize = 5;

/// How many topics there are, and the size of the events.
const CASES: [(usize, usize); 2] = [(1, 1000), (CLIENTS, 100)];

fn topic(client: usize, topics: usize) -> String {
    format!("topic:{}", client % topics)
}

async fn publish(broker: &Broker, topic: &str, number: usize, size: usize) -> Position {
    let event = Event::message(format!("{number:08} {:x<1$}", "", size - 9));
    let position = broker.publish(topic, event).await;
    position.expect("a position")
}

/// Heap in use, and its highest mark. Looked at while clients hold what they have taken.
struct Heap {
    start: isize,
    peak: AtomicIsize,
}

impl Heap {
    fn look(&self) {
        self.peak
            .fetch_max(counting::live_bytes() - self.start, Relaxed);
    }
}

type Events = Pin<Box<dyn Body<Data = Bytes, Error = tower_sse::BoxError> + Send>>;

/// Asks for a topic's events after this place.
async fn come_back(broker: Broker, topic: String, place: Position) -> Events {
    let subscribe = service_fn(move |mut request: Request<()>| {
        let (broker, topic) = (broker.clone(), topic.clone());
        async move {
            let sse: SseConnection = request.extensions_mut().remove().expect("a connection");
            let subscription = broker.subscribe(&sse, topic).await;
            let subscription = subscription.expect("a subscription");
            assert_eq!(subscription.outcome(), Outcome::Exact);
            subscription.start();
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    });
    let request = Request::get("/events").header("last-event-id", place.to_string());
    let request = request.body(()).expect("a plain request");
    let response = SseLayer::new("/events")
        .layer(subscribe)
        .oneshot(request)
        .await;
    let Ok(response) = response;
    Box::pin(response.into_body())
}

/// Takes what was missed, and checks it. All hold their first frame until everybody has one, as if
/// no socket took anything.
async fn take(mut events: Events, heap: &Heap, all_have_one: &Barrier) {
    let mut next = 0;
    let mut is_first = true;
    // The welcome comes with the first frame.
    while let Some(frame) = ready_frame(&mut events).await {
        for at in memchr::memmem::find_iter(&frame, b"data: ") {
            let data = &frame[at + 6..];
            // What is not an event of the topic is JSON: the welcome, a position.
            if data[0] != b'{' {
                assert!(data.starts_with(format!("{next:08} ").as_bytes()), "{next}");
                next += 1;
            }
        }
        heap.look();
        if std::mem::take(&mut is_first) {
            all_have_one.wait().await;
        }
    }
    assert_eq!(next, BEHIND, "not what was missed");
}

/// The next frame, if there is one now.
async fn ready_frame(events: &mut Events) -> Option<Bytes> {
    let frame = poll_fn(|cx| Poll::Ready(events.as_mut().poll_frame(cx))).await;
    let Poll::Ready(frame) = frame else {
        return None;
    };
    let frame = frame.expect("a stream that goes on").expect("no failure");
    Some(frame.into_data().expect("data"))
}

/// Publishes to a topic of its own until it is told to stop. Gives how long each took.
fn publish_on(
    runtime: &Runtime,
    broker: Broker,
    stop: Arc<AtomicBool>,
) -> thread::JoinHandle<Vec<Duration>> {
    let runtime = runtime.handle().clone();
    thread::spawn(move || {
        let mut times = Vec::with_capacity(100_000);
        runtime.block_on(async {
            while !stop.load(Relaxed) {
                let start = Instant::now();
                publish(&broker, "meanwhile", times.len(), 100).await;
                times.push(start.elapsed());
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        });
        times
    })
}

/// One round: everybody comes back. Gives the times of what was published meanwhile, how long all
/// took, and the highest mark of the heap.
fn round(runtime: &Runtime, (topics, size): (usize, usize)) -> (Vec<Duration>, Duration, isize) {
    // Large enough for all that was missed, which is what the round is about.
    let broker = Broker::builder().max_bytes(1 << 30).in_memory();
    let places: Vec<Position> = runtime.block_on(async {
        let mut places = Vec::new();
        for of in 0..topics {
            let topic = topic(of, topics);
            places.push(publish(&broker, &topic, 0, size).await);
            for number in 0..BEHIND {
                publish(&broker, &topic, number, size).await;
            }
        }
        places
    });

    let stop = Arc::new(AtomicBool::new(false));
    let publisher = publish_on(runtime, broker.clone(), Arc::clone(&stop));
    let heap = Arc::new(Heap {
        start: counting::live_bytes(),
        peak: AtomicIsize::new(0),
    });
    let done = Arc::new(AtomicUsize::new(0));
    let (time, exact) = runtime.block_on(async {
        let gate = Arc::new(Barrier::new(CLIENTS + 1));
        let all_have_one = Arc::new(Barrier::new(CLIENTS));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (broker, gate) = (broker.clone(), Arc::clone(&gate));
            let (heap, done) = (Arc::clone(&heap), Arc::clone(&done));
            let all_have_one = Arc::clone(&all_have_one);
            let (topic, place) = (topic(client, topics), places[client % topics]);
            clients.spawn(async move {
                gate.wait().await;
                let events = come_back(broker, topic, place).await;
                take(events, &heap, &all_have_one).await;
                done.fetch_add(1, Relaxed);
            });
        }
        let start = Instant::now();
        gate.wait().await;
        while let Some(client) = clients.join_next().await {
            client.expect("an exact replay");
        }
        (start.elapsed(), done.load(Relaxed))
    });
    stop.store(true, Relaxed);
    let times = publisher.join().expect("a publisher");
    assert_eq!(exact, CLIENTS);
    (times, time, heap.peak.load(Relaxed))
}

fn main() {
    let runtime = Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    counting::start();
    for (topics, size) in CASES {
        let (mut times, mut longest, mut peak) = (Vec::new(), Duration::ZERO, 0);
        for _ in 0..ROUNDS {
            let (of_round, time, heap) = round(&runtime, (topics, size));
            times.extend(of_round);
            longest = longest.max(time);
            peak = peak.max(heap);
        }
        times.sort_unstable();
        let part = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
        println!(
            "{CLIENTS} clients, {BEHIND} events of {size} B behind, {topics} topics: all exact \
             within {:.0} ms; {} events meanwhile, the slowest {:.2} ms",
            longest.as_secs_f64() * 1e3,
            times.len(),
            part(100),
        );
        let name = format!("resume_{topics}_topics_publish_p99_ms");
        goal(&name, part(99), Wanted::AtMost(5.0));
        // One frame of 32 KiB that nobody has written yet, the connection, and the client's task
        // here. All that was missed would be 112 KiB, of the large events.
        let name = format!("resume_{topics}_topics_peak_heap_kib_a_client");
        let peak = peak as f64 / CLIENTS as f64 / 1024.0;
        goal(&name, peak, Wanted::AtMost(48.0));
    }
}
