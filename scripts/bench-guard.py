#!/usr/bin/env python3
"""Counts the instructions of decoding, prefill, a training step and a request, and compares them with benches/instructions.json.

    scripts/bench-guard.py PROGRAM             fail if a count differs by more than 3 %; PROGRAM: the integration tests' binary
    scripts/bench-guard.py PROGRAM --update    write the counts that were measured

Counts repeat on a noisy machine, where times do not. They depend on the compiler and on the instruction set: valgrind shows a
processor with AVX2 and without AVX-512. Each case runs twice with different numbers of repetitions; the difference is the work's own.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

FILE = pathlib.Path(__file__).resolve().parent.parent / "benches/instructions.json"
CASES = ["decode_at_256", "decode_at_3000", "prefill_64_at_0", "prefill_64_at_1024", "training_step", "request"]
TOLERANCE = 0.03
LOW, HIGH = 1, 3


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
    return (count(program, case, HIGH) - count(program, case, LOW)) // (HIGH - LOW)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the integration tests' binary")
    parser.add_argument("--update", action="store_true", help="write what was measured")
    parser.add_argument("--only", choices=CASES, help="one case")
    args = parser.parse_args()
    cases = [args.only] if args.only else CASES
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counts = dict(zip(cases, pool.map(lambda case: measure(args.program, case), cases)))
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if args.update:
        FILE.write_text(json.dumps(known | counts, indent=2) + "\n")
    failed = False
    for case, now in counts.items():
        before = known.get(case)
        change = now / before - 1 if before else None
        bad = not args.update and (change is None or abs(change) > TOLERANCE)
        failed |= bad
        said = "not known before" if change is None else f"{change:+.1%} of {before:,}"
        print(f"{'FAIL' if bad else 'ok  '} {case:<20} {now:>14,} instructions, {said}")
    if failed:
        sys.exit("bench-guard: if the change is meant, run `make bench-guard UPDATE=--update` and say why in the commit")


if __name__ == "__main__":
    main()
