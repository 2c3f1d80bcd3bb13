//! The crate's own server.
#![allow(
    clippy::duplicate_mod,
    reason = "each suite runs on both serving paths"
)]

mod application_code;
mod blocked;
mod conditions;
mod faults;
mod going_direct;
mod groups;
mod http2_and_tls;
mod idle;
mod listener;
mod odd_bodies;
mod outer_layers;
mod protection;
mod proxies;
mod server;
mod shutdown;
mod slow_over_tls;
mod under_axum;
mod wrappers;

#[path = "."]
mod bodies {
    use support::bodies::{paths, rules, timed};

    mod same_frames;
}

#[path = "."]
mod direct {
    use support::direct::{paths, rules, timed};

    mod same_frames;
}
