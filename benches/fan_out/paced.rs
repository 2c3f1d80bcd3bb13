//! How late events come that are published at a steady pace, far below what the servers can do.

use std::time::Duration;

use tokio::time::interval;

use crate::{
    Rival,
    goals::{Wanted, goal},
    median,
    server::Contender,
};

const RIVALS: [Contender; 2] = [Contender::Direct, Contender::Axum];
const PACE: Duration = Duration::from_millis(50);
const SIZE: usize = 100;
const ROUNDS: usize = 15;

/// How many events are published in a round.
const EVENTS: usize = 40;

impl Rival {
    /// Publishes at the pace. Gives the latencies in microseconds, in order.
    async fn publish_paced(&mut self, subscribers: usize) -> Vec<u32> {
        let mut pace = interval(PACE);
        for _ in 0..EVENTS {
            pace.tick().await;
            self.deliveries.expect(subscribers, SIZE);
            self.control.publish(1, SIZE).await;
            self.deliveries.all().await;
        }
        let mut latencies = self.deliveries.latencies.take();
        latencies.sort_unstable();
        latencies
    }
}

pub(crate) async fn compare(subscribers: usize) {
    let mut rivals = Vec::new();
    for contender in RIVALS {
        let mut rival = Rival::start(contender).await;
        rival.connect(subscribers).await;
        rivals.push(rival);
    }
    // Of each round: the median, and the 99th of a hundred.
    let mut parts = RIVALS.map(|_| [Vec::new(), Vec::new()]);
    for round in 0..=ROUNDS {
        for turn in 0..rivals.len() {
            let at = (round + turn) % rivals.len();
            let latencies = rivals[at].publish_paced(subscribers).await;
            if round == 0 {
                continue;
            }
            for (percent, part) in [50, 99].into_iter().zip(&mut parts[at]) {
                part.push(f64::from(latencies[(latencies.len() - 1) * percent / 100]));
            }
        }
    }
    println!("{subscribers} subscribers, {SIZE} B, an event every {PACE:?}:");
    for (contender, [p50, p99]) in RIVALS.iter().zip(&parts) {
        println!(
            "  {}: latency p50 {:.0} us, p99 {:.0} us (medians of {ROUNDS} rounds)",
            contender.name(),
            median(p50.iter().copied()),
            median(p99.iter().copied()),
        );
    }
    let [[_, ours], [_, axums]] = &parts;
    let ratio = median(ours.iter().zip(axums).map(|(ours, axums)| ours / axums));
    let name = format!("fan_out_{subscribers}_paced_p99_over_axum");
    goal(&name, ratio, Wanted::AtMost(1.1));
}
