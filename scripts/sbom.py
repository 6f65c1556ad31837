#!/usr/bin/env python3
"""Write a software bill of materials, CycloneDX 1.5 in JSON, of the `realign` binary.

Components are the packages that the default features compile or build with, on any platform (`cargo tree`), with their
licences (`cargo metadata`) and the SHA-256 of their archives (Cargo.lock), and data of our own that the binary
embeds. The same sources give the same bytes: there is no time stamp, and the serial number is a hash of the content.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import sys
import urllib.parse
import uuid

import supply

# Data that the binary embeds: written for this project, or answers of the default model that we labelled.
DATA = [
    ("exam bank: everyday prompts", "src/align/exam/bank/controls.jsonl"),
    ("exam bank: facts", "src/align/exam/bank/facts.jsonl"),
    ("neutral text for perplexity", "src/align/gate/neutral.txt"),
    ("labelled answers of the evaluation of diverted answers", "src/cli/eval/diversion/labelled.jsonl"),
    ("questions of the evaluation", "src/lab/evaluation/questions.txt"),
]
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "sbom.realign")


def purl(package):
    return f"pkg:cargo/{package['name']}@{urllib.parse.quote(package['version'], safe='.-_')}"


def component(package, checksums):
    entry = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "scope": "required",
        "licenses": [{"expression": supply.spdx(package["license"])}] if package.get("license") else [],
        "purl": purl(package),
    }
    if package.get("description"):
        entry["description"] = " ".join(package["description"].split())
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package.get("repository"):
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def embedded(name, path, licence):
    digest = hashlib.sha256((supply.ROOT / path).read_bytes()).hexdigest()
    return {
        "type": "data",
        "bom-ref": f"file:{path}",
        "name": path,
        "version": digest[:12],
        "description": name,
        "scope": "required",
        "licenses": [{"expression": licence}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def built():
    """Packages that the default features compile into the binary or run to build it: (name, version) of each, and of
    what it needs itself. cargo tree lists what a package needs where it is first mentioned."""
    text = supply.cargo("tree", "--edges", "normal,build", "--target", "all", "--prefix", "depth", "--format", " {p}")
    graph, path = {}, []
    for line in filter(None, text.splitlines()):
        depth, name, version = line.split()[:3]
        package = (name, version.removeprefix("v"))
        path = [*path[:int(depth)], package]
        graph.setdefault(package, set())
        if len(path) > 1:
            graph[path[-2]].add(package)
    return graph


def document(components, data, graph, root=None):
    root = root or {"type": "application", "bom-ref": "pkg:cargo/realign@0", "name": "realign", "version": "0"}
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "scripts/sbom.py", "version": "1"}]},
            "component": root,
        },
        "components": sorted([*data, *components], key=lambda c: c["bom-ref"]),
        "dependencies": [{"ref": ref, "dependsOn": on} for ref, on in sorted(graph.items())],
    }
    text = json.dumps(body, sort_keys=True)
    return {"$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
            "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, text)}", **body}


def bill():
    described = supply.metadata()
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in supply.lock()}
    graph = built()
    packages = {(p["name"], p["version"]): p for p in described["packages"]}
    missing = sorted(graph.keys() - packages.keys())
    if missing:
        raise supply.Failure(f"cargo metadata does not describe {missing[0]}, which cargo tree lists")
    packages = {key: packages[key] for key in graph}
    main = next(p for p in packages.values() if p["name"] == "realign")
    root = component(main, checksums) | {"type": "application"}
    del root["scope"]
    parts = [component(p, checksums) for p in packages.values() if p is not main]
    own = [embedded(name, path, main["license"]) for name, path in DATA]
    needs = {purl(packages[key]): sorted(purl(packages[k]) for k in on) for key, on in graph.items()}
    return document(parts, own, needs, root)


def faults(bom):
    """What is wrong with the structure of a bill: the parts of CycloneDX 1.5 that this script uses."""
    found = []
    if (bom.get("bomFormat"), bom.get("specVersion"), bom.get("version")) != ("CycloneDX", "1.5", 1):
        found.append("the head is not CycloneDX 1.5, version 1")
    if not re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bom.get("serialNumber", "")):
        found.append("the serial number is no UUID")
    root = bom["metadata"]["component"]["bom-ref"]
    known = {root}
    for part in bom["components"]:
        ref = part["bom-ref"]
        if ref in known:
            found.append(f"{ref} is listed twice")
        known.add(ref)
        found += [f"{ref}: {fault}" for fault in component_faults(part)]
    for entry in bom["dependencies"]:
        found += [f"dependencies name {ref}, which is no component"
                  for ref in (entry["ref"], *entry["dependsOn"]) if ref not in known]
    return found


def component_faults(part):
    if part["type"] not in ("library", "application", "data"):
        yield f"type {part['type']} is not one that CycloneDX knows"
    if not part.get("name") or not part.get("version"):
        yield "has no name or no version"
    if not part.get("licenses"):
        yield "states no licence"
    for licence in part.get("licenses", []):
        supply.licences(licence["expression"])
    if part["type"] != "data" and not re.fullmatch(r"pkg:cargo/[\w-]+@[\w.%-]+", part.get("purl", "")):
        yield f"purl {part.get('purl')} is malformed"
    for digest in part.get("hashes", []):
        if digest["alg"] != "SHA-256" or not re.fullmatch(r"[0-9a-f]{64}", digest["content"]):
            yield "has a hash that is no SHA-256"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", supply.ROOT / "target")) / "sbom.cdx.json"
    parser.add_argument("--out", type=pathlib.Path, default=default, help="where to write [%(default)s]")
    options = parser.parse_args()
    bom = bill()
    wrong = faults(bom)
    if wrong:
        raise supply.Failure("the bill is malformed: " + "; ".join(wrong))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(bom, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(bom['components'])} components, {bom['serialNumber']}")


if __name__ == "__main__":
    try:
        main()
    except (supply.Failure, OSError) as failure:
        sys.exit(f"sbom: {failure}")
