#!/usr/bin/env bash
# Links a small program with the stubs for the CUDA libraries and calls them on a machine without CUDA. Every
# call must return the code that the real library returns if there is no device, and the program must start
# without any of the libraries.
#
# usage: scripts/cuda/try-libraries.sh CUDARC_SOURCE
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 scripts/cuda/lazy-libraries.py "$1" "$folder" >/dev/null
cat >"$folder/try.c" <<'C'
#include <stdio.h>
#include <string.h>
int cuInit(unsigned flags);
int cuDeviceGetCount(int *count);
int cuGetErrorString(int error, const char **text);
int nvrtcVersion(int *major, int *minor);
const char *cublasGetStatusString(int status);
int main(void) {
    int count = -1, major = -1, minor = -1;
    const char *text = "";
    if (cuInit(0) != 100 || cuDeviceGetCount(&count) != 100 || count != -1) return 1;
    if (cuGetErrorString(100, &text) || strcmp(text, "libcuda is not installed")) return 2;
    if (nvrtcVersion(&major, &minor) != 11 || major != -1) return 3;
    if (strcmp(cublasGetStatusString(1), "libcublas is not installed")) return 4;
    puts("try-libraries: the program starts, and every library reports that it is not installed");
    return 0;
}
C
cc "$folder/try.c" -L"$folder" -Wl,-Bstatic -lcuda -lnvrtc -lcublas -Wl,-Bdynamic -ldl -lpthread -o "$folder/try"
# If the libraries are installed, the calls reach them.
if ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
    echo "try-libraries: libcuda is installed here, so its absence is not tested"
    exit 0
fi
env -u CUDA_LIB_DIRS -u LD_LIBRARY_PATH "$folder/try"
