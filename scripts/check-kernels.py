#!/usr/bin/env python3
"""Compiles the project's own CUDA kernels with NVRTC, as the server does at run time, and assembles the PTX
with ptxas for every supported architecture. Needs no GPU.

usage: scripts/check-kernels.py TOOLKIT [--json]

TOOLKIT is the `nvidia/cu13` directory of the toolkit's Python wheels; `make kernels` fetches them.
Prints registers, shared memory and spills of each kernel on its worst architecture. Fails if a kernel does
not compile, does not assemble, or spills.
"""

import ctypes
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src/cuda/kernels"
ARCHITECTURES = [80, 86, 89, 90]


def nvrtc_at(toolkit):
    # NVRTC looks for its builtins by name. If they are already loaded, it finds them in any directory.
    for library in sorted((toolkit / "lib").glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next((toolkit / "lib").glob("libnvrtc.so.*"))))


def text_of(nvrtc, program, what):
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()


def compile_ptx(nvrtc, name, source, architecture):
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    options = [f"--gpu-architecture=compute_{architecture}", "--std=c++17"]
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    log = text_of(nvrtc, program, "ProgramLog").strip()
    if failed:
        raise SystemExit(f"{name} for compute_{architecture}:\n{log}")
    if log:
        print(log, file=sys.stderr)
    return text_of(nvrtc, program, "PTX")


def assemble(toolkit, ptx, architecture):
    """{kernel: [registers, spilled bytes, shared bytes]}"""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernels.ptx"
        path.write_text(ptx)
        command = [toolkit / "bin/ptxas", "-v", f"-arch=sm_{architecture}", path, "-o", path.with_suffix(".cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ptxas for sm_{architecture}:\n{done.stderr}")
    found, kernel = {}, None
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found.setdefault(match[1], [0, 0, 0])
        if match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel[1] = int(match[1]) + int(match[2])
        if match := re.search(r"Used (\d+) registers", line):
            kernel[0] = int(match[1])
        if match := re.search(r"(\d+) bytes smem", line):
            kernel[2] = int(match[1])
    return found


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    toolkit = pathlib.Path(sys.argv[1])
    nvrtc = nvrtc_at(toolkit)
    common = (SOURCES / "common.cuh").read_text()
    worst = {}
    for path in sorted(SOURCES.glob("*.cu")):
        for architecture in ARCHITECTURES:
            ptx = compile_ptx(nvrtc, path.name, common + path.read_text(), architecture)
            for kernel, usage in assemble(toolkit, ptx, architecture).items():
                known = worst.setdefault(kernel, usage)
                worst[kernel] = [max(a, b) for a, b in zip(known, usage)]
    if "--json" in sys.argv:
        print(json.dumps({"architectures": ARCHITECTURES, "kernels": worst}))
    else:
        print(f"{'kernel':<28} {'registers':>9} {'spilled B':>9} {'shared B':>9}   worst of sm_{ARCHITECTURES}")
        for kernel, (registers, spilled, shared) in sorted(worst.items()):
            print(f"{kernel:<28} {registers:>9} {spilled:>9} {shared:>9}")
    spilling = [kernel for kernel, usage in worst.items() if usage[1]]
    if spilling:
        raise SystemExit(f"kernels spill registers: {', '.join(spilling)}")


if __name__ == "__main__":
    main()
