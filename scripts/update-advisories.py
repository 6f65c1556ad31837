#!/usr/bin/env python3
"""Refresh scripts/advisories.json, the snapshot that scripts/check-supply.py reads.

    git clone https://github.com/rustsec/advisory-db ../advisory-db
    scripts/update-advisories.py ../advisory-db

Takes a checkout or a bare clone of the RustSec advisory database, and keeps the facts (id, date, kind, version ranges)
about packages in Cargo.lock; the summaries are composed from these facts. Yanked versions are found in cargo's own
copy of the registry's index, as of the last time cargo read it (`cargo update --dry-run` does). Run this
after every change of Cargo.lock that brings a package, and regularly. Needs git.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys

import supply


def git(checkout, *arguments):
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise supply.Failure(f"git {arguments[0]} in {checkout} failed: {done.stderr.strip()}")
    return done.stdout


def summary(advisory):
    """One line, from the advisory's structured fields only."""
    kind = advisory.get("informational")
    if kind:
        return {"unmaintained": "no longer maintained", "unsound": "safe code can reach undefined behaviour"}.get(kind, kind)
    what = ", ".join(advisory.get("categories", [])) or "vulnerability"
    return what.replace("-", " ")


def read(text, where):
    found = re.search(r"^```toml\n(.*?)^```", text, re.S | re.M)
    if not found:
        raise supply.Failure(f"{where}: has no TOML block; has the database's format changed?")
    facts = supply.tomllib.loads(found.group(1))
    advisory, versions = facts["advisory"], facts.get("versions", {})
    if "withdrawn" in advisory:
        return None
    kept = {
        "id": advisory["id"],
        "package": advisory["package"],
        "date": str(advisory["date"]),
        "kind": advisory.get("informational", "vulnerability"),
        "patched": versions.get("patched", []),
        "unaffected": versions.get("unaffected", []),
        "summary": summary(advisory),
    }
    affected = facts.get("affected", {})
    return kept | {key: affected[key] for key in ("os", "arch") if key in affected}


def advisories(checkout, packages):
    paths = git(checkout, "ls-tree", "-r", "--name-only", "HEAD", "crates").split()
    wanted = [path for path in paths if pathlib.PurePosixPath(path).parts[1] in packages]
    if not paths:
        raise supply.Failure(f"{checkout}: has no folder crates; is it the advisory database?")
    found = [read(git(checkout, "show", f"HEAD:{path}"), path) for path in wanted]
    return sorted((a for a in found if a), key=lambda a: a["id"])


def index_file(name):
    folders = {1: "1", 2: "2", 3: f"3/{name[:1]}"}
    return pathlib.PurePosixPath(folders.get(len(name), f"{name[:2]}/{name[2:4]}")) / name


def yanked(packages):
    """Versions in Cargo.lock that the registry's index marks, and the packages it says nothing about."""
    home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    caches = sorted(home.glob("registry/index/*/.cache"))
    marked, unknown = [], []
    for package in packages:
        path = index_file(package["name"].lower())
        files = [cache / path for cache in caches if (cache / path).is_file()]
        entries = [json.loads(e) for f in files for e in f.read_bytes().split(b"\0") if e.startswith(b"{")]
        flags = [e["yanked"] for e in entries if e["vers"] == package["version"]]
        label = f"{package['name']} {package['version']}"
        if not flags:
            unknown.append(label)
        elif any(flags):
            marked.append(label)
    return marked, unknown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path, help="a clone of https://github.com/rustsec/advisory-db")
    parser.add_argument("--out", type=pathlib.Path, default=supply.ADVISORIES, help="where to write [%(default)s]")
    options = parser.parse_args()
    packages = [p for p in supply.lock() if "source" in p]
    commit, seconds = git(options.checkout, "log", "-1", "--format=%H %ct", "HEAD").split()
    marked, unknown = yanked(packages)
    if unknown:
        print(f"update-advisories: cargo's index says nothing about {len(unknown)} packages, such as {unknown[0]}: "
              "run `cargo update --dry-run` first", file=sys.stderr)
    names = sorted({p["name"] for p in packages})
    found = advisories(options.checkout, set(names))
    snapshot = {
        "source": "https://github.com/rustsec/advisory-db",
        "commit": commit,
        "date": datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).date().isoformat(),
        "refresh": "scripts/update-advisories.py --help",
        "advisories": found,
        "yanked": marked,
        "packages": names,
    }
    options.out.write_text(dump(snapshot), encoding="utf-8")
    print(f"{options.out}: {len(found)} advisories about {len(names)} packages, {len(marked)} yanked versions, "
          f"as of {snapshot['date']}")


def dump(snapshot):
    """One entry a line, so that a refresh is a readable difference."""
    lines = []
    for key, value in snapshot.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            entries = [json.dumps(v, ensure_ascii=False) for v in value]
            text = "[\n    " + ",\n    ".join(entries) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    try:
        main()
    except supply.Failure as failure:
        sys.exit(f"update-advisories: {failure}")
