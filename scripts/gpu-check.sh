#!/usr/bin/env bash
# Runs everything that needs a GPU: compares our kernels and the executor with their slow twins, then runs
# benchmarks with random weights in the shapes of three models. Uses no network.
#
# usage: scripts/gpu-check.sh [OUT_DIR]            default: target/gpu-check
#
#   REALIGN_GPU_BINARY   the program, built by `make cuda` [target/release/realign]
#   REALIGN_GPU_TESTBIN  the test binaries of realign-cuda and realign-engine, built with the feature `cuda`, separated by spaces
#                        (scripts/build-cuda.sh 90 tests prints their paths); without it the
#                        comparisons are skipped, and the report says so
#   REALIGN_GPU_SECONDS  time after which nothing new is started [500]; the total stays below nine minutes
#   REALIGN_GPU_SHAPES   shapes to measure; add a colon and an integer type for quantised weights
#                        [qwen2.5-7b gemma-2-9b llama-3.1-8b llama-3.1-8b:q4_k]
#   PYTHON               the Python that has PyTorch, transformers and PEFT [python3]
#
# Prints one table and writes OUT_DIR/gpu-check.json. The exit code is 1 if a comparison failed.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${1:-target/gpu-check}
binary=${REALIGN_GPU_BINARY:-${CARGO_TARGET_DIR:-target}/release/realign}
limit=${REALIGN_GPU_SECONDS:-500}
shapes=${REALIGN_GPU_SHAPES:-qwen2.5-7b gemma-2-9b llama-3.1-8b llama-3.1-8b:q4_k}
python=${PYTHON:-python3}
mkdir -p "$out"
rm -f "$out"/*.json "$out"/*.log

if [ ! -x "$binary" ]; then
    echo "gpu-check: $binary is missing: build it with make cuda, or set REALIGN_GPU_BINARY" >&2
    exit 2
fi
if ! nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >"$out/device.log" 2>&1; then
    echo "gpu-check: NEEDS A GPU, and nvidia-smi lists none" >&2
    exit 2
fi
echo "device: $(head -1 "$out/device.log")"
left() { echo $((limit - SECONDS)); }

failed=0 comparisons=passed
if [ -n "${REALIGN_GPU_TESTBIN:-}" ]; then
    for tests in $REALIGN_GPU_TESTBIN; do
        # All of the crate of the device; of others, what draws on it.
        case "$(basename "$tests")" in realign_cuda*) which=() ;; *) which=(tests::device) ;; esac
        REALIGN_GPU_TESTS=1 timeout 240 "$tests" --nocapture "${which[@]}" \
            >>"$out/comparisons.log" 2>&1 || { failed=1; comparisons=FAILED; }
        tail -3 "$out/comparisons.log"
    done
else
    comparisons="skipped: REALIGN_GPU_TESTBIN is not set"
fi
echo "comparisons on the device: $comparisons"

# peak_of PID FILE: writes the peak memory use of the device while PID ran, in MiB.
peak_of() {
    local peak=0 used
    while kill -0 "$1" 2>/dev/null; do
        used=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1)
        [ "${used:-0}" -gt "$peak" ] && peak=$used
        sleep 0.2
    done
    echo "$peak" >"$2"
}

for shape in $shapes; do
    if [ "$(left)" -lt 60 ]; then
        echo "gpu-check: no time left for $shape" | tee -a "$out/left-out.log"
        continue
    fi
    timeout "$(left)" "$binary" bench --json --device cuda:0 --shape "$shape" --prompt-tokens 512 \
        --generate-tokens 64 --repetitions 2 --swap-seconds 5 >"$out/ours-$shape.json" 2>"$out/ours-$shape.log" &
    pid=$!
    peak_of "$pid" "$out/peak-$shape.log"
    wait "$pid" || { failed=1; echo "gpu-check: $shape FAILED: $(tail -1 "$out/ours-$shape.log")"; }
done

if "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
    for shape in $shapes; do
        case $shape in *:*) continue ;; esac  # the peer has no quantised weights
        [ "$(left)" -lt 60 ] && { echo "gpu-check: no time left for the peer on $shape" | tee -a "$out/left-out.log"; continue; }
        timeout "$(left)" "$python" scripts/gpu_peer.py "$shape" >"$out/peer-$shape.json" 2>"$out/peer-$shape.log" ||
            echo "gpu-check: the peer on $shape failed: $(tail -1 "$out/peer-$shape.log")"
    done
else
    echo "gpu-check: $python has no torch, transformers and peft: no peer is measured" | tee -a "$out/left-out.log"
fi

python3 scripts/gpu_table.py "$out" "$comparisons" || failed=1
exit "$failed"
