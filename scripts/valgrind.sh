#!/usr/bin/env bash
# Runs the tests of the unsafe code that runs on a CPU under valgrind's memcheck: `make valgrind`.
#
#   realign_cpu     all unit tests: kernels, packing, the team of threads, products of the learning passes
#   realign_model   unit tests of vector functions, quantised blocks and time slices
#   integration     the executor, attention, adapters and a learning pass, on tiny models of every family
#
# valgrind has no AVX-512 and reports a processor without it, so the kernels choose AVX2 by themselves and the tests
# compare that with the portable form. Threads run one at a time. What is lost for good is an error; what threads that
# still run hold is not. Each line above has LIMIT seconds [600].
# Usage: scripts/valgrind.sh [FILTER...], filters of realign_cpu's tests; without any, all of the above.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || { echo "valgrind is missing: install it from the distribution" >&2; exit 2; }
limit=${LIMIT:-600}

# One build, the one of `cargo test`.
said=$("${CARGO:-cargo}" test --locked --no-run --lib --test integration 2>&1 | tee /dev/stderr)
programs=$(sed -n 's/.*Executable .*(\(.*\))$/\1/p' <<< "$said")

check() {
    program=$(grep "/$1-[0-9a-f]*$" <<< "$programs") || { echo "no program with the tests of $1" >&2; exit 2; }
    echo "== $1: ${*:2}"
    timeout "$limit" valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        --show-leak-kinds=definite --num-callers=20 "$program" --test-threads=1 "${@:2}"
}

check realign_cpu "$@"
[ $# -eq 0 ] || exit 0
# Nothing that reads a model file.
check realign_model vector:: blocks:: packing:: time_slices::
check integration families::the_cpu families::whole families::lora learning_passes::dropout
