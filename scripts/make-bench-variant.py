#!/usr/bin/env python3
"""Write a variant of a benchmark policy with less or worse data, for `realign eval bench --dir OUT --only POLICY`.

  scripts/make-bench-variant.py disclaimer --conflicts 10 --out /tmp/few      ten conflicting pairs and nothing else
  scripts/make-bench-variant.py disclaimer --swapped 0.2 --out /tmp/wrong     one pair in five has its labels exchanged
  scripts/make-bench-variant.py medication --with disclaimer --with brand-neutrality --out /tmp/three
                                                                              three policies at once, under the first one's name

Conflicting pairs are those of topic `invert` (brevity, brand-neutrality, un-refusal, disclaimer). The policy and the hidden prompts stay
the same. The same arguments write the same files.
"""
import argparse
import json
import pathlib
import random
import shutil
import sys

BENCH = pathlib.Path(__file__).resolve().parent.parent / "benches/policies"


def share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("give a share from 0 to 1")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a directory of benches/policies")
    parser.add_argument("--with", dest="others", action="append", default=[], metavar="POLICY", help="this policy too, with its data and prompts")
    parser.add_argument("--conflicts", type=int, metavar="N", help="only N conflicting pairs, drawn at random")
    parser.add_argument("--swapped", type=share, default=0.0, metavar="SHARE", help="share of pairs whose chosen and rejected are exchanged")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    args = parser.parse_args()
    policies = [args.policy, *args.others]
    for name in policies:
        if not (BENCH / name / "pairs.jsonl").is_file():
            sys.exit(f"{BENCH / name} has no pairs.jsonl: give the name of a policy in {BENCH}")
    if args.out.exists():
        sys.exit(f"{args.out} exists: give a directory that does not")

    pairs = [pair for name in policies for pair in lines(BENCH / name / "pairs.jsonl")]
    draw = random.Random(args.seed)
    if args.conflicts is not None:
        of_conflict = [pair for pair in pairs if pair.get("meta", {}).get("topic") == "invert"]
        if len(of_conflict) < args.conflicts:
            sys.exit(f"{args.policy} has {len(of_conflict)} pairs of topic invert, {args.conflicts} are asked for")
        pairs = draw.sample(of_conflict, args.conflicts)
    for pair in draw.sample(pairs, round(args.swapped * len(pairs))):
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]

    own = args.out / args.policy
    (own / "hidden").mkdir(parents=True)
    for name in ("facts.jsonl", "situations.jsonl"):
        shutil.copy(BENCH / name, args.out / name)
    write(args.out / "everyday.jsonl", [row for row in lines(BENCH / "everyday.jsonl") if not set(policies) & set(row.get("except", []))])
    for name in policies:
        shutil.copy(BENCH / name / "policy.yaml", own / f"{name}.yaml")
    for name in ("heldout.jsonl", "near_misses.jsonl"):
        write(own / "hidden" / name, [row for policy in policies for row in lines(BENCH / policy / "hidden" / name)])
    write(own / "pairs.jsonl", pairs)
    print(f"{len(pairs)} pairs: realign eval bench --dir {args.out} --only {args.policy}")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
