//! Two nodes that share a log on a real server: how long an event takes from its publisher to a
//! subscriber of the other node, how many go through, what many subscribers and an idle minute cost
//! the server.
//!
//! `cargo bench -p tower-sse-benches --bench nodes` measures all servers, with a name after `--` that one alone.

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

#[path = "support/goals.rs"]
mod goals;
/// What the suites start real servers with.
#[allow(
    dead_code,
    missing_debug_implementations,
    unreachable_pub,
    reason = "the suites use more of it"
)]
#[path = "../tests/support"]
mod servers {
    pub mod nats;
    pub mod ports;
    pub mod redis;
    pub mod watched;
}

use std::{
    env,
    time::{Duration, Instant},
};

use http::Request;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{interval, sleep},
};
use tower_sse::{
    Broker, Event, SseConnection, SseLayer,
    backplane::redis::RedisStreams,
    broker::History,
    test_util::{EventReader, connection_of},
};

use goals::{Wanted, goal};
use servers::{nats::NatsServer, redis::RedisServer};

const SUBSCRIBERS: usize = 5_000;

/// A server, and how nodes come to share a log on it.
enum Engine {
    Nats(NatsServer),
    Redis(RedisServer),
}

impl Engine {
    const NAMES: [&str; 2] = ["redis", "nats"];

    async fn start(name: &str) -> Self {
        match name {
            "nats" => Self::Nats(NatsServer::start().await),
            "redis" => Self::Redis(RedisServer::start().await),
            _ => panic!("no such server: {name}"),
        }
    }

    /// How many events a second are wanted.
    fn wanted_rate(&self) -> f64 {
        match self {
            Self::Nats(_) => 25_000.0,
            Self::Redis(_) => 40_000.0,
        }
    }

    /// A node with a history that holds all that is measured.
    async fn node(&self) -> Broker {
        let history = History::default().events(1 << 20).bytes(1 << 30);
        let broker = Broker::builder().history(history).max_bytes(1 << 30);
        match self {
            Self::Nats(server) => broker.build(server.log().await),
            Self::Redis(server) => {
                let log = RedisStreams::connect(server.url()).await;
                broker.build(log.expect("a URL"))
            }
        }
    }

    /// How many connections, or consumers, of nodes wait for records, and how many connections there
    /// were ever.
    async fn connections(&self) -> (usize, u64) {
        match self {
            Self::Nats(server) => {
                let (clients, consumers) = server.clients_and_consumers().await;
                (
                    clients.max(consumers) as usize,
                    server.connections_ever().await,
                )
            }
            Self::Redis(server) => {
                let clients: String = server.query(&["CLIENT", "LIST"]).await;
                let readers = clients
                    .lines()
                    .filter(|it| it.contains("name=tower-sse-read "));
                let count = readers.count();
                let stats: String = server.query(&["INFO", "stats"]).await;
                let line = stats
                    .lines()
                    .find_map(|line| line.strip_prefix("total_connections_received:"));
                (count, line.and_then(|it| it.parse().ok()).expect("a count"))
            }
        }
    }
}

/// A stream of the one topic, which has begun.
async fn subscribe(broker: &Broker) -> (SseConnection, EventReader) {
    let (sse, mut events) = connection_of(&SseLayer::any_path(), Request::default()).await;
    let subscription = broker
        .subscribe(&sse, "ticks")
        .await
        .expect("a subscription");
    subscription.resolved().await;
    subscription.start();
    events.event().await.expect("the welcome");
    (sse, events.time_limit(Duration::from_secs(60)))
}

/// An event of 100 bytes, which says when it was published.
fn event(start: Instant, number: u64) -> Event {
    let text = format!("{:020} {number:020} {:058}", start.elapsed().as_nanos(), 0);
    Event::message(text)
}

/// Takes so many events. Gives the number and the latency of each, in order.
fn receive(
    mut events: EventReader,
    start: Instant,
    count: usize,
) -> JoinHandle<Vec<(u64, Duration)>> {
    tokio::spawn(async move {
        let mut got = Vec::with_capacity(count);
        while got.len() < count {
            let frame = events.frame().await.expect("a frame");
            let now = start.elapsed();
            for line in frame.split(|byte| *byte == b'\n') {
                assert!(!line.starts_with(b"event: gap"), "a gap");
                let Some(data) = line.strip_prefix(b"data: ").filter(|it| it.len() == 100) else {
                    continue;
                };
                let digits = |at: usize| {
                    let text = std::str::from_utf8(&data[at..at + 20]).expect("digits");
                    text.parse::<u64>().expect("a number")
                };
                let sent = Duration::from_nanos(digits(0));
                got.push((digits(21), now.saturating_sub(sent)));
            }
        }
        got
    })
}

