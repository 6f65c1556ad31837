#!/usr/bin/env bash
# Fetches the parts of the CUDA toolkit that a build needs, as Python wheels, into .tools/cuda (or
# CUDA_TOOLKIT_DIR), and prints where it lies. Nothing is downloaded a second time.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${CUDA_TOOLKIT_DIR:-.tools/cuda}
if [ ! -f "$folder/.ready" ]; then
    "${PYTHON:-python3}" -m venv "$folder"
    # crt and nvvm are named because nvcc's wheel leaves their version open: the newest would pair
    # with an older nvcc into PTX that a driver of its time refuses.
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: \
        'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl,nvrtc]==13.0.2'
    touch "$folder/.ready"
fi
for found in "$folder"/lib/python*/site-packages/nvidia/cu13; do
    (cd "$found" && pwd)
done
