#!/usr/bin/env python3
"""Check the dependencies against deny.toml, without cargo-deny and without the network.

deny.toml says what is allowed; `cargo deny check` reads the same file where it is installed. Checked are

  licences     every package's licence expression can be met from [licenses], exceptions included
  sources      every package comes from an allowed registry, none from git, and Cargo.lock has its checksum
  bans         no package of [bans] deny, and no second version of a package beyond [bans] skip
  advisories   no version that scripts/advisories.json knows to be vulnerable, unmaintained, unsound or yanked,
               except those of [advisories] ignore; every package must be covered by that snapshot

An entry of deny.toml that nothing needs any more is an error too, and every exception needs a reason: a `reason`, or
for licences, where the format has none, a comment on the same line.

Exits with 0 if all is well, 1 if a check failed, 2 if a file is missing or malformed.
"""

import argparse
import collections
import json
import pathlib
import re
import sys

import supply


def licence_findings(rules, text, packages):
    allowed = set(rules["allow"])
    exceptions = {e["crate"]: set(e["allow"]) for e in rules.get("exceptions", [])}
    mentioned, needed = set(), set()
    for package in packages:
        label, expression = f"{package['name']} {package['version']}", package.get("license")
        if not expression:
            yield f"{label} states no licence: find out what it is, and replace the package if there is none"
            continue
        tree = supply.licences(expression)
        mentioned |= supply.names(tree)
        if supply.is_allowed(tree, allowed):
            continue
        if not supply.is_allowed(tree, allowed | exceptions.get(package["name"], set())):
            yield f"{label} is under `{expression}`: allow it in deny.toml, or replace the package"
        needed.add(package["name"])
    for unused in sorted(allowed - mentioned):
        yield f"[licenses] allow: no package is under {unused}; remove it"
    for name in exceptions:
        if name not in needed:
            yield f"[licenses] exceptions: {name} needs none; remove it"
        if not re.search(rf'^.*crate = "{re.escape(name)}".*}},?\s*# *\S', text, re.M):
            yield f"[licenses] exceptions: {name} has no reason; write one in a comment on its line"


def source_findings(rules, packages):
    registries, git = set(rules.get("allow-registry", [])), set(rules.get("allow-git", []))
    for package in packages:
        label, source = f"{package['name']} {package['version']}", package.get("source")
        if source is None:
            continue  # a member of the workspace
        kind, _, url = source.partition("+")
        if kind == "git" and url.split("?")[0].split("#")[0] not in git:
            yield f"{label} comes from git ({url}): use a release from the registry"
        elif kind != "git" and url not in registries:
            yield f"{label} comes from {source}: [sources] allows only {', '.join(sorted(registries))}"
        if kind != "git" and not re.fullmatch(r"[0-9a-f]{64}", package.get("checksum", "")):
            yield f"{label} has no checksum in Cargo.lock: remove its entry and run `cargo fetch`"


def members(packages, root):
    """Packages without a source that are not of this workspace: a path outside it."""
    for package in packages:
        if package["source"] is None and not pathlib.Path(package["manifest_path"]).is_relative_to(root):
            yield f"{package['name']} is at {package['manifest_path']}, outside the workspace"


def reasons(section, entries):
    for entry in entries:
        if not isinstance(entry, dict) or not str(entry.get("reason", "")).strip():
            yield f"{section}: {entry} has no reason"


def split(entry):
    """(name, version or None) of an entry of [bans]."""
    name, _, version = entry["crate"].partition("@")
    return name, supply.bare(version) or None


def ban_findings(rules, packages):
    versions = collections.defaultdict(set)
    for package in packages:
        versions[package["name"]].add(supply.bare(package["version"]))
    denied, skipped = rules.get("deny", []), rules.get("skip", [])
    yield from reasons("[bans] deny", denied)
    yield from reasons("[bans] skip", skipped)
    for entry in denied:
        name, version = split(entry)
        if name in versions and (version is None or version in versions[name]):
            yield f"{name} is banned: {entry.get('reason', '')}; `cargo tree --invert {name}` says what needs it"
    skip = {split(entry) for entry in skipped}
    for name, version in sorted(skip, key=str):
        if version not in versions[name] or len(versions[name]) < 2:
            yield f"[bans] skip: {name}@{version} is no duplicate any more; remove it"
    for name, found in sorted(versions.items()):
        left = sorted(v for v in found if (name, v) not in skip)
        if len(left) > 1:
            yield (f"{name} is there in versions {', '.join(left)}: `cargo update -p {name}@{left[0]}` may join them; "
                   "otherwise add all but one to [bans] skip with the reason")


