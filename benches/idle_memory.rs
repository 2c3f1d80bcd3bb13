//! What an idle stream keeps in memory: the resident size of a server in a process of its own.
//!
//! ```text
//! cargo bench -p tower-sse-benches --bench idle_memory               8,000 streams
//! cargo bench -p tower-sse-benches --bench idle_memory -- 16000      as many as are asked for
//! ```
//!
//! Ours with direct streams, ours with streams that stay in hyper, and axum's `Sse`. Each has a
//! topic's subscription and a heartbeat. A server is measured before and after: before, some
//! streams have been opened and closed, so that what is made once is there; after, all are open,
//! each has had its first event, and its size has come to rest. The difference is what counts.

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

#[path = "support/files.rs"]
mod files;
#[path = "support/goals.rs"]
mod goals;
#[path = "support/opening.rs"]
mod opening;
#[path = "support/process.rs"]
mod process;

use std::{cell::Cell, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::net::TcpStream;

use goals::{Wanted, goal};
use opening::{Contender, open};
use process::{Process, settled};

/// Few, so that what they leave free in the heap is little of what is measured.
const WARM_UP: usize = 64;

/// How many streams are being opened at a time.
const AT_A_TIME: usize = 32;

/// No wait takes this long, unless something is broken.
const LONG: Duration = Duration::from_secs(60);

/// A size is at rest when so many readings, 50 ms apart, differ by no more than this.
const READINGS: usize = 10;
const AT_REST: u64 = 64 * 1024;

async fn open_all(port: u16, count: usize) -> Vec<TcpStream> {
    let opening = stream::iter(0..count).map(|_| open(port));
    opening.buffer_unordered(AT_A_TIME).collect().await
}

async fn files_settled(server: &mut Process, wanted: usize) {
    let ask = async || server.ask::<usize>("files").await[0];
    let files = settled(LONG, ask, |files| *files == wanted).await;
    assert_eq!(files, wanted, "the server's open files");
}

/// The server's resident size, once it is at rest.
async fn resident(server: &mut Process) -> u64 {
    let readings = Cell::new([u64::MAX; READINGS]);
    let ask = async || {
        let mut last = readings.get();
        last.rotate_left(1);
        last[READINGS - 1] = server.ask("resident").await[0];
        readings.set(last);
        last
    };
    let span = |last: &[u64; READINGS]| {
        let [least, most] = [last.iter().min(), last.iter().max()].map(|it| it.copied());
        most.unwrap_or(u64::MAX) - least.unwrap_or(0)
    };
    let last = settled(LONG, ask, |last| span(last) <= AT_REST).await;
    assert!(span(&last) <= AT_REST, "the server's size: {last:?}");
    last[READINGS - 1]
}

/// The bytes that each of so many streams adds to a server.
async fn measure(contender: Contender, streams: usize) -> f64 {
    let (mut server, ports) = Process::start(contender.name()).await;
    let files = server.ask("files").await[0];
    drop(open_all(ports[0], WARM_UP).await);
    files_settled(&mut server, files).await;
    let before = resident(&mut server).await;
    let open = open_all(ports[0], streams).await;
    files_settled(&mut server, files + streams).await;
    let after = resident(&mut server).await;
    let each = (after - before) as f64 / open.len() as f64;
    println!(
        "  {}: {} KiB before, {} KiB after, {each:.0} bytes a stream",
        contender.name(),
        before / 1024,
        after / 1024,
    );
    each
}

fn main() {
    let files = files::raise_limit();
    if opening::serve_if_asked() {
        return;
    }
    let asked = std::env::args().find_map(|argument| argument.parse().ok());
    let asked: usize = asked.unwrap_or(8000);
    let streams = asked.clamp(1, files.saturating_sub(100).max(1));
    if streams < asked {
        println!("at most {files} open files: {streams} streams instead of {asked}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        println!("{streams} idle streams:");
        let direct = measure(Contender::Direct, streams).await;
        let hyper = measure(Contender::Hyper, streams).await;
        let axum = measure(Contender::Axum, streams).await;
        println!(
            "  axum over direct {:.1}, over hyper {:.1}",
            axum / direct,
            axum / hyper
        );
        let name = |path: &str| format!("idle_memory_{streams}_{path}_kib");
        goal(&name("direct"), direct / 1024.0, Wanted::AtMost(3.0));
        goal(&name("hyper"), hyper / 1024.0, Wanted::AtMost(14.0));
    });
}
