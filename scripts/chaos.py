#!/usr/bin/env python3
"""Swap, kill and load a real server, and check what clients and disk saw.

`make chaos` builds the binary and runs this with the default model. Four parts:

  streams   clients read streams while an operator activates one generation after another; every text must
            be that of the generation that its header names
  rollback  operators activate, roll back and unpin at once; disk and memory must agree
  kills     the server is killed with SIGKILL while it swaps; the next start must serve what the last
            acknowledged act said, and the history must hold every acknowledged act
  soak      load for minutes; memory, threads and open files must not grow

A table is printed, and the exit code is 1 if anything was wrong. It uses only the standard library.
"""

import argparse
import array
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPTS = [f"Tell me about {thing}." for thing in
           ["rain", "a lamp", "the sea", "old maps", "bread", "a bridge", "snow", "clocks"]]
MAX_TOKENS = 16
# The default model's shape: layers, hidden size, rows of q and of v.
LAYERS, HIDDEN, Q_ROWS, V_ROWS, RANK = 30, 576, 576, 192, 4


def write_adapter(directory, seed):
    """A random PEFT adapter that changes what the model says."""
    directory.mkdir(parents=True)
    draw = random.Random(seed)
    header, body = {}, array.array("f")
    for layer in range(LAYERS):
        for name, rows in (("q_proj", Q_ROWS), ("v_proj", V_ROWS)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("lora_A", [RANK, HIDDEN]), ("lora_B", [rows, RANK])):
                start = len(body) * 4
                body.extend(draw.uniform(-0.06, 0.06) for _ in range(shape[0] * shape[1]))
                header[f"{base}.{part}.weight"] = {
                    "dtype": "F32", "shape": shape, "data_offsets": [start, len(body) * 4]}
    text = json.dumps(header).encode()
    with open(directory / "adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body.tobytes())
    (directory / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "lora_dropout": 0.0,
        "bias": "none", "target_modules": ["q_proj", "v_proj"]}))


