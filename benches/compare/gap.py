#!/usr/bin/env python3
"""How long streams wait while a long prompt is read, and what bounding that costs the prompt.

  python3 benches/compare/gap.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf
  python3 benches/compare/gap.py --model FILE --targets 0,20,50,100 --prompt 3600 --rounds 3

For each engine.step_target_ms in turn, round by round: a server is started, four chats are streamed, a prompt of many tokens arrives, and the
longest time between two pieces of a stream is taken, before it and while it is read. 0 is no bound. Figures are medians over the rounds.
Needs Python 3, nothing else. Traffic goes to 127.0.0.1 only.
"""
import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")

WORDS = "river stone cloud lamp garden window paper bread train music winter letter bridge silver forest".split()


def ask(url, body):
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=600)


class Stream(threading.Thread):
    """A stream that notes when its pieces come."""

    def __init__(self, url, number):
        super().__init__(daemon=True)
        self.url, self.number, self.times, self.stop = url, number, [], False

    def run(self):
        body = {"prompt": f"Chapter {self.number}. " + " ".join(WORDS), "max_tokens": 1500, "min_tokens": 1500, "stream": True, "seed": self.number}
        for line in ask(self.url, body):
            if line.startswith(b"data: {"):
                self.times.append(time.monotonic())
            if self.stop:
                return

    def longest(self, start, end):
        times = [t for t in self.times if start <= t <= end]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)


def measure(binary, model, target, prompt_words, threads):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        config = pathlib.Path(directory, "realign.toml")
        config.write_text(f'model = "{model}"\n[engine]\nstep_target_ms = {target}\nthreads = {threads}\n')
        for name in ("policies", "preferences"):
            pathlib.Path(directory, name).mkdir()
        server = subprocess.Popen([binary, "serve", "--port", str(port)], cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                try:
                    if urllib.request.urlopen(url + "/ready", timeout=5).status == 200:
                        break
                except OSError:
                    time.sleep(0.1)
            streams = [Stream(url, n) for n in range(4)]
            for stream in streams:
                stream.start()
            while any(len(stream.times) < 60 for stream in streams):
                time.sleep(0.05)
            before = time.monotonic()
            text = " ".join(WORDS[(n * n + n // 7) % len(WORDS)] for n in range(prompt_words))
            answer = json.load(ask(url, {"prompt": text, "max_tokens": 1}))
            after = time.monotonic()
            for stream in streams:
                stream.stop = True
            start = max(stream.times[40] for stream in streams)
            return {
                "tokens": answer["usage"]["prompt_tokens"],
                "before_ms": 1e3 * max(s.longest(start, before) for s in streams),
                "gap_ms": 1e3 * max(s.longest(before, after) for s in streams),
                "read_s": after - before,
            }
        finally:
            server.terminate()
            server.wait(60)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/realign")
    parser.add_argument("--model", required=True)
    parser.add_argument("--targets", default="0,50", help="values of engine.step_target_ms, with commas [default: 0,50]")
    parser.add_argument("--prompt", type=int, default=2400, metavar="WORDS", help="length of the prompt [default: 2400]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    targets = [int(target) for target in args.targets.split(",")]
    model = pathlib.Path(args.model).resolve()
    found = {target: [] for target in targets}
    for round_number in range(args.rounds):
        for target in targets:
            found[target].append(measure(pathlib.Path(args.binary).resolve(), model, target, args.prompt, args.threads))
            print(f"round {round_number + 1}, target {target}: {found[target][-1]}", file=sys.stderr)
    print("target ms | prompt tokens | longest gap before, ms | while it is read, ms | read in, s")
    for target, rows in found.items():
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(f"{target:9} | {median['tokens']:13.0f} | {median['before_ms']:22.1f} | {median['gap_ms']:20.1f} | {median['read_s']:10.2f}")


if __name__ == "__main__":
    main()
