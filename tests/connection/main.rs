//! Connections: sending, ends, hooks, lifetimes, drains and the registry.
#![allow(
    clippy::duplicate_mod,
    reason = "each suite runs on both serving paths"
)]

#[path = "."]
mod bodies {
    use support::bodies::{paths, rules, timed};

    mod close_reasons;
    mod drain_handlers;
    mod drains;
    mod end;
    mod far_times;
    mod heartbeat;
    mod hooks;
    mod lifetimes;
    mod lifetimes_untaken;
    mod metrics;
    mod misuse;
    mod outbox;
    mod registry;
    mod stalled;
    mod stats;
    mod ways_out;
}

#[path = "."]
mod direct {
    use support::direct::{paths, rules, timed};

    mod close_reasons;
    mod drain_handlers;
    mod drains;
    mod end;
    mod far_times;
    mod heartbeat;
    mod hooks;
    mod lifetimes;
    mod lifetimes_untaken;
    mod metrics;
    mod misuse;
    mod outbox;
    mod registry;
    mod stalled;
    mod stats;
    mod ways_out;
}
