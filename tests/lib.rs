//! The test suites are targets of this package: `cargo test -p tower-sse-tests --test NAME`.