class Server:
    """A server process in a directory of its own."""

    def __init__(self, binary, model, home):
        self.binary, self.model, self.home = binary, model, home
        self.process, self.host, self.port, self.key = None, "127.0.0.1", None, None

    def command(self, *arguments):
        done = subprocess.run([self.binary, *arguments, "--model", self.model, "--json", "-q"], cwd=self.home,
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"realign {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout)

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        log = open(self.home / "server.log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "serve", "--model", self.model, "--model-name", "chaos", "--port", str(self.port), "-q"],
            cwd=self.home, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if self.get("/health")[0] == 200:
                    self.key = (self.home / "state" / "admin-key").read_text().strip()
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended: see {self.home}/server.log")
            time.sleep(0.02)
        raise SystemExit("the server does not start")

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(60)

    def request(self, method, path, body=None, timeout=60):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        headers = {"content-type": "application/json"}
        if path.startswith("/admin"):
            headers["authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def get(self, path):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def activate(self, generation):
        status, _ = self.request("POST", "/admin/v1/generations/activate", {"generation": generation})
        return status == 200

    def serving(self):
        return self.request("GET", "/admin/v1/generations")[1]["current"]

    def on_disk(self):
        return (self.home / "adapters" / "CURRENT").read_text().strip()

    def stream(self, model, prompt):
        """The generation in the header, the text, and whether the stream ended as it should."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        generation, text, whole = None, "", False
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps({
                "model": model, "messages": [{"role": "user", "content": prompt}], "stream": True,
                "temperature": 0, "max_tokens": MAX_TOKENS}), {"content-type": "application/json"})
            answer = connection.getresponse()
            generation = answer.getheader("x-realign-generation")
            if answer.status != 200:
                return generation, f"status {answer.status}", False
            for line in answer:
                data = line.decode().strip().removeprefix("data: ")
                if data == "[DONE]":
                    whole = True
                elif data:
                    choices = json.loads(data).get("choices") or [{}]
                    text += choices[0].get("delta", {}).get("content") or ""
        except (OSError, http.client.HTTPException, ValueError):
            whole = False
        finally:
            connection.close()
        return generation, text, whole


class Load:
    """Clients that read streams until they are told to end, and what they saw."""

    def __init__(self, server, golden, clients):
        self.server, self.golden = server, golden
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.ended, self.mixed, self.broken = 0, 0, 0
        self.limit = None
        self.threads = [threading.Thread(target=self.client, args=(n,)) for n in range(clients)]

    def client(self, number):
        draw = random.Random(number)
        while not self.stop.is_set():
            prompt = draw.choice(PROMPTS)
            generation, text, whole = self.server.stream("chaos", prompt)
            right = self.golden.get((generation, prompt), "")
            with self.lock:
                if whole:
                    self.ended += 1
                    self.mixed += text != right
                else:
                    self.broken += 1
                    self.mixed += generation is not None and not right.startswith(text)
                if self.limit and self.ended >= self.limit:
                    self.stop.set()

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def progress(text):
    print(f"\r{text:<76}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def streams(server, generations, golden, options):
    """`options.streams` streams, with at least `options.swaps` activations in between."""
    swaps, refused, draw = 0, 0, random.Random(1)
    apart = 0
    started = time.monotonic()
    with Load(server, golden, options.clients) as load:
        while swaps < options.swaps or load.ended < options.streams:
            done = server.activate(draw.choice(generations))
            swaps, refused = swaps + done, refused + (not done)
            if swaps % 50 == 0:
                apart += server.serving() != server.on_disk()
                progress(f"streams: {load.ended} of {options.streams}, {swaps} swaps")
            # Swaps are spread over the streams.
            ahead = swaps / options.swaps - load.ended / options.streams
            time.sleep(min(max(ahead * 10, 0.0), 1.0))
    return [("streams that ended", load.ended, None), ("swaps among them", swaps, None),
            ("streams with text of another generation", load.mixed, 0),
            ("streams that broke", load.broken, 0), ("activations refused", refused, 0),
            ("times that disk and memory differed", apart, 0),
            ("seconds", round(time.monotonic() - started), None)]


def rollbacks(server, generations, options):
    """Operators at once: of every round the disk must be what the memory says."""
    apart = failed = 0
    draw = random.Random(2)
    acts = [lambda: server.activate(draw.choice(generations)),
            lambda: server.request("POST", "/admin/v1/generations/rollback", {})[0] in (200, 409),
            lambda: server.request("POST", "/admin/v1/generations/unpin", {})[0] in (200, 409)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(options.rounds):
            done = [pool.submit(draw.choice(acts)) for _ in range(8)]
            failed += sum(not act.result() for act in done)
            apart += server.serving() != server.on_disk()
    return [("rounds of eight acts at once", options.rounds, None), ("acts that failed", failed, 0),
            ("rounds after which disk and memory differed", apart, 0)]


def kills(server, generations, golden, options):
    """SIGKILL at a random moment of swapping and streaming."""
    draw = random.Random(3)
    lost = apart = forgotten = mixed = broken_files = 0
    slowest = 0.0
    for number in range(options.kills):
        acknowledged, tried = [server.serving()], [None]
        end = threading.Event()

        def operator():
            while not end.is_set():
                tried[0] = draw.choice(generations)
                try:
                    if server.activate(tried[0]):
                        acknowledged.append(tried[0])
                except (OSError, http.client.HTTPException, ValueError):
                    return

        worker = threading.Thread(target=operator)
        with Load(server, golden, 4) as load:
            worker.start()
            time.sleep(draw.uniform(0.0, 0.4))
            server.kill()
            load.stop.set()
            end.set()
            worker.join()
        mixed += load.mixed
        started = time.monotonic()
        server.start()
        slowest = max(slowest, time.monotonic() - started)
        serving = server.serving()
        # An act that was not answered may have happened or not.
        lost += serving not in (acknowledged[-1], tried[0])
        apart += serving != server.on_disk()
        history = server.request("GET", "/admin/v1/generations/history")[1]
        made = [row["to"] for row in sorted(history["activations"], key=lambda row: row["seq"])]
        wanted = [to for before, to in zip(acknowledged, acknowledged[1:]) if before != to]
        n = len(wanted)
        # One more act may have happened without an answer, and the start may have taken it back.
        ends = [made[len(made) - n - more:len(made) - more] for more in range(3)]
        forgotten += bool(n) and wanted not in ends
        broken_files += sum(1 for path in (server.home / "adapters").rglob("*tmp*"))
        if number % 10 == 9:
            progress(f"kills: {number + 1} of {options.kills}")
    return [("kills", options.kills, None), ("starts that served something else", lost, 0),
            ("starts with disk and memory apart", apart, 0), ("starts without an acknowledged act", forgotten, 0),
            ("streams with text of another generation", mixed, 0), ("temporary files left", broken_files, 0),
            ("slowest start, s", round(slowest, 1), None)]


def usage(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return (int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"]),
            len(os.listdir(f"/proc/{pid}/fd")))


def slope(points):
    """Least squares: MB an hour."""
    n = len(points)
    mean_t, mean_y = (sum(p[i] for p in points) / n for i in (0, 1))
    over = sum((t - mean_t) * (y - mean_y) for t, y in points)
    return 3600 * over / max(sum((t - mean_t) ** 2 for t, _ in points), 1e-9)


def soak(server, generations, golden, options):
    """Load and swaps for minutes; the first fifth is warming up."""
    seconds, draw, points = options.soak * 60, random.Random(4), []
    started = time.monotonic()
    threads = files = 0
    with Load(server, golden, options.clients) as load:
        while (passed := time.monotonic() - started) < seconds:
            server.activate(draw.choice(generations))
            rss, threads_now, files_now = usage(server.process.pid)
            if passed > seconds / 5:
                points.append((passed, rss))
                threads, files = max(threads, threads_now), max(files, files_now)
            progress(f"soak: {passed / 60:.1f} of {options.soak} min, {rss:.0f} MB")
            time.sleep(min(2.0, seconds / 50))
    time.sleep(1)
    growth = slope(points) * (points[-1][0] - points[0][0]) / 3600
    return [("minutes", options.soak, None), ("streams", load.ended, None),
            ("streams with text of another generation", load.mixed, 0), ("streams that broke", load.broken, 0),
            ("memory at the end, MB", round(points[-1][1]), None),
            ("slope of memory, MB an hour", round(slope(points), 1), None),
            ("growth after warming up, MB", round(growth, 1), options.growth),
            ("most threads", threads, None), ("most open files", files, 64 + 4 * options.clients),
            ("open files at rest", usage(server.process.pid)[2], 64)]


def prepare(options, home):
    server = Server(options.binary, options.model, home)
    (home / "policies").mkdir()
    generations = ["base"]
    for seed in range(3):
        write_adapter(home / f"peft-{seed}", seed)
        generations.append(server.command("adapters", "import", str(home / f"peft-{seed}"))["generation"])
    server.start()
    # The base by its id, as answers and the history name it.
    listed = server.request("GET", "/admin/v1/generations")[1]["generations"]
    generations[0] = listed[0]["id"]
    assert server.activate(generations[1]), "the first activation was refused"
    golden = {}
    for generation in generations:
        for prompt in PROMPTS:
            header, text, whole = server.stream(f"chaos@{generation}", prompt)
            assert whole, f"{generation} does not answer {prompt!r}: {text}"
            golden[(header, prompt)] = text
    texts = {golden[key] for key in golden}
    assert len(texts) > 2 * len(PROMPTS), "the generations answer alike: nothing would be seen"
    return server, generations, golden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "realign"))
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60, help="rounds of operators at once")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--soak", type=float, default=30, metavar="MINUTES")
    parser.add_argument("--growth", type=float, default=16, metavar="MB", help="most growth of memory in the soak")
    parser.add_argument("--only", choices=["streams", "rollback", "kills", "soak"], nargs="+")
    options = parser.parse_args()
    options.binary, options.model = (str(pathlib.Path(p).resolve()) for p in (options.binary, options.model))
    home = pathlib.Path(tempfile.mkdtemp(prefix="realign-chaos-"))
    server, generations, golden = prepare(options, home)
    parts = {"streams": lambda: streams(server, generations, golden, options),
             "rollback": lambda: rollbacks(server, generations, options),
             "kills": lambda: kills(server, generations, golden, options),
             "soak": lambda: soak(server, generations, golden, options)}
    breached = False
    try:
        for name, part in parts.items():
            if options.only and name not in options.only:
                continue
            rows = part()
            progress("")
            for what, figure, most in rows:
                wrong = most is not None and figure > most
                breached |= wrong
                bound = "" if most is None else f"at most {most}"
                print(f"{name:<9} {what:<46} {figure:>8}  {bound:<12} {'BREACH' if wrong else ''}", flush=True)
    finally:
        if server.process.poll() is None:
            server.kill(signal.SIGTERM)
    if breached:
        print(f"what the server said: {home}/server.log", file=sys.stderr)
    else:
        shutil.rmtree(home)
    return 1 if breached else 0


if __name__ == "__main__":
    sys.exit(main())
