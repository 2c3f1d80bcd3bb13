#!/usr/bin/env bash
# Passes all tests of the crate, on a fresh machine with Rust (by rustup) too: what they need and
# is missing is installed first, and said. Stops at the first failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A clean checkout has nothing to build upon, and nobody builds upon it.
[[ -z ${CI-} ]] || export CARGO_INCREMENTAL=0

step() {
    printf '\n==> [%ds] %s\n' "$SECONDS" "$*"
    "$@"
}

# Packages of Debian and Ubuntu. Elsewhere this says what is missing, and stops.
install_programs() {
    local missing=() as_root=()
    command -v curl >/dev/null || missing+=(curl) # a client that the tests did not write
    # Proxies to go through. Their folder is not on every user's path.
    PATH="$PATH:/usr/sbin" command -v nginx >/dev/null || missing+=(nginx)
    PATH="$PATH:/usr/sbin" command -v haproxy >/dev/null || missing+=(haproxy)
    # A network of its own, for a client that vanishes.
    command -v unshare >/dev/null || missing+=(util-linux)
    PATH="$PATH:/usr/sbin" command -v ip >/dev/null || missing+=(iproute2)
    command -v cc >/dev/null || missing+=(build-essential) # Rust links with it
    command -v redis-server >/dev/null || missing+=(redis-server) # the log of several nodes
    # So is this, which Debian has where a user's path may not look.
    PATH="$PATH:/usr/sbin" command -v nats-server >/dev/null || missing+=(nats-server)
    if ((${#missing[@]} == 0)); then
        return
    fi
    if ! command -v apt-get >/dev/null; then
        echo "The tests need: ${missing[*]}. There is no apt-get here: please install it." >&2
        exit 1
    fi
    if ((EUID != 0)); then
        as_root=(sudo)
    fi
    echo "The tests need: ${missing[*]}. Installing with apt-get:"
    step "${as_root[@]}" apt-get update --quiet
    step "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
}

install_components() {
    if ! cargo fmt --version &>/dev/null; then
        echo "The tests need rustfmt. Installing with rustup:"
        step rustup component add rustfmt
    fi
    if ! cargo clippy --version &>/dev/null; then
        echo "The tests need clippy. Installing with rustup:"
        step rustup component add clippy
    fi
}

# The names under [features] in Cargo.toml, each on a line; a test sees that all are found so.
features() {
    awk '/^\[/ { inside = ($0 == "[features]") } inside && /^[a-z].* = / { print $1 }' Cargo.toml
}

install_programs
install_components

step cargo fmt --all --check
# The benches are built here too.
step cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
step cargo clippy --locked --all-targets --no-default-features -- -D warnings

# With --all-targets the tests' own features are on. So here is the library alone: without any
# feature (that is `default`), and with each one.
for feature in $(features); do
    step cargo clippy --locked --lib --no-default-features --features "$feature" -- -D warnings
done

# Each suite for both serving paths, or for several servers, runs once with each, in modules of
# that name. Cargo leaves out the tests of examples unless they are named.
step cargo test --locked --workspace --all-features --lib --tests --examples
# The hub without clients of Redis and NATS, as the README builds it.
step cargo test --locked --example hub
step cargo test --locked --all-features --doc

# The broker's hand-shakes between threads, through all their interleavings.
step cargo fmt --check --manifest-path loom/Cargo.toml
step cargo test --locked --manifest-path loom/Cargo.toml --target-dir target

export RUSTDOCFLAGS="-D warnings"
step cargo doc --locked --no-deps --all-features
step cargo doc --locked --no-deps

printf '\nAll passed, in %d seconds.\n' "$SECONDS"
