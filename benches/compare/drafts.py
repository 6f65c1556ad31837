#!/usr/bin/env python3
"""What drafts (engine.draft_tokens) are worth, where answers repeat their prompt and where they do not.

  python3 benches/compare/drafts.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf

Round by round, a server without drafts and one with them answer the same requests, one after another: to copy a text with one change, and
to write about something new, greedily and at temperature 1 with a seed. Prints tokens a second, medians over the rounds, how many drafted
tokens were drawn, and whether the answers were the same. Needs Python 3, nothing else.
"""
import argparse
import pathlib
import statistics
import time

from serving import ask, metric, served

TEXT = """def total(orders):
    result = 0
    for order in orders:
        if order.is_paid and not order.is_refunded:
            result += order.price * order.quantity
        if order.has_discount:
            result -= order.discount * order.quantity
    return result


def average(orders):
    if not orders:
        return 0
    return total(orders) / len(orders)
"""
KINDS = {
    "copy": [f"Repeat this {what} exactly, without any comment:\n\n{TEXT}" for what in ("code", "program", "Python file", "source")],
    "new": [f"Write a short story about {what}." for what in ("a lighthouse", "two rivers", "an old clock", "the first snow")],
}


def measure(binary, model, tokens, temperature):
    with served(binary, model, f"draft_tokens = {tokens}") as url:
        result = {}
        for kind, prompts in KINDS.items():
            before = [metric(url, f"realign_draft_tokens{part}_total") for part in ("", "_accepted")]
            texts, generated, took = [], 0, 0.0
            for seed, prompt in enumerate(prompts):
                body = {
                    "messages": [{"role": "user", "content": prompt}],
                    "temperature": temperature, "seed": seed, "max_tokens": 160,
                }
                ask(url, {**body, "max_tokens": 1})  # The prompt is in the cache: decoding counts.
                started = time.monotonic()
                answer = ask(url, body)
                took += time.monotonic() - started
                generated += answer["usage"]["completion_tokens"]
                texts.append(answer["choices"][0]["message"]["content"])
            after = [metric(url, f"realign_draft_tokens{part}_total") for part in ("", "_accepted")]
            drafted, accepted = (b - a for a, b in zip(before, after))
            result[kind] = {"speed": generated / took, "drafted": drafted, "accepted": accepted, "tokens": generated, "texts": texts}
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/realign")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8)
    args = parser.parse_args()
    binary, model = pathlib.Path(args.binary).resolve(), pathlib.Path(args.model).resolve()
    for temperature in (0, 1):
        rounds = [[measure(binary, model, tokens, temperature) for tokens in (0, args.tokens)] for _ in range(args.rounds)]
        for kind in KINDS:
            plain, drafted = ([pair[at][kind] for pair in rounds] for at in (0, 1))
            speeds = [statistics.median(row["speed"] for row in rows) for rows in (plain, drafted)]
            same = sum(a == b for row, other in zip(plain, drafted) for a, b in zip(row["texts"], other["texts"]))
            last = drafted[-1]
            print(
                f"temperature {temperature}, {kind:5} {speeds[0]:6.1f} -> {speeds[1]:6.1f} tokens/s, {speeds[1] / speeds[0]:.2f} times; "
                f"of {last['tokens']} tokens {last['drafted']:.0f} drafted, {last['accepted']:.0f} drawn; "
                f"{same} of {len(KINDS[kind]) * len(rounds)} answers the same"
            )


if __name__ == "__main__":
    main()