def advisory_findings(rules, packages, snapshot):
    covered, yanked = set(snapshot["packages"]), set(snapshot["yanked"])
    ignored = rules.get("ignore", [])
    yield from reasons("[advisories] ignore", ignored)
    ignored = {entry["id"] if isinstance(entry, dict) else entry for entry in ignored}
    by_name = collections.defaultdict(list)
    for advisory in snapshot["advisories"]:
        by_name[advisory["package"]].append(advisory)
    hit = set()
    for package in packages:
        name, version = package["name"], package["version"]
        label = f"{name} {version}"
        if name not in covered:
            yield f"{label} is newer than the snapshot of advisories: run scripts/update-advisories.py (see --help)"
        if label in yanked:
            yield f"{label} was yanked: run `cargo update -p {name}`"
        for advisory in by_name[name]:
            if not supply.is_affected(version, advisory):
                continue
            hit.add(advisory["id"])
            if advisory["id"] not in ignored:
                fixed = " or ".join(advisory["patched"]) or "no version"
                yield f"{label}: {advisory['id']} of {advisory['date']}, {advisory['summary']}; fixed in {fixed}"
    for id in sorted(ignored - hit):
        yield f"[advisories] ignore: {id} is about no version in Cargo.lock; remove it"


def snapshot_of(path):
    try:
        snapshot = json.loads(path.read_text(encoding="utf-8"))
        missing = {"date", "commit", "advisories", "yanked", "packages"} - snapshot.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise supply.Failure(f"{path}: {error}; scripts/update-advisories.py writes it") from error
    if missing:
        raise supply.Failure(f"{path}: has no {', '.join(sorted(missing))}; scripts/update-advisories.py writes it")
    return snapshot


# Levels that deny.toml must state, because this script knows no other.
LEVELS = {
    "licenses": {"include-dev": True, "unused-allowed-license": "deny"},
    "bans": {"multiple-versions": "deny"},
    "sources": {"unknown-registry": "deny", "unknown-git": "deny"},
    "advisories": {"yanked": "deny", "unmaintained": "all"},
}


def read_rules(path):
    rules = supply.read_toml(path)
    for section, levels in LEVELS.items():
        for key, level in levels.items():
            if rules.get(section, {}).get(key) != level:
                raise supply.Failure(f"{path}: [{section}] {key} must be {json.dumps(level)}")
    return rules


def findings(options):
    rules, snapshot = read_rules(options.deny), snapshot_of(options.advisories)
    locked = supply.lock(options.lock)
    foreign = [package for package in locked if "source" in package]
    described = supply.metadata("--all-features")["packages"]
    text = options.deny.read_text(encoding="utf-8")
    yield "licences", list(licence_findings(rules["licenses"], text, described))
    yield "sources", [*source_findings(rules["sources"], locked), *members(described, supply.ROOT)]
    yield "bans", list(ban_findings(rules["bans"], locked))
    yield "advisories", list(advisory_findings(rules["advisories"], foreign, snapshot))
    print(f"check-supply: {len(locked)} packages; advisories of {snapshot['date']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deny", type=pathlib.Path, default=supply.DENY, help="the rules [%(default)s]")
    parser.add_argument("--lock", type=pathlib.Path, default=supply.ROOT / "Cargo.lock", help="[%(default)s]")
    parser.add_argument("--advisories", type=pathlib.Path, default=supply.ADVISORIES, help="[%(default)s]")
    options = parser.parse_args()
    failed = [f"{check}: {line}" for check, lines in findings(options) for line in lines]
    for line in failed:
        print(f"check-supply: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except supply.Failure as failure:
        print(f"check-supply: {failure}", file=sys.stderr)
        sys.exit(2)
    except (KeyError, TypeError) as error:
        print(f"check-supply: deny.toml or advisories.json is not as expected: {error!r}", file=sys.stderr)
        sys.exit(2)
