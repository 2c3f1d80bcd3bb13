//! What the tests share: servers on ports of their own, clients, and waits that end.
//!
//! The suites of [`bodies`] and [`direct`] are the same: the first reads response bodies, the second
//! what the crate's own server makes of them. A test area includes its suites once with each.

#![allow(
    clippy::duplicate_mod,
    clippy::new_without_default,
    missing_debug_implementations,
    missing_docs,
    reason = "this is the tests' own library, and its suites are there for each serving path"
)]

pub mod authority;
pub mod client;
pub mod contract;
pub mod given;
pub mod guarded;
pub mod nats;
pub mod nodes;
pub mod own_process;
pub mod parsers;
pub mod ports;
pub mod processor;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod server;
pub mod streams;
pub mod tls;
pub mod topics;
pub mod traffic;
pub mod watched;
pub mod wrapped;

/// Streams are response bodies.
#[path = "suites"]
pub mod bodies {
    const IS_DIRECT: bool = false;

    pub mod paths;
    pub mod rules;
    pub mod timed;
}

/// Streams are direct wherever they may be.
#[path = "suites"]
pub mod direct {
    const IS_DIRECT: bool = true;

    pub mod paths;
    pub mod rules;
    pub mod timed;
}

use std::{future::Future, time::Duration};

use tokio::time::{sleep, timeout};
use tower_sse::Connections;

/// How long a test waits for what should take milliseconds: generous, because machines are busy.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How soon the server has to notice that a client has disconnected. An idle machine needs
/// milliseconds. Without a notice no write would find it in this time: heartbeats are off, or are sent
/// after 15 seconds.
pub const NOTICED: Duration = Duration::from_secs(8);

/// How far a busy machine may exceed a time limit. It is less than the server's default limits, of 30
/// seconds and more, so that a test still detects that its own limit has no effect.
pub const SLACK: Duration = Duration::from_secs(10);

/// Waits for a future, and fails the test if it takes longer than the limit.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {LIMIT:?} for {what}"),
    }
}

/// Waits until a condition holds that has nothing to be woken by.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    within(what, wait).await;
}

/// Waits until a count, which has to be above 0, has stood still for a while, and gives it.
pub async fn stands_still(what: &str, mut count: impl FnMut() -> usize) -> usize {
    let wait = async {
        let mut last = 0;
        let mut times = 0;
        while last == 0 || times < 50 {
            let now = count();
            times = if now == last { times + 1 } else { 0 };
            last = now;
            sleep(Duration::from_millis(10)).await;
        }
        last
    };
    within(what, wait).await
}

/// Counts what a registry holds.
pub trait Held {
    /// The connections that have not ended, open or pending.
    fn held(&self) -> u64;
}

impl Held for Connections {
    fn held(&self) -> u64 {
        let stats = self.stats();
        stats.open + stats.pending
    }
}
