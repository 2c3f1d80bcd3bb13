//! Clients that stop reading, beside one that does not, on one topic.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{io::AsyncWriteExt, time::interval};
use tower_sse::{
    Broker, CloseReason, Connections, Error, Event, SseConnection, SseLayer, broker::History,
    event::Decoded,
};

use crate::{
    client::{Stream, connect, request},
    goals::{Wanted, goal},
    process::{Process, Serves, joined, listen, resident, settled},
};

const STALLED: usize = 1_000;
const EVENTS: usize = 100_000;
const SIZE: usize = 1_000;

/// So many are published every 5 ms: 10 MB a second.
const AT_A_TIME: usize = 50;

const STALL_TIMEOUT: Duration = Duration::from_secs(3);

/// What the topic keeps: more than a second of it, for the time in which all sockets are filled.
const HISTORY: usize = 16 << 20;

/// What the kernel holds for each client. By itself it would take up to 4 MiB for each.
const SOCKET_BUFFER: u32 = 64 << 10;

/// What a merged frame may have, and what hyper holds back for a socket that takes nothing before
/// it stops asking: `DEFAULT_MAX_BUFFER_SIZE` in its `proto/h1/io.rs`, which `axum::serve` leaves
/// as it is.
const MERGED: usize = 32 << 10;
const OF_HYPER: usize = 8192 + 4096 * 100;

// ===== the server =====

pub(crate) struct Server {
    connections: Connections,
    broker: Broker,
    lives: Lives,
}

/// What became of each stream.
#[derive(Clone, Default)]
struct Lives(Arc<Mutex<Vec<Arc<Life>>>>);

struct Life {
    start: Instant,
    /// When the server last asked for a frame, in microseconds from the start.
    asked: AtomicU64,
    /// Why it ended, and how long after that.
    end: Mutex<Option<(CloseReason, Duration)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body that notes when it is polled.
struct Watched {
    body: Body,
    life: Arc<Life>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let now = self.life.start.elapsed().as_micros();
        self.life.asked.store(now as u64, Relaxed);
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn watch(lives: Lives, mut request: Request, next: Next) -> Response {
    let life = Arc::new(Life {
        start: Instant::now(),
        asked: AtomicU64::new(0),
        end: Mutex::new(None),
    });
    lock(&lives.0).push(Arc::clone(&life));
    request.extensions_mut().insert(Arc::clone(&life));
    let response = next.run(request).await;
    response.map(|body| Body::new(Watched { body, life }))
}

async fn events(
    State(broker): State<Broker>,
    Extension(life): Extension<Arc<Life>>,
    sse: SseConnection,
) -> Result<(), Error> {
    let _ = sse.insert(life);
    broker.subscribe(&sse, "events").await?.start();
    Ok(())
}

impl Server {
    pub(crate) async fn start() -> (Self, Vec<u16>) {
        let history = History::default().events(EVENTS).bytes(HISTORY);
        let server = Self {
            connections: Connections::new(),
            broker: Broker::builder().history(history).in_memory(),
            lives: Lives::default(),
        };
        let layer = SseLayer::new("/events")
            .registry(&server.connections)
            .stall_timeout(STALL_TIMEOUT)
            .on_close(|sse, reason| {
                if let Some(life) = sse.get::<Arc<Life>>() {
                    let asked = Duration::from_micros(life.asked.load(Relaxed));
                    let after = life.start.elapsed().saturating_sub(asked);
                    *lock(&life.end) = Some((reason, after));
                }
            });
        let lives = server.lives.clone();
        let router = Router::new()
            .route("/events", get(events))
            .with_state(server.broker.clone())
            .layer(layer)
            .layer(from_fn(move |request, next| {
                watch(lives.clone(), request, next)
            }));
        let (listener, port) = listen(Some(SOCKET_BUFFER));
        tokio::spawn(async { axum::serve(listener, router).await });
        (server, vec![port])
    }

