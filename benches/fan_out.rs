//! Fan-out over loopback: one topic, many subscribers, the server in a process of its own.
//!
//! ```text
//! cargo bench -p tower-sse-benches --bench fan_out               1,000 subscribers
//! cargo bench -p tower-sse-benches --bench fan_out -- 10000      as many as are asked for
//! cargo bench -p tower-sse-benches --bench fan_out -- paced      20 events a second, and how late they come
//! ```
//!
//! Ours, a broker behind the layer, on the crate's own server with direct streams and on
//! `axum::serve`, against the usual axum `Sse` with `tokio::sync::broadcast`; and against one epoll
//! loop that does nothing else, which is what the machine can do. What counts are deliveries per second of the server's processor time: the
//! load, which shares the machine, does not blur that. Every delivery is counted, and its order
//! checked. Ours carry their ids, which makes each of them about 40 bytes longer.

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

#[path = "fan_out/epoll.rs"]
mod epoll;
#[path = "support/files.rs"]
mod files;
#[path = "support/goals.rs"]
mod goals;
#[path = "fan_out/load.rs"]
mod load;
#[path = "fan_out/paced.rs"]
mod paced;
#[path = "fan_out/server.rs"]
mod server;

use std::{rc::Rc, time::Instant};

use tokio::task::LocalSet;

use goals::{Wanted, goal};
use load::{Control, Deliveries, Subscribers};
use server::{Contender, Server};

const ROUNDS: usize = 5;

/// How many deliveries are measured at a time.
const DELIVERIES: usize = 80_000;

/// Sizes of events, and how many are in flight.
const CELLS: [(usize, usize); 4] = [(100, 1), (100, 8), (1000, 1), (1000, 8)];

/// A server with its subscribers, and what was measured of it.
struct Rival {
    server: Server,
    control: Control,
    deliveries: Rc<Deliveries>,
    subscribers: Option<Subscribers>,
    results: [Results; CELLS.len()],
}

#[derive(Default)]
struct Results {
    /// Deliveries per second of processor time, one figure a round.
    per_cpu_second: Vec<f64>,
    per_second: Vec<f64>,
    latencies: Vec<u32>,
}

impl Rival {
    async fn start(contender: Contender) -> Self {
        let server = Server::start(contender);
        Self {
            control: Control::connect(server.port).await,
            server,
            deliveries: Rc::default(),
            subscribers: None,
            results: Default::default(),
        }
    }

    async fn connect(&mut self, count: usize) {
        if self.subscribers.is_none() {
            let port = self.server.port;
            self.subscribers = Some(Subscribers::connect(port, count, &self.deliveries).await);
        }
    }

    /// Publishes for a while, and notes how it went.
    async fn run(&mut self, cell: usize, subscribers: usize, is_measured: bool) {
        let (size, in_flight) = CELLS[cell];
        let turns = (DELIVERIES / subscribers / in_flight).max(2);
        let start = Instant::now();
        let cpu = self.control.cpu_time().await;
        for _ in 0..turns {
            self.deliveries.expect(subscribers * in_flight, size);
            self.control.publish(in_flight, size).await;
            self.deliveries.all().await;
        }
        let cpu = (self.control.cpu_time().await - cpu) as f64 / 1e9;
        let time = start.elapsed().as_secs_f64();
        let latencies = self.deliveries.latencies.take();
        if is_measured {
            let deliveries = (turns * subscribers * in_flight) as f64;
            let results = &mut self.results[cell];
            results.per_cpu_second.push(deliveries / cpu);
            results.per_second.push(deliveries / time);
            results.latencies.extend(latencies);
        }
    }
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn report(name: &str, results: &mut Results) {
    results.latencies.sort_unstable();
    let latency = |part: usize| results.latencies[(results.latencies.len() - 1) * part / 100];
    println!(
        "  {name}: {:.0} deliveries per CPU second, {:.0} a second, latency p50 {} us, p99 {} us",
        median(results.per_cpu_second.iter().copied()),
        median(results.per_second.iter().copied()),
        latency(50),
        latency(99),
    );
}

async fn compare(subscribers: usize, files: usize) {
    let mut rivals = Vec::new();
    for contender in Contender::ALL {
        rivals.push(Rival::start(contender).await);
    }
    // Where the files do not suffice for all, they take turns.
    let all_fit = rivals.len() * subscribers + 100 <= files;
    for round in 0..=ROUNDS {
        for turn in 0..rivals.len() {
            let at = (round + turn) % rivals.len();
            let rival = &mut rivals[at];
            rival.connect(subscribers).await;
            for cell in 0..CELLS.len() {
                rival.run(cell, subscribers, round > 0).await;
            }
            if !all_fit {
                rival.subscribers = None;
            }
        }
    }
    for (cell, (size, in_flight)) in CELLS.into_iter().enumerate() {
        println!("{subscribers} subscribers, {size} B, {in_flight} in flight:");
        for (rival, contender) in rivals.iter_mut().zip(Contender::ALL) {
            report(contender.name(), &mut rival.results[cell]);
        }
        let [direct, ours, axum, epoll] = [0, 1, 2, 3].map(|at: usize| {
            let results: &Results = &rivals[at].results[cell];
            results
        });
        for (name, contender) in [("ours", ours), ("direct", direct), ("epoll", epoll)] {
            // Of the same round, so that what slows the machine for a while slows both.
            let rounds = contender.per_cpu_second.iter().zip(&axum.per_cpu_second);
            let ratio = median(rounds.map(|(its, axums)| its / axums));
            let wanted = match (name, subscribers, size, in_flight) {
                ("ours", 1000, 100, 1) => Some(0.95),
                ("ours", 1000, 100, 8) => Some(1.1),
                ("direct", 1000, 100, 1) => Some(1.3),
                ("direct", 1000, 100, 8) => Some(1.6),
                _ => None,
            };
            let name =
                format!("fan_out_{subscribers}_{size}B_{in_flight}_in_flight_{name}_over_axum");
            match wanted {
                Some(wanted) => goal(&name, ratio, Wanted::AtLeast(wanted)),
                None => println!("  {name} {ratio:.2}"),
            }
        }
    }
}

fn main() {
    let files = files::raise_limit();
    if let Some(contender) = server::role() {
        server::serve(contender);
        return;
    }
    let asked = std::env::args().find_map(|argument| argument.parse().ok());
    let asked: usize = asked.unwrap_or(1000);
    let subscribers = asked.clamp(1, files.saturating_sub(100).max(1));
    if subscribers < asked {
        println!("at most {files} open files: {subscribers} subscribers instead of {asked}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let is_paced = std::env::args().any(|argument| argument == "paced");
    LocalSet::new().block_on(&runtime, async {
        if is_paced {
            paced::compare(subscribers).await;
        } else {
            compare(subscribers, files).await;
        }
    });
}