fn percentile(sorted: &[Duration], part: f64) -> f64 {
    let at = ((sorted.len() - 1) as f64 * part) as usize;
    sorted[at].as_secs_f64() * 1000.0
}

/// Whether each number is there, once.
fn are_complete(got: &[(u64, Duration)]) -> bool {
    let mut numbers: Vec<_> = got.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    numbers.into_iter().eq(0..got.len() as u64)
}

async fn latency(name: &str, engine: &Engine) {
    const EVENTS: u64 = 50_000;
    let (here, there) = (engine.node().await, engine.node().await);
    let (_sse, events) = subscribe(&there).await;
    subscribe(&here).await;
    let start = Instant::now();
    let received = receive(events, start, EVENTS as usize);
    let mut ticks = interval(Duration::from_millis(1));
    let mut publishing = JoinSet::new();
    for number in 0..EVENTS {
        if number % 5 == 0 {
            ticks.tick().await;
            while publishing.try_join_next().is_some() {}
        }
        let here = here.clone();
        publishing.spawn(async move {
            let position = here.publish("ticks", event(start, number)).await;
            position.expect("a position");
        });
    }
    let rate = EVENTS as f64 / start.elapsed().as_secs_f64();
    let got = received.await.expect("all events");
    assert!(are_complete(&got), "events are missing, or came twice");
    let mut times: Vec<_> = got.iter().map(|(_, time)| *time).collect();
    times.sort_unstable();
    println!(
        "{name}: {rate:.0} events/s, longest {:.2} ms",
        percentile(&times, 1.0)
    );
    goal(
        &format!("nodes_{name}_latency_p50_ms"),
        percentile(&times, 0.5),
        Wanted::AtMost(2.0),
    );
    goal(
        &format!("nodes_{name}_latency_p99_ms"),
        percentile(&times, 0.99),
        Wanted::AtMost(20.0),
    );
}

async fn throughput(name: &str, engine: &Engine) {
    const EVENTS: u64 = 300_000;
    const PUBLISHERS: u64 = 500;
    let mut rates = Vec::new();
    for _ in 0..3 {
        let (here, there) = (engine.node().await, engine.node().await);
        let (_sse, events) = subscribe(&there).await;
        subscribe(&here).await;
        let start = Instant::now();
        let received = receive(events, start, EVENTS as usize);
        for publisher in 0..PUBLISHERS {
            let here = here.clone();
            tokio::spawn(async move {
                for number in (publisher..EVENTS).step_by(PUBLISHERS as usize) {
                    let position = here.publish("ticks", event(start, number)).await;
                    position.expect("a position");
                }
            });
        }
        let got = received.await.expect("all events");
        assert!(are_complete(&got), "events are missing, or came twice");
        rates.push(EVENTS as f64 / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let wanted = Wanted::AtLeast(engine.wanted_rate());
    goal(
        &format!("nodes_{name}_events_per_s"),
        rates[rates.len() / 2],
        wanted,
    );
}

async fn subscribers(name: &str, engine: &Engine) {
    let broker = engine.node().await;
    let mut streams = Vec::new();
    for _ in 0..SUBSCRIBERS {
        streams.push(subscribe(&broker).await);
    }
    let start = Instant::now();
    let mut received = Vec::new();
    let mut kept = Vec::new();
    for (sse, events) in streams {
        kept.push(sse);
        received.push(receive(events, start, 10));
    }
    for number in 0..10 {
        let position = broker.publish("ticks", event(start, number)).await;
        position.expect("a position");
    }
    for received in received {
        assert!(are_complete(&received.await.expect("all events")));
    }
    let (readers, before) = engine.connections().await;
    goal(
        &format!("nodes_{name}_readers_of_5000"),
        readers as f64,
        Wanted::AtMost(1.0),
    );
    sleep(Duration::from_secs(60)).await;
    let (_, after) = engine.connections().await;
    // Those that ask.
    let (_, asking) = engine.connections().await;
    let made = (after - before).saturating_sub(asking - after);
    goal(
        &format!("nodes_{name}_reconnects_idle_minute"),
        made as f64,
        Wanted::AtMost(0.0),
    );
    drop(kept);
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let wanted: Vec<_> = env::args()
        .skip(1)
        .filter(|it| !it.starts_with('-'))
        .collect();
    for name in Engine::NAMES {
        if wanted.is_empty() || wanted.iter().any(|it| it == name) {
            latency(name, &Engine::start(name).await).await;
            throughput(name, &Engine::start(name).await).await;
            subscribers(name, &Engine::start(name).await).await;
        }
    }
}
