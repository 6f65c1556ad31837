#!/usr/bin/env python3
"""Run this server and a peer's in turn on the same model file, load both the same way, print ratios.

Each round starts one server, measures it and stops it, then the other: A B A B, so that a machine that
drifts drifts for both. The load generator is `realign bench --url`. A figure is the median over rounds of
the ratio ours / theirs; the absolute medians stand beside it. Beside wall-clock rates it prints tokens per
CPU-second of the server's process, which other load on the machine hardly touches.

  python3 benches/compare/compare.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf \\
      --peer 'llama-server -m {model} --port {port} -t {threads} -c 16384 -np 16'

{model}, {port} and {threads} are filled in. `--busy 2` runs two other processes that compute all the time.
Needs Linux (/proc) and Python 3, nothing else. Traffic goes to 127.0.0.1 only.
"""

import argparse
import json
import os
import pathlib
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

OURS = "{binary} serve --host 127.0.0.1 --port {port} --model {model} --threads {threads}"
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cpu_seconds(pid):
    """User and system time of a process, all threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_megabytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


class Server:
    """A server in a folder of its own. Used as a context manager: it is stopped at the end."""

    def __init__(self, command, values):
        self.folder = tempfile.TemporaryDirectory(prefix="compare-")
        for part in ("policies", "preferences", "adapters", "state"):
            (pathlib.Path(self.folder.name) / part).mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        words = [word.format(port=self.port, **values) for word in shlex.split(command)]
        self.log = open(pathlib.Path(self.folder.name) / "log", "w+")
        self.started = time.monotonic()
        self.process = subprocess.Popen(words, cwd=self.folder.name, stdout=self.log, stderr=self.log)
        self.first_token_seconds = self.wait_for_first_token()

    def wait_for_first_token(self, limit=180):
        body = json.dumps({"model": self.model_name() if self.listens(limit) else "", "prompt": "Hello",
                           "max_tokens": 1, "temperature": 0}).encode()
        request = urllib.request.Request(f"{self.url}/completions", body, {"content-type": "application/json"})
        while time.monotonic() - self.started < limit:
            try:
                urllib.request.urlopen(request, timeout=limit).read()
                return time.monotonic() - self.started
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    self.fail(f"status {error.code}: {error.read()[:300]!r}")
            time.sleep(0.01)
        self.fail("it gave no token in time")

    def listens(self, limit):
        while time.monotonic() - self.started < limit:
            if self.process.poll() is not None:
                self.fail(f"it ended with status {self.process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.005)
        self.fail("it did not listen in time")

    def model_name(self):
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=60) as answer:
                    return json.load(answer)["data"][0]["id"]
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() - self.started > 180:
                    raise
                time.sleep(0.01)

    def fail(self, why):
        self.log.seek(0)
        tail = self.log.read()[-2000:]
        self.stop()
        sys.exit(f"compare: {shlex.join(self.process.args)}: {why}\n{tail}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Busy:
    """Processes that compute all the time."""

    def __init__(self, count):
        self.processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def load(arguments, server, streams, round_number):
    before, started = cpu_seconds(server.process.pid), time.monotonic()
    command = [arguments.binary, "bench", "--json", "--url", server.url, "--concurrency", str(streams),
               "--repetitions", "1", "--round", str(round_number), "--requests", str(arguments.requests),
               "--prompt-words", str(arguments.prompt_words), "--generate-tokens", str(arguments.tokens),
               "--temperature", str(arguments.temperature)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        server.fail(f"the load generator failed: {done.stderr}")
    report = json.loads(done.stdout)["loads"][0][0]
    spent = cpu_seconds(server.process.pid) - before
    share = spent / (time.monotonic() - started)
    return {
        "tokens/s": report["tokens_per_second"],
        "tokens per CPU-second": report["completion_tokens"] / max(spent, 1e-9),
        "cores used": share,
        "TTFT p50 ms": report["ttft_ms"][0],
        "ITL p50 ms": report["inter_token_ms"][0],
        "ITL p99 ms": report["inter_token_ms"][2],
        "ITL max ms": report["inter_token_ms"][3],
    }


def measure(arguments, command, round_number):
    values = {"model": os.path.abspath(arguments.model), "binary": arguments.binary,
              "threads": arguments.threads}
    figures = {}
    with Server(command, values) as server:
        figures["start", "first token s"] = server.first_token_seconds
        # One unmeasured request: the first touches memory that later ones find.
        load(arguments, server, 1, 900 + round_number)
        with Busy(arguments.busy):
            for streams in arguments.streams:
                for name, value in load(arguments, server, streams, round_number).items():
                    figures[f"{streams} streams", name] = value
        figures["memory", "peak MB"] = peak_megabytes(server.process.pid)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model file that both can read")
    parser.add_argument("--peer", required=True, help="command of the peer's server")
    parser.add_argument("--binary", default="target/release/realign", help="our binary")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 8, 16])
    parser.add_argument("--requests", type=int, default=2, help="requests of each stream")
    parser.add_argument("--prompt-words", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--temperature", type=float, default=0, help="at which both draw tokens")
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute all the time")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures to this file")
    arguments = parser.parse_args()
    arguments.binary = os.path.abspath(arguments.binary)
    rounds = []
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        rounds.append([measure(arguments, command, number) for command in (OURS, arguments.peer)])
    print(f"{'':<12} {'':<22} {'ours':>9} {'peer':>9} {'ratio':>7}   (of {arguments.rounds} rounds)")
    for key in rounds[0][0]:
        ours, peer = ([pair[side][key] for pair in rounds] for side in (0, 1))
        ratios = [a / b if b else float("nan") for a, b in zip(ours, peer)]
        print(f"{key[0]:<12} {key[1]:<22} {statistics.median(ours):>9.2f} {statistics.median(peer):>9.2f} "
              f"{statistics.median(ratios):>7.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
    if arguments.json:
        plain = [[{" / ".join(key): value for key, value in side.items()} for side in pair] for pair in rounds]
        arguments.json.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
