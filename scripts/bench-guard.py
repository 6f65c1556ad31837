#!/usr/bin/env python3
"""Counts the instructions of decoding, prefill, a training step and a request, and compares them with benches/instructions.json.

    scripts/bench-guard.py                   fail if a count differs by more than 3 %
    scripts/bench-guard.py --tolerance 10    by more than 10 %: for another machine, whose C library may choose other routines
    scripts/bench-guard.py --update          write the counts that were measured

Counts repeat on a noisy machine, where times do not. valgrind shows a processor with AVX2 and without AVX-512. Each case runs twice
with different numbers of repetitions; the difference is the work's own. Another compiler gives other counts, so only those of the
one that made the file are compared. The program is the integration tests' binary in the profile of `cargo test`,
which does not optimise the server's own crate and HTTP: requests_40 is twice what it is with both optimised.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

FILE = pathlib.Path(__file__).resolve().parent.parent / "benches/instructions.json"
CASES = ["decode_at_256", "decode_at_3000", "prefill_64_at_0", "prefill_64_at_1024", "training_step", "requests_40"]
LOW, HIGH = 1, 3
# Steps of decoding are short, and how long threads wait for each other differs: more of them are counted.
DECODING_HIGH = 21


def build():
    command = [os.environ.get("CARGO", "cargo"), "test", "--locked", "--test", "integration", "--no-run", "--message-format=json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    programs = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "integration"]
    return programs[0]


def compiler():
    return subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[1]


def count(program, case, repeat):
    core = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program]
    command += ["--exact", f"e2e::instructions::{case}", "--test-threads=1"]
    run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, REALIGN_REPEAT=str(repeat)))
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or not found:
        sys.exit(f"bench-guard: {case} failed:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
    return int(found[1])


def measure(program, case):
    high = DECODING_HIGH if case.startswith("decode") else HIGH
    return (count(program, case, high) - count(program, case, LOW)) // (high - LOW)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write what was measured")
    parser.add_argument("--tolerance", type=float, default=3.0, metavar="PERCENT", help="largest change that is no failure [default: 3]")
    parser.add_argument("--only", choices=CASES, help="one case")
    args = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("bench-guard: valgrind is missing: install it from the distribution")
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    rustc = compiler()
    if not args.update and known.get("rustc") != rustc:
        print(f"bench-guard: SKIPPED: the counts are those of rustc {known.get('rustc')}, and this is {rustc}; see --update")
        return
    program = build()
    cases = [args.only] if args.only else CASES
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counts = dict(zip(cases, pool.map(lambda case: measure(program, case), cases)))
    failed = [case for case, now in counts.items() if not report(case, known.get("counts", {}).get(case), now, args.tolerance)]
    if args.update:
        kept = known.get("counts", {}) if known.get("rustc") == rustc else {}
        FILE.write_text(json.dumps({"rustc": rustc, "counts": kept | counts}, indent=2) + "\n")
    elif failed:
        sys.exit("bench-guard: if the change is meant, run scripts/bench-guard.py --update and say why in the commit")


def report(case, before, now, tolerance):
    """Prints a line; whether the count is what it was."""
    change = now / before - 1 if before else None
    is_same = change is not None and 100 * abs(change) <= tolerance
    said = "not known before" if change is None else f"{change:+.1%} of {before:,}"
    print(f"{'ok     ' if is_same else 'CHANGED'} {case:<20} {now:>14,} instructions, {said}", flush=True)
    return is_same


if __name__ == "__main__":
    main()
