#!/usr/bin/env python3
"""Writes static archives of stubs to link instead of the CUDA libraries, so that one binary starts with and
without them: each stub looks up the real function at its first call.

usage: lazy-libraries.py CUDARC_SOURCE OUT

Writes OUT/lib{cuda,cublas,cublasLt,curand,nvrtc}.a for x86-64 Linux. The functions are those that cudarc
declares. Each stub jumps through its slot in a table. At first the slot points to code that looks up the
function in the library and patches the slot. If the library or the function is missing, a call returns the
library's own code for that.

CUDA_LIB_DIRS lists directories, separated by colons, that are searched before the loader's own.
"""

import pathlib
import re
import subprocess
import sys

# library: (cudarc's module, file names, error code if the library is missing)
LIBRARIES = {
    "cuda": ("driver", ["libcuda.so.1"], 100),  # CUDA_ERROR_NO_DEVICE
    "cublas": ("cublas", ["libcublas.so.13", "libcublas.so.12"], 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    "cublasLt": ("cublaslt", ["libcublasLt.so.13", "libcublasLt.so.12"], 1),
    "curand": ("curand", ["libcurand.so.10"], 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    "nvrtc": ("nvrtc", ["libnvrtc.so.13", "libnvrtc.so.12"], 11),  # NVRTC_ERROR_INTERNAL_ERROR
}
DECLARATION = re.compile(r'extern "C" \{\s*fn (\w+)\([^;]*?\)\s*(->[^;]*)?;')
KEPT = ["rax", "rdi", "rsi", "rdx", "rcx", "r8", "r9"]


def declared(cudarc, module):
    """{function: whether it returns a string}"""
    text = (cudarc / "src" / module / "sys/mod.rs").read_text()
    return {name: "*const" in (returned or "") for name, returned in DECLARATION.findall(text)}


def assembly(library, functions):
    lines = [".text"]
    for index, name in enumerate(functions):
        lines += [
            f".globl {name}", f".type {name}, @function", f"{name}:",
            "    endbr64", f"    jmp *slot_{library}_{index}(%rip)",
            f"first_{library}_{index}:", "    endbr64", f"    pushq ${index}", f"    jmp find_{library}",
        ]
    # The lookup must preserve the arguments of the current call and keep its stack aligned: two words (the
    # index, the return address) and seven registers are above sixteen bytes for each vector register.
    lines += [f"find_{library}:"]
    lines += [f"    pushq %{register}" for register in KEPT]
    lines += ["    subq $136, %rsp"]
    lines += [f"    movups %xmm{i}, {16 * i}(%rsp)" for i in range(8)]
    lines += [f"    movq {136 + 8 * len(KEPT)}(%rsp), %rdi", f"    call search_{library}", "    movq %rax, %r11"]
    lines += [f"    movups {16 * i}(%rsp), %xmm{i}" for i in range(8)]
    lines += ["    addq $136, %rsp"]
    lines += [f"    popq %{register}" for register in reversed(KEPT)]
    lines += ["    addq $8, %rsp", "    jmp *%r11"]
    lines += [".data", ".balign 8", f".globl slots_{library}", f".hidden slots_{library}", f"slots_{library}:"]
    lines += [f"slot_{library}_{i}: .quad first_{library}_{i}" for i in range(len(functions))]
    lines += ['.section .note.GNU-stack, "", @progbits', ""]
    return "\n".join(lines)


SEARCH = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *slots_@[] __attribute__((visibility("hidden")));
static const char *const functions[] = {FUNCTIONS};
static const char gives_string[] = {STRINGS};
static const char *const files[] = {FILES};
static void *library;
static pthread_once_t looked = PTHREAD_ONCE_INIT;

static int absent(void) { return CODE; }
static const char *absent_string(void) { return "lib@ is not installed"; }
static int absent_message(int code, const char **message) {
    (void)code;
    if (message) *message = "lib@ is not installed";
    return 0;
}

static void look(void) {
    const char *rest = getenv("CUDA_LIB_DIRS");
    char path[4096];
    while (!library && rest && *rest) {
        int length = (int)strcspn(rest, ":");
        for (size_t i = 0; !library && length && i < sizeof files / sizeof *files; i++) {
            if (snprintf(path, sizeof path, "%.*s/%s", length, rest, files[i]) < (int)sizeof path)
                library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        }
        rest += length + (rest[length] == ':');
    }
    for (size_t i = 0; !library && i < sizeof files / sizeof *files; i++)
        library = dlopen(files[i], RTLD_NOW | RTLD_GLOBAL);
}

__attribute__((visibility("hidden"))) void *search_@(unsigned long index) {
    pthread_once(&looked, look);
    void *found = library ? dlsym(library, functions[index]) : NULL;
    if (!found) {
        const char *name = functions[index];
        if (!strcmp(name, "cuGetErrorString") || !strcmp(name, "cuGetErrorName")) return (void *)absent_message;
        return gives_string[index] ? (void *)absent_string : (void *)absent;
    }
    __atomic_store_n(&slots_@[index], found, __ATOMIC_RELEASE);
    return found;
}
"""


def source(library, functions, files, code):
    def listed(values):
        return ", ".join(values)

    text = SEARCH.replace("FUNCTIONS", listed(f'"{f}"' for f in functions))
    text = text.replace("STRINGS", listed(str(int(s)) for s in functions.values()))
    text = text.replace("FILES", listed(f'"{f}"' for f in files)).replace("CODE", str(code))
    return text.replace("@", library)


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    cudarc, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for library, (module, files, code) in LIBRARIES.items():
        functions = declared(cudarc, module)
        if not functions:
            raise SystemExit(f"no functions found in cudarc's {module}: has its source changed?")
        texts = {"S": assembly(library, functions), "c": source(library, functions, files, code)}
        objects = []
        for kind, text in texts.items():
            path = out / f"{library}.{kind}"
            path.write_text(text)
            objects.append(str(path.with_suffix(f".{kind}.o")))
            subprocess.run(["cc", "-O2", "-fPIC", "-c", str(path), "-o", objects[-1]], check=True)
        archive = out / f"lib{library}.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", str(archive), *objects], check=True)
        print(f"lib{library}.a: {len(functions)} functions")


if __name__ == "__main__":
    main()
