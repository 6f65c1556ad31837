#!/usr/bin/env python3
"""What appending forced text without computing it (engine.jump_forward) is worth to calls of tools.

  python3 benches/compare/forced.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf

Round by round, a server without it and one with it answer the same twenty requests, one after another, each with a call of a tool of five
arguments. Prints the milliseconds and tokens of an answer, medians over the rounds, and whether the calls were the same.
Needs Python 3, nothing else. Traffic goes to 127.0.0.1 only.
"""
import argparse
import json
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

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


def ask(url, number):
    body = {
        "messages": [{"role": "user", "content": f"Plan meeting number {number} with the team on Monday."}],
        "tools": [TOOL], "tool_choice": "required", "temperature": 0, "max_tokens": 200,
    }
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def wait(url):
    for _ in range(600):
        try:
            if urllib.request.urlopen(url + "/ready", timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} is not ready after a minute")


def measure(binary, model, jumps):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        config = f'model = "{model}"\n[engine]\njump_forward = {str(jumps).lower()}\n'
        pathlib.Path(directory, "realign.toml").write_text(config)
        for name in ("policies", "preferences"):
            pathlib.Path(directory, name).mkdir()
        command = [binary, "serve", "--port", str(port)]
        server = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            wait(url)
            ask(url, 0)
            started = time.monotonic()
            answers = [ask(url, number) for number in range(1, REQUESTS + 1)]
            took = (time.monotonic() - started) / REQUESTS
            calls = [answer["choices"][0]["message"]["tool_calls"][0]["function"] for answer in answers]
            tokens = sum(answer["usage"]["completion_tokens"] for answer in answers) / REQUESTS
            return {"ms": 1e3 * took, "tokens": tokens, "calls": calls}
        finally:
            server.terminate()
            server.wait(60)


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
