#!/usr/bin/env python3
"""Combines the measurements of scripts/gpu-check.sh in one table and one JSON file.

usage: gpu_table.py DIRECTORY COMPARISONS
"""

import json
import pathlib
import statistics
import sys


def read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def median(values):
    return statistics.median(values) if values else None


def measured(report, peer, peak):
    """Rows of one shape's table: [(what, our value, the peer's value or None)]."""
    peer = peer or {}
    lines = []
    for row in report["rows"]:
        rate = median(row["tokens_per_second"])
        lines.append((row["name"] + ", tokens/s", rate, peer.get(row["name"])))
        if row.get("longest_gap_over_p99"):
            lines.append((row["name"] + ", longest wait / p99", median(row["longest_gap_over_p99"]), None))
    training = report["training"]
    lines.append(("training, tokens/s", median(training["tokens_per_second"]), peer.get("training")))
    again = report.get("training_recomputed")
    if again:
        lines.append(("training, computed again, tokens/s", median(again["tokens_per_second"]), None))
    lines.append(("peak memory with training, MiB", peak, peer.get("peak_mib")))
    for key, what in [
        ("decode_share_of_bandwidth", "decode: weight bytes / copy bandwidth"),
        ("prefill_share_of_compute", "prefill: arithmetic / large product"),
    ]:
        if report.get(key) is not None:
            lines.append((what, report[key], None))
    for key, value in (report.get("ceilings") or {}).items():
        lines.append((f"ceiling, {key}", value, None))
    return lines


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    directory, comparisons = pathlib.Path(sys.argv[1]), sys.argv[2]
    whole = {"device": (directory / "device.log").read_text().strip(), "comparisons": comparisons, "shapes": {}}
    left_out = directory / "left-out.log"
    whole["left_out"] = left_out.read_text().splitlines() if left_out.exists() else []
    for path in sorted(directory.glob("ours-*.json")):
        shape = path.stem.removeprefix("ours-")
        report, peer = read(path), read(directory / f"peer-{shape}.json")
        peak_log = directory / f"peak-{shape}.log"
        peak = int(peak_log.read_text() or 0) if peak_log.exists() else None
        whole["shapes"][shape] = {"ours": report, "peer": peer, "peak_mib": peak}
        if report is None:
            print(f"\n{shape}: nothing was measured")
            continue
        print(f"\n{shape:<66} {'ours':>12} {'peer':>12} {'ratio':>7}")
        for what, ours, theirs in measured(report, peer, peak):
            ratio = f"{ours / theirs:7.2f}" if ours and theirs else ""
            show = [f"{v:12.3f}" if isinstance(v, (int, float)) else f"{'':>12}" for v in (ours, theirs)]
            print(f"{what:<66} {show[0]} {show[1]} {ratio}".rstrip())
    (directory / "gpu-check.json").write_text(json.dumps(whole, indent=1))
    print(f"\nwritten: {directory / 'gpu-check.json'}")
    if not any(s["ours"] for s in whole["shapes"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
