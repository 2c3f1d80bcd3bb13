//! The benches are targets of this package: `cargo bench -p tower-sse-benches --bench NAME`.
