#!/usr/bin/env python3
"""How much a realignment that trains slows four streams down.

  python3 benches/compare/politeness.py --binary target/release/realign

Starts a server on the demo's data, keeps four chat streams running against it, first with nothing else to do,
then from the drop of a policy file until its generation serves, and compares the times between tokens. Prints
JSON: percentiles in milliseconds of every stage, p95 against no realignment, and how long the realignment took beside the
streams. The target is a p95 of at most 1.5 times. 127.0.0.1 only, standard library only.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "demo"))
import demo  # noqa: E402

PROMPTS = [
    "Write a long story about a lighthouse keeper and her dog.",
    "Explain how rivers shape the land over time, in detail.",
    "Describe a walk through an old market, stall by stall.",
    "Tell me about the history of bread, step by step.",
]


class Watcher(threading.Thread):
    """Names the phase after the stage that the realignment is in."""

    def __init__(self, api, streams, known):
        super().__init__(daemon=True)
        self.api, self.streams, self.known = api, streams, known

    def run(self):
        while not self.streams.stop.is_set():
            new = [job for job in self.api.realignments() if job.get("id") not in self.known]
            if new and self.streams.phase is not None:
                self.streams.phase = str(new[0].get("stage") or "triage")
            time.sleep(0.2)


class Streams:
    """Four chat streams, one after another each, and the gaps between their tokens."""

    def __init__(self, port, model):
        self.port, self.model = port, model
        self.gaps, self.phase, self.stop = {}, None, threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(p,), daemon=True) for p in PROMPTS]

    def run(self, prompt):
        while not self.stop.is_set():
            self.one(prompt)

    def one(self, prompt):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "stream": True,
                "max_tokens": 200, "temperature": 0.8}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        response, last = connection.getresponse(), None
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            now, phase = time.monotonic(), self.phase
            # The first gap is the prompt's, and a gap across two phases belongs to neither.
            if last is not None and last[1] == phase and phase is not None:
                self.gaps.setdefault(phase, []).append(now - last[0])
            last = (now, phase)
            if self.stop.is_set():
                break
        connection.close()


def percentiles(gaps):
    ordered = sorted(gaps)
    at = lambda share: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)  # noqa: E731
    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": at(0.99), "gaps": len(ordered)}


def measure(api, server, streams, seconds, limit_s):
    [thread.start() for thread in streams.threads]
    time.sleep(5)
    streams.phase = "idle"
    time.sleep(seconds)
    streams.phase = None
    known = {job["id"] for job in api.realignments()}
    dropped = time.monotonic()
    demo.drop_policy()
    streams.phase = "triage"
    Watcher(api, streams, known).start()
    with contextlib.redirect_stdout(sys.stderr):
        job = demo.follow(server, api, known, dropped, limit_s)
    streams.phase = None
    return {"realignment_seconds": round(time.monotonic() - dropped, 1), "status": job.get("status"),
            "stages": job.get("stages") or job.get("seconds")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target/release/realign", type=pathlib.Path)
    parser.add_argument("--seconds", default=30, type=float, help="length of the phase without training [30]")
    parser.add_argument("--limit", default=900, type=float, help="seconds that the realignment may take [900]")
    args = parser.parse_args()
    demo.RUN = pathlib.Path(tempfile.mkdtemp(prefix="realign-politeness-"))
    for folder in ("policies", "preferences"):
        shutil.copytree(ROOT / folder, demo.RUN / folder)
    for folder in ("adapters", "state"):
        (demo.RUN / folder).mkdir()
    port = demo.free_port(8470)
    server = demo.start(args.binary.resolve(), port)
    try:
        api = demo.Api(port)
        demo.wait_ready(server, api)
        streams = Streams(port, api.model())
        figures = measure(api, server, streams, args.seconds, args.limit)
        streams.stop.set()
        [thread.join(timeout=30) for thread in streams.threads]
        all_gaps = [gap for name, gaps in streams.gaps.items() if name != "idle" for gap in gaps]
        phases = {name: percentiles(gaps) for name, gaps in streams.gaps.items()} | {"all": percentiles(all_gaps)}
        ratio = {name: round(phase["p95_ms"] / phases["idle"]["p95_ms"], 2) for name, phase in phases.items()}
        print(json.dumps({"phases": phases, "p95_ratio": ratio, **figures}, indent=2))
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
        shutil.rmtree(demo.RUN, ignore_errors=True)


if __name__ == "__main__":
    main()
