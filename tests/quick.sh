#!/usr/bin/env bash
# Checks a change in under a minute once everything is built: format, clippy, and the tests of one
# area. `tests/quick.sh broker` runs tests/broker, `tests/quick.sh lib` the unit tests (the default),
# and `tests/quick.sh broker resume` the tests of an area whose names contain a text.
# Real servers that an area needs are installed by tests/run.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

area=${1:-lib}
filter=("${@:2}")
if [[ $area == lib ]]; then
    package=tower-sse
    target=(--lib)
elif [[ -f tests/$area/main.rs ]]; then
    package=tower-sse-tests
    target=(--test "$area")
else
    echo "There is no area $area. There are: lib $(cd tests && echo */main.rs | sed 's|/main.rs||g')" >&2
    exit 2
fi

cargo fmt --all --check
cargo clippy --locked --workspace --all-features --lib -- -D warnings
cargo clippy --locked --package "$package" --all-features "${target[@]}" -- -D warnings
cargo test --locked --package "$package" --all-features "${target[@]}" "${filter[@]}"
