#!/usr/bin/env bash
# Runs the unit tests of the crates with unsafe code that run on a CPU under valgrind's memcheck: `make valgrind`.
#
# valgrind has no AVX-512 and reports a processor without it, so the kernels choose AVX2 by themselves and the tests
# compare that with the portable form. Threads run one at a time. Each crate has LIMIT seconds [1200].
# Usage: scripts/valgrind.sh [FILTER...], filters of tests; without any, all unit tests that need no model file.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || { echo "valgrind is missing: install it from the distribution" >&2; exit 2; }
cargo=${CARGO:-cargo}
limit=${LIMIT:-1200}

# The test binary of a package.
binary() {
    "$cargo" test --locked --no-run --lib -p "$1" 2>&1 | sed -n 's/.*Executable .*(\(.*\))$/\1/p'
}

check() {
    package=$1
    shift
    program=$(binary "$package")
    [ -x "$program" ] || { echo "no test binary of $package" >&2; exit 2; }
    echo "== $package: $*"
    timeout "$limit" valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        --num-callers=20 "$program" --test-threads=1 "$@"
}

if [ $# -gt 0 ]; then
    check realign-cpu "$@"
    exit
fi
check realign-cpu
check realign-core files:: leases lock stop
# The vector functions, and nothing that reads a model.
check realign-model vector:: time_slices::
