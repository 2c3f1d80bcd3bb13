//! The layer: matching, opening, declining, heads, limits and refusals.
#![allow(
    clippy::duplicate_mod,
    reason = "each suite runs on both serving paths"
)]

mod guards;
mod guards_matrix;
mod zero_values;

#[path = "."]
mod bodies {
    use support::bodies::{paths, rules};

    mod accept;
    mod adopt;
    mod axum_extractor;
    mod declines;
    mod design_examples;
    mod design_operation;
    mod head;
    mod limits;
    mod limits_released;
    mod matching;
    mod refusals;
    mod start;
    mod wire_of_the_seed;
}

#[path = "."]
mod direct {
    use support::direct::{paths, rules};

    mod accept;
    mod adopt;
    mod axum_extractor;
    mod declines;
    mod design_examples;
    mod design_operation;
    mod head;
    mod limits;
    mod limits_released;
    mod matching;
    mod refusals;
    mod start;
    mod wire_of_the_seed;
}
