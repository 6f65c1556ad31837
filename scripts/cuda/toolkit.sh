#!/usr/bin/env bash
# Downloads the parts of the CUDA toolkit that a build needs, as Python wheels, to .tools/cuda (or
# CUDA_TOOLKIT_DIR), and prints the directory. Does not download anything twice.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${CUDA_TOOLKIT_DIR:-.tools/cuda}
if [ ! -f "$folder/.ready" ]; then
    "${PYTHON:-python3}" -m venv "$folder"
    # crt and nvvm are listed because nvcc's wheel does not pin their versions: the newest ones together with
    # an older nvcc produce PTX that a driver of nvcc's age rejects.
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: \
        'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl,nvrtc]==13.0.2'
    touch "$folder/.ready"
fi
for found in "$folder"/lib/python*/site-packages/nvidia/cu13; do
    (cd "$found" && pwd)
done
