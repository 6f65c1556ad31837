#!/usr/bin/env python3
"""What appending forced text without computing it (engine.jump_forward) is worth to calls of tools.

  python3 benches/compare/forced.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf

Round by round, a server without it and one with it answer the same twenty requests, one after another, each with a call of a tool of five
arguments. Prints the milliseconds and tokens of an answer, medians over the rounds, and whether the calls were the same.
Needs Python 3, nothing else.
"""
import argparse
import pathlib
import statistics
import time

from serving import ask, served

ARGUMENTS = {
    "title": {"type": "string", "maxLength": 20},
    "start_time": {"type": "string", "format": "date-time"},
    "attendee_count": {"type": "integer", "minimum": 0, "maximum": 99},
    "is_recurring": {"type": "boolean"},
    "priority": {"enum": ["low", "medium", "high"]},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "create_calendar_event",
        "parameters": {"type": "object", "properties": ARGUMENTS, "required": list(ARGUMENTS), "additionalProperties": False},
    },
}
REQUESTS = 20


def call(url, number):
    return ask(url, {
        "messages": [{"role": "user", "content": f"Plan meeting number {number} with the team on Monday."}],
        "tools": [TOOL], "tool_choice": "required", "temperature": 0, "max_tokens": 200,
    })


def measure(binary, model, jumps):
    with served(binary, model, f"jump_forward = {str(jumps).lower()}") as url:
        call(url, 0)
        started = time.monotonic()
        answers = [call(url, number) for number in range(1, REQUESTS + 1)]
        took = (time.monotonic() - started) / REQUESTS
        calls = [answer["choices"][0]["message"]["tool_calls"][0]["function"] for answer in answers]
        tokens = sum(answer["usage"]["completion_tokens"] for answer in answers) / REQUESTS
        return {"ms": 1e3 * took, "tokens": tokens, "calls": calls}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/realign")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    binary, model = pathlib.Path(args.binary).resolve(), pathlib.Path(args.model).resolve()
    rounds = [(measure(binary, model, False), measure(binary, model, True)) for _ in range(args.rounds)]
    for name, at in (("without", 0), ("with", 1)):
        of = [pair[at] for pair in rounds]
        print(f"{name:7} {statistics.median(row['ms'] for row in of):7.1f} ms, {of[0]['tokens']:.1f} tokens an answer")
    same = sum(a == b for before, after in rounds for a, b in zip(before["calls"], after["calls"]))
    print(f"{same} of {REQUESTS * len(rounds)} calls are the same text")


if __name__ == "__main__":
    main()
