#!/usr/bin/env python3
"""Render deploy/kubernetes with kustomize, compare with tests/golden/kubernetes, and validate every object.

`make kubernetes` runs it. Needs `kubectl` or `kustomize`, no cluster, and the package kubernetes-validate from PyPI, which has
Kubernetes' own schemas; unknown fields are refused. With --write, what is rendered replaces what is in tests/golden/kubernetes,
from which the end-to-end tests start every container (tests/e2e/deploy.rs). Each file there begins with a hash of the sources,
so the tests notice without kustomize that they are older than the manifests.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "deploy" / "kubernetes"
GOLDEN = ROOT / "tests" / "golden" / "kubernetes"
RENDERED = {"base": "base", "fleet": "overlays/fleet", "vllm": "overlays/vllm", "triage": "triage"}
# The newest and the oldest release that is looked at.
RELEASES = ["1.37", "1.31"]


def digest():
    """Over the files' paths and content, in the order of their paths: FNV-1a, which needs no library in Rust either."""
    value = 0xCBF29CE484222325
    for path in sorted(SOURCES.rglob("*.yaml"), key=lambda path: path.relative_to(SOURCES).as_posix()):
        content = path.read_bytes()
        for byte in f"{path.relative_to(SOURCES).as_posix()}\n{len(content)}\n".encode() + content:
            value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def render(directory):
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            return subprocess.run([*command, str(SOURCES / directory)], check=True, capture_output=True,
                                  text=True).stdout
    sys.exit("check-kubernetes: neither kustomize nor kubectl is there")


def validate(name, path):
    try:
        import kubernetes_validate  # noqa: F401
    except ImportError:
        sys.exit("check-kubernetes: pip install kubernetes-validate, or run `make kubernetes`")
    program = pathlib.Path(sys.executable).parent / "kubernetes-validate"
    wrong = False
    for release in RELEASES:
        done = subprocess.run([program, "--strict", "--quiet", "-k", release, str(path)], check=False)
        wrong |= done.returncode != 0
    print(f"{name}: {path.read_text().count(chr(10) + 'kind: ')} objects, {'WRONG' if wrong else 'valid'}")
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace what is in tests/golden/kubernetes")
    options = parser.parse_args()
    GOLDEN.mkdir(parents=True, exist_ok=True)
    header = f"# Rendered by scripts/check-kubernetes.py from deploy/kubernetes. Sources: {digest()}\n"
    fine = True
    for name, directory in RENDERED.items():
        text, path = header + render(directory), GOLDEN / f"{name}.yaml"
        if options.write:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.relative_to(ROOT)} is not what deploy/kubernetes/{directory} is: run with --write")
            fine = False
            continue
        fine &= validate(name, path)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