    /// Publishes all there is. Gives the sorted times that it took, in microseconds, and the
    /// highest mark of the memory.
    async fn publish(&self) -> (Vec<u64>, u64) {
        let broker = self.broker.clone();
        // On a worker, as a handler would be.
        let published = tokio::spawn(async move {
            let mut times = Vec::with_capacity(EVENTS);
            let mut most = 0;
            let mut pace = interval(Duration::from_millis(5));
            for number in 0..EVENTS {
                if number % AT_A_TIME == 0 {
                    pace.tick().await;
                    most = resident().max(most);
                }
                let text = format!("{number:08} {:x<1$}", "", SIZE - 9);
                let start = Instant::now();
                let position = broker.publish("events", Event::message(text)).await;
                position.expect("a position");
                times.push(start.elapsed().as_micros() as u64);
            }
            times.sort_unstable();
            (times, most)
        });
        published.await.expect("all published")
    }
}

impl Serves for Server {
    async fn answer(&self, question: &str) -> String {
        if question == "publish" {
            let (times, most) = self.publish().await;
            let part = |part: usize| times[(times.len() - 1) * part / 100];
            return joined([part(50), part(99), part(100), most]);
        }
        // How many were closed as too slow, how late at most, what closed otherwise, what is open.
        let (mut slow, mut late, mut others) = (0, 0, 0);
        for life in &*lock(&self.lives.0) {
            match *lock(&life.end) {
                Some((CloseReason::SlowConsumer, after)) => {
                    slow += 1;
                    late = late.max(after.as_millis() as u64);
                }
                Some(_) => others += 1,
                None => {}
            }
        }
        let counted = self.connections.stats().closed(CloseReason::SlowConsumer);
        assert_eq!(counted, slow, "the statistics say otherwise");
        let open = self.connections.len() as u64;
        joined([slow, late, others, open, resident()])
    }
}

// ===== the clients =====

/// Reads everything, or until something is missing. Gives how many events came, in order.
async fn read_all(mut stream: Stream) -> usize {
    let mut next = 0;
    while next < EVENTS {
        let event = match stream.next().await {
            Some(Decoded::Event(event)) => event,
            Some(_) => continue,
            None => {
                println!("  the healthy client's stream has ended");
                break;
            }
        };
        match event.event_type.as_str() {
            "message" => {
                let number: usize = event.data[..8].parse().expect("a number");
                assert_eq!((number, event.data.len()), (next, SIZE), "out of order");
                next += 1;
            }
            "gap" => {
                println!("  the healthy client was left behind: {}", event.data);
                break;
            }
            _ => {}
        }
    }
    next
}

pub(crate) async fn run() {
    let (mut server, ports) = Process::start("stalled").await;
    let healthy = Stream::open(ports[0], "/events", None).await;
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut socket = connect(ports[0], Some(SOCKET_BUFFER)).await;
        let sent = socket.write_all(request("/events", None).as_bytes()).await;
        sent.expect("a request");
        stalled.push(socket);
    }
    let long = Duration::from_secs(40);
    let all_open = |it: &Vec<u64>| it[3] == STALLED as u64 + 1;
    let start = settled(long, async || server.ask::<u64>("").await, all_open).await;
    assert!(all_open(&start), "{} of them are open", start[3]);

    let healthy = tokio::spawn(read_all(healthy));
    let published = server.ask::<u64>("publish").await;
    let received = healthy.await.expect("a healthy client");
    let all_closed = |it: &Vec<u64>| it[0] == STALLED as u64;
    let end = settled(long, async || server.ask::<u64>("").await, all_closed).await;

    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let most = published[3].saturating_sub(start[4]) as usize;
    let bound = HISTORY + (STALLED + 1) * (MERGED + OF_HYPER);
    println!(
        "  {EVENTS} events of {SIZE} B; publishing took p50 {} us, p99 {} us, at most {} us",
        published[0], published[1], published[2],
    );
    println!(
        "  {:.1} MiB with {STALLED} clients at rest, at most {:.1} more; the bound is {} MiB of \
         history, and for each client a frame of {} KiB and {} KiB that hyper takes ahead",
        mib(start[4] as usize),
        mib(most),
        HISTORY >> 20,
        MERGED >> 10,
        OF_HYPER >> 10,
    );
    println!(
        "  {} closed as too slow, {} otherwise (the healthy one, when it has had all)",
        end[0], end[2],
    );
    goal(
        "stalled_memory_mib",
        mib(most),
        Wanted::AtMost(mib(bound).round()),
    );
    goal(
        "stalled_closed",
        end[0] as f64,
        Wanted::AtLeast(STALLED as f64),
    );
    let deadline = STALL_TIMEOUT.as_secs_f64() + 1.0;
    let name = "stalled_closed_after_the_last_take_s";
    goal(name, end[1] as f64 / 1e3, Wanted::AtMost(deadline));
    let name = "stalled_healthy_client_received";
    goal(name, received as f64, Wanted::AtLeast(EVENTS as f64));
    let p99 = published[1] as f64 / 1e3;
    goal("stalled_publish_p99_ms", p99, Wanted::AtMost(5.0));
    drop(stalled);
}
