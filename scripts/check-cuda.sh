#!/usr/bin/env bash
# Type-checks and lints the `cuda` feature on a machine without CUDA, with a stand-in for nvcc. It COMPILES
# NO KERNELS; `make kernels` compiles ours, `make cuda` compiles all of them.
#
# usage: scripts/check-cuda.sh [check|clippy]      default: clippy
#
# Uses the plain build's target directory, so dependencies that both builds need are compiled once.
set -euo pipefail
cd "$(dirname "$0")/.."

stand_in=$PWD/scripts/cuda/stand-in
export PATH=$stand_in:$PATH NVCC=$stand_in/nvcc
# Without these variables, the build would ask nvcc and nvidia-smi.
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=90

command=${1:-clippy}
case "$command" in
    check) cargo check --locked --features cuda --all-targets ;;
    clippy) cargo clippy --locked --features cuda --all-targets -- -D warnings ;;
    *) echo "check-cuda: unknown command $command; allowed are check and clippy" >&2; exit 2 ;;
esac
cudarc=$(cargo metadata --locked --format-version 1 --features cuda | python3 -c '
import json, pathlib, sys
packages = json.load(sys.stdin)["packages"]
print(next(pathlib.Path(p["manifest_path"]).parent for p in packages if p["name"] == "cudarc"))')
scripts/cuda/try-libraries.sh "$cudarc"
echo "check-cuda: the cuda feature passes cargo $command; no kernel was compiled (stand-in nvcc)"
