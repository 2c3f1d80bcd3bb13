//! How fast streams open: from the connection's first packet to the first event.
//!
//! ```text
//! cargo bench -p tower-sse-benches --bench connect                 both parts
//! cargo bench -p tower-sse-benches --bench connect -- set_up       one of them, by name
//! ```
//!
//! Ours with direct streams, against axum's `Sse` on `axum::serve` with a listener as tokio makes
//! it; each server in a process of its own.
//!
//! - `set_up`: streams that are opened one after the other, and 32 at a time. Both servers take
//!   turns, and the ratio is one of the same round.
//! - `rush`: 10,000 clients that all want to be back at once, 200 of them on their way at any time,
//!   and then with no such bound. They keep their streams.

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

#[path = "support/files.rs"]
mod files;
#[path = "support/goals.rs"]
mod goals;
#[path = "support/opening.rs"]
mod opening;
#[path = "support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use goals::{Wanted, goal};
use opening::{Contender, open};
use process::{Process, cpu_time, settled};

/// No wait takes this long, unless something is broken.
const LONG: Duration = Duration::from_secs(60);

const RIVALS: [Contender; 2] = [Contender::Direct, Contender::Axum];

const SET_UP_ROUNDS: usize = 21;

/// How many streams are being opened at a time, and how many are opened in a round.
const SET_UPS: [(usize, usize); 2] = [(1, 400), (32, 1600)];

const RUSH_ROUNDS: usize = 7;
const CLIENTS: usize = 10_000;
const OUTSTANDING: [usize; 2] = [200, CLIENTS];

struct Rival {
    name: &'static str,
    server: Process,
    port: u16,
    /// That it has open without streams.
    files: usize,
}

/// How the opening of streams went.
struct Opened {
    /// Each one's time in microseconds, in order.
    micros: Vec<f64>,
    all: Duration,
    server_cpu: Duration,
    load_cpu: Duration,
}

impl Rival {
    async fn start(contender: Contender) -> Self {
        let (mut server, ports) = Process::start(contender.name()).await;
        Self {
            name: contender.name(),
            files: server.ask("files").await[0],
            server,
            port: ports[0],
        }
    }

    async fn cpu_time(&mut self) -> Duration {
        Duration::from_nanos(self.server.ask("cpu").await[0])
    }

    /// Opens so many streams, and closes them when all are open.
    async fn open(&mut self, count: usize, at_a_time: usize) -> Opened {
        let port = self.port;
        let (server_cpu, load_cpu) = (self.cpu_time().await, cpu_time());
        let start = Instant::now();
        let opening = stream::iter(0..count).map(async |_| {
            let start = Instant::now();
            let stream = open(port).await;
            (stream, start.elapsed().as_secs_f64() * 1e6)
        });
        let opened: Vec<_> = opening.buffer_unordered(at_a_time).collect().await;
        let all = start.elapsed();
        let load_cpu = cpu_time() - load_cpu;
        let server_cpu = self.cpu_time().await - server_cpu;
        let (streams, mut micros): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        assert_eq!(streams.len(), count);
        micros.sort_by(f64::total_cmp);
        drop(streams);
        let ask = async || self.server.ask::<usize>("files").await[0];
        let files = settled(LONG, ask, |files| *files == self.files).await;
        assert_eq!(files, self.files, "the server's open files");
        Opened {
            micros,
            all,
            server_cpu,
            load_cpu,
        }
    }
}

/// Runs both in turn, round after round, and gives what was measured of each. A round before the
/// first warms them up.
async fn rounds(
    rivals: &mut [Rival; 2],
    rounds: usize,
    count: usize,
    at_a_time: usize,
) -> [Vec<Opened>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        for turn in 0..rivals.len() {
            let at = (round + turn) % rivals.len();
            let opened = rivals[at].open(count, at_a_time).await;
            if round > 0 {
                all[at].push(opened);
            }
        }
    }
    all
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn part(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// What each of so many cost, in microseconds.
fn each(time: impl Fn(&Opened) -> Duration, rounds: &[Opened]) -> f64 {
    let each = |opened: &Opened| time(opened).as_secs_f64() * 1e6 / opened.micros.len() as f64;
    median(rounds.iter().map(each))
}

async fn set_up(rivals: &mut [Rival; 2]) {
    for (at_a_time, count) in SET_UPS {
        println!("connection to first event, {at_a_time} at a time:");
        let all = rounds(rivals, SET_UP_ROUNDS, count, at_a_time).await;
        for (rival, rounds) in rivals.iter().zip(&all) {
            let of = |percent| median(rounds.iter().map(|it| part(&it.micros, percent)));
            println!(
                "  {}: p50 {:.0} us, p99 {:.0} us; {:.0} us of the server's processor time",
                rival.name,
                of(50),
                of(99),
                each(|it| it.server_cpu, rounds),
            );
        }
        let [ours, axums] = &all;
        let halves = |opened: &Opened| part(&opened.micros, 50);
        let both = ours.iter().zip(axums);
        let ratio = median(both.map(|(ours, axums)| halves(ours) / halves(axums)));
        // The same, and what the machine adds of its own.
        let wanted = Wanted::AtMost(1.05);
        goal(
            &format!("connect_{at_a_time}_at_a_time_over_axum"),
            ratio,
            wanted,
        );
    }
}

async fn rush(rivals: &mut [Rival; 2]) {
    for outstanding in OUTSTANDING {
        println!("{CLIENTS} clients, {outstanding} on their way at a time:");
        let all = rounds(rivals, RUSH_ROUNDS, CLIENTS, outstanding).await;
        for (rival, rounds) in rivals.iter().zip(&all) {
            let mut seconds: Vec<_> = rounds.iter().map(|it| it.all.as_secs_f64()).collect();
            seconds.sort_by(f64::total_cmp);
            let longest = median(rounds.iter().map(|it| part(&it.micros, 100))) / 1e3;
            println!(
                "  {}: all in {:.2} s ({:.2} to {:.2}), the longest wait {longest:.0} ms; \
                 processor time {:.0} us a stream, and {:.0} us of the load's",
                rival.name,
                part(&seconds, 50),
                seconds[0],
                part(&seconds, 100),
                each(|it| it.server_cpu, rounds),
                each(|it| it.load_cpu, rounds),
            );
            if rival.name == Contender::Direct.name() && outstanding < CLIENTS {
                let name = format!("connect_{CLIENTS}_{outstanding}_outstanding_seconds");
                goal(&name, part(&seconds, 50), Wanted::AtMost(1.0));
            }
        }
    }
}

fn main() {
    let files = files::raise_limit();
    if opening::serve_if_asked() {
        return;
    }
    let asked: Vec<String> = std::env::args().collect();
    let is_asked = |part: &str, other: &str| {
        let is_named = |name: &str| asked.iter().any(|it| it == name);
        is_named(part) || !is_named(other)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let [ours, axums] = RIVALS;
        let mut rivals = [Rival::start(ours).await, Rival::start(axums).await];
        if is_asked("set_up", "rush") {
            set_up(&mut rivals).await;
        }
        if !is_asked("rush", "set_up") {
        } else if CLIENTS + 100 > files {
            println!("rush: left out, at most {files} open files");
        } else {
            rush(&mut rivals).await;
        }
    });
}
