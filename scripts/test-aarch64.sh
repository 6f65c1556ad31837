#!/usr/bin/env bash
# Builds for 64-bit ARM, lints it, and runs the unit tests of the CPU's kernels under an emulator: `make test-aarch64`.
#
# Twice: as a processor with everything that the emulator has, and as a Cortex-A72, which has no dot product instruction. Emulated
# times say nothing about a real processor. Needs (Debian's names) gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user, and
# `rustup target add aarch64-unknown-linux-gnu`. For macOS the whole program is type-checked, if `aarch64-apple-darwin` is installed;
# its dependencies in C are not compiled.
# Usage: scripts/test-aarch64.sh [FILTER...], filters of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
cargo=${CARGO:-cargo}
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v $tool >/dev/null || { echo "$tool is missing: install gcc-aarch64-linux-gnu and qemu-user" >&2; exit 2; }
done
rustup target list --installed | grep -qx $target || { echo "run: rustup target add $target" >&2; exit 2; }
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc

crates=(-p realign-cpu -p realign-model --features realign-model/test-support)
"$cargo" clippy --locked --target $target "${crates[@]}" --all-targets -- -D warnings
said=$("$cargo" test --locked --target $target "${crates[@]}" --lib --no-run 2>&1 | tee /dev/stderr)
for program in $(sed -n 's/.*Executable .*(\(.*\))$/\1/p' <<< "$said"); do
    crate=$(basename "$program" | sed 's/^realign_\(.*\)-[0-9a-f]*$/\1/')
    for cpu in max cortex-a72; do
        echo "== $crate on $cpu"
        (cd "src/$crate" && QEMU_LD_PREFIX=/usr/aarch64-linux-gnu qemu-aarch64 -cpu $cpu "$(realpath "$OLDPWD/$program")" "$@")
    done
done
if rustup target list --installed | grep -qx aarch64-apple-darwin; then
    # Dependencies in C want Apple's compiler. A check links nothing, so one that makes empty files will do.
    tools=$(mktemp -d)
    trap 'rm -r "$tools"' EXIT
    printf '%s\n' '#!/bin/sh' 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done' > "$tools/cc"
    chmod +x "$tools/cc"
    CC_aarch64_apple_darwin="$tools/cc" AR_aarch64_apple_darwin=true "$cargo" check --locked --target aarch64-apple-darwin
fi
