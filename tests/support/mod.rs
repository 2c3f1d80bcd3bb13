//! What the tests over real sockets share: servers on ports of their own, clients, and waits that
//! end.

#![allow(dead_code, reason = "each test is a crate of its own, and uses a part")]

pub(crate) mod client;
pub(crate) mod given;
pub(crate) mod nats;
pub(crate) mod raw;
pub(crate) mod server;
pub(crate) mod streams;
pub(crate) mod topics;

use std::{future::Future, time::Duration};

use tokio::time::{sleep, timeout};

/// How long a test waits for what should take milliseconds: generous, because machines are busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// How soon the server has to notice that a client has left.
pub(crate) const NOTICED: Duration = Duration::from_secs(1);

/// Waits for a future, and fails the test if it takes longer than the limit.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {LIMIT:?} for {what}"),
    }
}

/// Waits until a condition holds that has nothing to be woken by.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    within(what, wait).await;
}

/// Waits until a count, which has to be above 0, has stood still for a while, and gives it.
pub(crate) async fn stands_still(what: &str, mut count: impl FnMut() -> usize) -> usize {
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
