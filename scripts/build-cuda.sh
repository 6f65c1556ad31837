#!/usr/bin/env bash
# Builds the program for CUDA on any x86-64 Linux machine. It needs no CUDA installation and no GPU; the
# toolkit comes from Python packages. The binary also starts on machines without CUDA.
#
# usage: scripts/build-cuda.sh [CAPABILITY] [tests]
#
# CAPABILITY is 80 (A100; also runs on 86 and 89), 86, 89 or 90 (H100, H200; the default): candle's own
# kernels are machine code for one target. Ours are compiled when the program starts.
# `tests` also builds the tests of the crates that run on the device, for scripts/gpu-check.sh (REALIGN_GPU_TESTBIN).
# Needs cargo, cc, ar and python3 with pip. Respects CARGO_TARGET_DIR. The first build takes about a quarter
# of an hour of one core.
set -euo pipefail
cd "$(dirname "$0")/.."

capability=${1:-90}
case "$capability" in
    80 | 86 | 89 | 90) ;;
    *) echo "build-cuda: unknown capability $capability; allowed are 80, 86, 89 and 90" >&2; exit 2 ;;
esac

toolkit=$(scripts/cuda/toolkit.sh)
target=${CARGO_TARGET_DIR:-target}
libraries=$(mkdir -p "$target/cuda-libraries/lib" && cd "$target/cuda-libraries" && pwd)
cudarc=$(cargo metadata --locked --format-version 1 --features cuda | python3 -c '
import json, pathlib, sys
packages = json.load(sys.stdin)["packages"]
print(next(pathlib.Path(p["manifest_path"]).parent for p in packages if p["name"] == "cudarc"))')
python3 scripts/cuda/lazy-libraries.py "$cudarc" "$libraries/lib"
cp -f "$toolkit/lib/libcudart_static.a" "$libraries/lib/libcudart.a"

unset CUDA_PATH CUDA_ROOT CUDA_TOOLKIT_ROOT_DIR NVCC
export PATH="$toolkit/bin:$PATH"
# CUDA_HOME has the libraries to link; nvcc is found on the PATH.
export CUDA_HOME=$libraries CUDA_COMPUTE_CAP=$capability
export CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
# Without this option machine code is stored uncompressed: 30.5 MiB instead of 5.5. The driver unpacks it
# when it loads a module. (Target directories from before this option was added keep the uncompressed code.)
export NVCC_APPEND_FLAGS="-compress-mode=size ${NVCC_APPEND_FLAGS:-}"
cargo build --release --locked --features cuda --bin realign
ls -l "$target/release/realign"
case "${2:-}" in
    "") ;;
    tests) cargo test --release --locked -p realign-cuda -p realign-engine --features realign-cuda/cuda --lib --no-run ;;
    *) echo "build-cuda: unknown argument $2; the only one allowed is tests" >&2; exit 2 ;;
esac
