//! What protection and operation cost, and whether they hold: churn, clients that stop reading, a
//! drain, many idle streams.
//!
//! ```text
//! cargo bench -p tower-sse-benches --bench operation                     all four parts: about two minutes
//! cargo bench -p tower-sse-benches --bench operation -- churn drain      some of them, by name
//! ```
//!
//! Servers are processes of their own, so that their memory, tasks and files are their own too.
//! What is measured of a process is read under `/proc`: this runs on Linux.

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

#[path = "operation/churn.rs"]
mod churn;
#[path = "operation/client.rs"]
mod client;
#[path = "operation/drain.rs"]
mod drain;
#[path = "support/files.rs"]
mod files;
#[path = "support/goals.rs"]
mod goals;
#[path = "operation/idle.rs"]
mod idle;
#[path = "support/process.rs"]
mod process;
#[path = "operation/stalled.rs"]
mod stalled;

use tokio::runtime::Builder;

/// The parts, and how many files each needs to be open in one process.
const PARTS: [(&str, usize); 4] = [
    ("churn", 500),
    ("stalled", 1_200),
    ("drain", 5_500),
    ("idle", 100),
];

fn run(part: &str) {
    println!("{part}:");
    if part == "idle" {
        return idle::run();
    }
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    match part {
        "churn" => runtime.block_on(churn::run()),
        "stalled" => runtime.block_on(stalled::run()),
        _ => runtime.block_on(drain::run()),
    }
}

fn main() {
    let files = files::raise_limit();
    if let Some(part) = process::role() {
        match part.as_str() {
            "churn" => process::serve(churn::Server::start),
            "stalled" => process::serve(stalled::Server::start),
            _ => process::serve(drain::Server::start),
        }
        return;
    }
    let asked: Vec<String> = std::env::args().collect();
    let is_named = |part: &str| asked.iter().any(|it| it == part);
    let all = !PARTS.iter().any(|(part, _)| is_named(part));
    for (part, needed) in PARTS {
        if !all && !is_named(part) {
            continue;
        }
        if needed <= files {
            run(part);
        } else {
            println!("{part}: left out, it needs {needed} open files, and {files} is the limit");
        }
    }
}
