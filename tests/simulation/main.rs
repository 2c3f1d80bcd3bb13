//! A simulation of whole worlds, with an oracle.
//!
//! One seed runs one small world in one process, on a paused clock: up to three nodes on one log,
//! publishers, and clients that connect, read at their pace, leave and return with their last id,
//! possibly to another node. The log delays, fails, loses acknowledged records, restarts and forgets.
//! Nodes are killed and drained. The oracle has a model of the log, and checks every event that a
//! client receives against it: everything since its subscribe or since its id, once and in order, or
//! after a gap that was announced.
//!
//! ```text
//! cargo test -p tower-sse-tests --test simulation        # the seeds of CI, 0 to 999
//! SEED=7 cargo test … --test simulation -- --nocapture   # one seed, with everything that happened
//! SEEDS=100000 cargo test … --test simulation            # the long mode
//! SEEDS=100000 FROM=5000000 cargo test …                 # other seeds
//! LIST=1 cargo test … --test simulation -- --nocapture   # which seeds break which promise
//! ```
//!
//! A world depends on its seed alone. Everything random is drawn from generators that are seeded,
//! that of the library included; woken actors run in a fixed order ([`actors`]). A change of what is
//! drawn, here or in the library, changes all worlds.
//!
//! Faults that are known and not fixed yet are listed with their seeds in [`known`]. A listed seed
//! has to break exactly the promises that it is listed with, every other seed none. Beyond seed 999
//! the promises that have a list may be broken.
//!
//! - [`plan`]: what a seed draws: sizes, delays, accidents.
//! - [`world`]: runs it. The actors are in [`client`], [`publisher`] and [`accidents`], the
//!   server's side of a stream in [`handler`].
//! - [`log`], [`link`]: the model of the log, and the backplane that a node sees.
//! - [`oracle`], [`judge`], [`owed`], [`ends`]: what a client is owed. [`violation`] lists the
//!   promises.

mod accidents;
mod actors;
mod client;
mod ends;
mod handler;
mod judge;
mod known;
mod link;
mod log;
mod oracle;
mod owed;
mod plan;
mod publisher;
mod trace;
mod violation;
mod world;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
};

use violation::Violation;
use world::Report;

/// The number of seeds, unless `SEEDS` names another one.
const SEEDS: u64 = 1000;

/// The tests that share the seeds, so that they run in parallel.
const SHARDS: u64 = 8;

/// The maximum number of failures that a shard reports.
const REPORTED: usize = 3;

macro_rules! shards {
    ($($name:ident: $shard:expr),* $(,)?) => {$(
        #[test]
        fn $name() {
            run_shard($shard);
        }
    )*};
}

shards! {
    worlds_keep_their_promises_0: 0,
    worlds_keep_their_promises_1: 1,
    worlds_keep_their_promises_2: 2,
    worlds_keep_their_promises_3: 3,
    worlds_keep_their_promises_4: 4,
    worlds_keep_their_promises_5: 5,
    worlds_keep_their_promises_6: 6,
    worlds_keep_their_promises_7: 7,
}

#[test]
fn a_seed_gives_the_same_world_again() {
    for seed in (0..40).chain(known::seeds()) {
        let [one, other] = [(); 2].map(|()| {
            let report = run(seed, true);
            report
                .trace
                .iter()
                .map(|line| without_uuid(line))
                .collect::<Vec<_>>()
        });
        let differs = one.iter().zip(&other).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed} differs");
        assert_eq!(one.len(), other.len(), "seed {seed} differs in its length");
    }
}

/// The uuid of a connection is not drawn from a generator that can be seeded.
fn without_uuid(line: &str) -> String {
    match (line.find("{\"uuid\""), line.rfind(' ')) {
        (Some(start), Some(end)) => format!("{}{}", &line[..start], &line[end..]),
        _ => line.to_owned(),
    }
}

fn run_shard(shard: u64) {
    if let Some(seed) = number("SEED") {
        if seed % SHARDS == shard {
            replay(seed);
        }
        return;
    }
    let is_listing = env::var_os("LIST").is_some();
    let from = number("FROM").unwrap_or(0);
    let count = number("SEEDS").unwrap_or(SEEDS);
    let mut failures = Vec::new();
    for seed in (from..from + count).filter(|seed| seed % SHARDS == shard) {
        let report = run(seed, false);
        if is_listing {
            for violation in kinds(&report) {
                println!("{violation:?} {seed}");
            }
            continue;
        }
        failures.extend(failure(seed, &report));
        if failures.len() == REPORTED {
            break;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Runs one seed, and prints everything that happened.
fn replay(seed: u64) {
    let report = run(seed, true);
    for line in &report.trace {
        println!("{line}");
    }
    if let Some(failure) = failure(seed, &report) {
        panic!("{failure}");
    }
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run(seed: u64, keeps_trace: bool) -> Report {
    let world = AssertUnwindSafe(|| world::run(seed, keeps_trace));
    catch_unwind(world).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Report {
            found: vec![(Violation::Panicked, text.unwrap_or_default())],
            trace: Vec::new(),
        }
    })
}

/// The promises that were broken, each once.
fn kinds(report: &Report) -> Vec<Violation> {
    let kinds = report.found.iter().map(|(violation, _)| *violation);
    let mut kinds: Vec<_> = kinds.collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// Returns the failure message of a seed, if it fails.
fn failure(seed: u64, report: &Report) -> Option<String> {
    let mut expected = known::of_seed(seed);
    expected.sort_unstable();
    let mut kinds = kinds(report);
    if seed >= SEEDS {
        kinds.retain(|violation| !known::is_listed(*violation));
    }
    if kinds == expected {
        return None;
    }
    let found = report.found.iter().take(8);
    let found: Vec<_> = found
        .map(|(kind, what)| format!("  {kind:?}: {what:.300}"))
        .collect();
    let trace = &report.trace[report.trace.len().saturating_sub(trace::KEPT)..];
    Some(format!(
        "seed {seed} breaks {kinds:?}, and is listed with {expected:?}\n{}\n\
         the last lines of its trace:\n{}\n\
         SEED={seed} cargo test -p tower-sse-tests --test simulation -- --nocapture",
        found.join("\n"),
        trace.join("\n"),
    ))
}
