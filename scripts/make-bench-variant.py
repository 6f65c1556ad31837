#!/usr/bin/env python3
"""Write a variant of a benchmark policy with less or worse data, for `realign eval bench --dir OUT --only POLICY`.

  scripts/make-bench-variant.py disclaimer --conflicts 10 --out /tmp/few      ten conflicting pairs and nothing else
  scripts/make-bench-variant.py disclaimer --swapped 0.2 --out /tmp/wrong     one pair in five has its labels exchanged

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
    parser.add_argument("--conflicts", type=int, metavar="N", help="only N conflicting pairs, drawn at random")
    parser.add_argument("--swapped", type=share, default=0.0, metavar="SHARE", help="share of pairs whose chosen and rejected are exchanged")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    args = parser.parse_args()
    source = BENCH / args.policy
    if not (source / "pairs.jsonl").is_file():
        sys.exit(f"{source} has no pairs.jsonl: give the name of a policy in {BENCH}")
    if args.out.exists():
        sys.exit(f"{args.out} exists: give a directory that does not")

    pairs = [json.loads(line) for line in (source / "pairs.jsonl").read_text().splitlines() if line.strip()]
    draw = random.Random(args.seed)
    if args.conflicts is not None:
        of_conflict = [pair for pair in pairs if pair.get("meta", {}).get("topic") == "invert"]
        if len(of_conflict) < args.conflicts:
            sys.exit(f"{args.policy} has {len(of_conflict)} pairs of topic invert, {args.conflicts} are asked for")
        pairs = draw.sample(of_conflict, args.conflicts)
    for pair in draw.sample(pairs, round(args.swapped * len(pairs))):
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]

    args.out.mkdir(parents=True)
    for name in ("everyday.jsonl", "facts.jsonl", "situations.jsonl"):
        shutil.copy(BENCH / name, args.out / name)
    own = args.out / args.policy
    own.mkdir()
    shutil.copy(source / "policy.yaml", own / "policy.yaml")
    shutil.copytree(source / "hidden", own / "hidden")
    (own / "pairs.jsonl").write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    print(f"{len(pairs)} pairs: realign eval bench --dir {args.out} --only {args.policy}")


if __name__ == "__main__":
    main()
