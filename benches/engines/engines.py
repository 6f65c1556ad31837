#!/usr/bin/env python3
"""Run the engines of one binary in turn on the same model and adapter; print what each costs.

  cargo build --release --features mistralrs
  python3 benches/engines/engines.py --binary target/release/realign

For each engine: seconds until it listens, resident memory, decoding and prefill over HTTP (`realign bench
--url`), and swaps between the base and an adapter: how long each takes, what memory peaks at while it is
under way, and what the longest wait between tokens of a stream is that runs across it. The load comes from
this machine, over 127.0.0.1. Needs Linux (/proc) and Python 3, nothing else.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def resident_mb(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Peak:
    """The largest resident memory of a process while the block runs."""

    def __init__(self, pid):
        self.pid, self.mb, self.going = pid, 0.0, True

    def __enter__(self):
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while self.going:
            self.mb = max(self.mb, resident_mb(self.pid))
            time.sleep(0.002)

    def __exit__(self, *_):
        self.going = False
        self.thread.join()


def request(url, body=None, key=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=300) as answer:
        return json.load(answer)


def stream_waits(url, model, tokens, waits, began):
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "stream": True,
            "temperature": 0, "ignore_eos": True}
    sent = urllib.request.Request(url + "/completions", json.dumps(body).encode(),
                                  {"content-type": "application/json"})
    last = None
    with urllib.request.urlopen(sent, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            now = time.monotonic()
            if last is not None:
                waits.append((now - last) * 1000)
            last = now
            began.set()


class Server:
    def __init__(self, args, engine, folder):
        self.port = free_port()
        command = [args.binary, "serve", "--port", str(self.port), "--model", args.model,
                   "--engine", engine, "--model-name", "m"]
        self.log = open(folder / f"{engine}.log", "w")
        started = time.monotonic()
        self.process = subprocess.Popen(command, cwd=folder, stdout=self.log, stderr=self.log)
        self.base = f"http://127.0.0.1:{self.port}"
        while True:
            try:
                request(self.base + "/v1/models")
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() - started > 300:
                    raise SystemExit(f"{engine} did not start:\n{open(self.log.name).read()}")
                time.sleep(0.01)
        self.seconds = time.monotonic() - started
        self.pid = self.process.pid
        self.key = (folder / "state" / "admin-key").read_text().strip()

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def bench(args, server, words, tokens, streams):
    command = [args.binary, "--json", "bench", "--url", server.base + "/v1", "--prompt-words", str(words),
               "--generate-tokens", str(tokens), "--concurrency", ",".join(map(str, streams)),
               "--repetitions", str(args.repetitions), "--requests", "1"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out)["loads"]


def median(reports, field):
    return statistics.median(field(r) for r in reports)


def swaps(server, generation, count):
    """Seconds and peak memory of each swap, there and back, with nothing else going on."""
    seconds, peaks = [], []
    for i in range(count):
        to = generation if i % 2 == 0 else "base"
        with Peak(server.pid) as peak:
            started = time.monotonic()
            request(server.base + "/admin/v1/generations/activate", {"generation": to}, server.key)
            seconds.append(time.monotonic() - started)
        peaks.append(peak.mb)
        time.sleep(0.5)
    return seconds, peaks


def swap_under_a_stream(server, generation, tokens):
    waits, began = [], threading.Event()
    thread = threading.Thread(target=stream_waits, args=(server.base + "/v1", "m", tokens, waits, began))
    thread.start()
    began.wait(60)
    time.sleep(0.3)
    started = time.monotonic()
    request(server.base + "/admin/v1/generations/activate", {"generation": generation}, server.key)
    took, running = time.monotonic() - started, thread.is_alive()
    thread.join()
    return took, running, max(waits), statistics.median(waits)


def measure(args, engine, folder, generation):
    server = Server(args, engine, folder)
    try:
        row = {"engine": engine, "start_s": server.seconds, "rss_mb": resident_mb(server.pid)}
        for reports in bench(args, server, 32, 64, args.streams):
            n = reports[0]["streams"]
            row[f"tokens_per_s_{n}"] = median(reports, lambda r: r["tokens_per_second"])
            row[f"itl_p50_ms_{n}"] = median(reports, lambda r: r["inter_token_ms"][0])
        (long,) = bench(args, server, args.prefill_words, 1, [1])
        row["prefill_tokens_per_s"] = median(long, lambda r: 1000 * r["prompt_tokens"] / r["requests"] / r["ttft_ms"][0])
        row["rss_after_load_mb"] = resident_mb(server.pid)
        seconds, peaks = swaps(server, generation, 2 * args.repetitions)
        row["swap_s"], row["swap_s_max"] = statistics.median(seconds), max(seconds)
        row["swap_peak_mb"] = max(peaks)
        time.sleep(1)
        row["rss_after_swaps_mb"] = resident_mb(server.pid)
        took, running, longest, usual = swap_under_a_stream(server, generation, args.stream_tokens)
        row.update(swap_under_stream_s=took, stream_outlived_swap=running, stream_wait_max_ms=longest,
                   stream_wait_p50_ms=usual)
        return row
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/realign"))
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--adapter", default=str(ROOT / "tests/golden/adapter"))
    parser.add_argument("--engines", default="native,mistralrs")
    parser.add_argument("--rounds", type=int, default=2, help="A B A B")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--streams", type=lambda s: [int(n) for n in s.split(",")], default=[1, 4, 8])
    parser.add_argument("--prefill-words", type=int, default=400)
    parser.add_argument("--stream-tokens", type=int, default=600)
    args = parser.parse_args()
    args.binary, args.model = os.path.abspath(args.binary), os.path.abspath(args.model)
    with tempfile.TemporaryDirectory(prefix="engines-") as name:
        folder = pathlib.Path(name)
        for part in ("policies", "preferences", "adapters", "state"):
            (folder / part).mkdir()
        made = subprocess.run([args.binary, "--json", "--model", args.model, "adapters", "import",
                               os.path.abspath(args.adapter)], cwd=folder, capture_output=True, text=True, check=True)
        generation = json.loads(made.stdout)["generation"]
        rows = []
        for _ in range(args.rounds):
            for engine in args.engines.split(","):
                for state in ("adapters/CURRENT", "state/realign.db"):
                    (folder / state).unlink(missing_ok=True)
                rows.append(measure(args, engine, folder, generation))
                print(json.dumps(rows[-1]), flush=True)
    print(f"\n{'':<26}" + "".join(f"{e:>22}" for e in args.engines.split(",")))
    for key in rows[0]:
        if key == "engine":
            continue
        cells = []
        for engine in args.engines.split(","):
            values = [row[key] for row in rows if row["engine"] == engine]
            cells.append(f"{min(values):.3f} to {max(values):.3f}")
        print(f"{key:<26}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
