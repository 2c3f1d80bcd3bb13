//! The broker: topics, replay, resume, slow consumers, several nodes.
#![allow(
    clippy::duplicate_mod,
    reason = "each suite runs on both serving paths"
)]

mod contract;

#[path = "."]
mod bodies {
    use support::bodies::{paths, timed};

    mod bad_input;
    mod basics;
    mod model;
    mod nodes;
    mod reads;
    mod rewritten;
    mod snapshot;
    mod stalled_topics;
    mod threads;
    mod topics;
    mod traced;
    mod turns;
    mod unreachable_log;
}

#[path = "."]
mod direct {
    use support::direct::{paths, timed};

    mod bad_input;
    mod basics;
    mod model;
    mod nodes;
    mod reads;
    mod rewritten;
    mod snapshot;
    mod stalled_topics;
    mod threads;
    mod topics;
    mod traced;
    mod turns;
    mod unreachable_log;
}
