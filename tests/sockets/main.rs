//! Streams over real sockets, on three servers.
#![allow(clippy::duplicate_mod, reason = "each suite runs on three servers")]

#[path = "."]
mod axum_server {
    const SERVER: support::server::Choice = support::server::Choice::Axum;

    mod clients;
    mod drain;
    mod handlers;
    mod leaving;
    mod middleware;
    mod passing;
    mod refused;
    mod resume;
    mod stalled;
    mod under_axum;
    mod under_hyper;
    mod under_tonic;
}

#[path = "."]
mod direct {
    const SERVER: support::server::Choice = support::server::Choice::Direct;

    mod clients;
    mod drain;
    mod handlers;
    mod leaving;
    mod middleware;
    mod passing;
    mod refused;
    mod resume;
    mod stalled;
    mod under_axum;
    mod under_hyper;
    mod under_tonic;
}

#[path = "."]
mod hyper_server {
    const SERVER: support::server::Choice = support::server::Choice::Hyper;

    mod clients;
    mod drain;
    mod handlers;
    mod leaving;
    mod middleware;
    mod passing;
    mod refused;
    mod resume;
    mod stalled;
    mod under_axum;
    mod under_hyper;
    mod under_tonic;
}
