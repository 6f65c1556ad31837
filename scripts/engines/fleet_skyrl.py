#!/usr/bin/env python3
"""Train on a running SkyRL through its Tinker API, and compare with the local trainer.

`make fleet-skyrl` (scripts/fleet-skyrl.sh) installs SkyRL and JAX for CPUs from PyPI and runs this. Parts:

  engine     SkyRL's server starts with the base model, on JAX
  remote     `realign train --engine tinker` on the demo's policy, with a small budget
  local      the same pairs, batches and schedule with the local trainer
  compared   losses of the first step, where both adapters are new, and of the last; answers to hidden prompts
  realigned  a server with train.engine = "tinker": a policy is dropped, and what SkyRL trained passes the gate
             and serves

A line is printed for each, and the exit code is 1 if anything was wrong. Standard library only.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
import time

import common
from common import ROOT, Process, request, say, wait

# What SkyRL's JAX does: all layers, alpha 32, no clipping. One round, because it cannot be given an adapter. With a
# second beta of 0.999 a base model in bfloat16 gets nothing but NaN from it (docs/training.md).
RECIPE = {"layer_share": 1.0, "alpha": 32.0, "rank": 16, "rounds": 1, "clip_norm": 1e9, "situations": False,
          "betas": [0.9, 0.95], "batch_pairs": 2}
# Relative: other arithmetic; the batches are the same.
FIRST_STEP = 0.1
TOKENS = 40


class Run:
    def __init__(self, options, home):
        self.options, self.home = options, home
        self.processes, self.curves = [], {}
        self.base = common.base_model(options.python, options.base, home)
        self.work = home / "train"
        (self.work / "policies").mkdir(parents=True)
        shutil.copy(common.POLICY, self.work / "policies")
        shutil.copytree(ROOT / "preferences", self.work / "preferences")

    def settings(self, engine):
        options = self.options
        recipe = {**RECIPE, "max_pairs": options.pairs, "controls": options.controls, "max_minutes": options.minutes,
                  "learning_rate": options.learning_rate, "min_steps": options.steps, "max_steps": options.steps}
        lines = [f"{key} = {json.dumps(value)}" for key, value in recipe.items()]
        return "\n".join([f"model = {json.dumps(str(self.base))}", 'model_name = "assistant"', "[train]", *lines,
                          f'engine = "{engine}"', "[train.tinker]", f'url = "http://127.0.0.1:{self.port}"', ""])

    def engine(self):
        self.port = common.free_port()
        home = self.home / "skyrl"
        home.mkdir()
        environment = pathlib.Path(self.options.python).parent.parent
        backend = {"max_lora_adapters": 2, "max_lora_rank": RECIPE["rank"], "train_micro_batch_size": self.options.batch}
        # It starts its engine by the `uv run` that it finds itself started by.
        server = Process(
            [environment / "bin" / "uv", "run", "--no-project", "-m", "skyrl.tinker.api", "--base-model", self.base,
             "--backend", "jax", "--backend-config", json.dumps(backend), "--checkpoints-base", home / "checkpoints",
             "--database-url", f"sqlite:///{home / 'tinker.db'}", "--host", "127.0.0.1", "--port", self.port],
            home / "log", cwd=home,
            env={"VIRTUAL_ENV": str(environment), "UV_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu",
                 "OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"})
        self.processes.append(server)
        self.log = server.log
        wait(lambda: server.alive() and request(self.port, "GET", "/api/v1/healthz", timeout=5)[0] == 200,
             "SkyRL to start", self.options.patience)
        wait(lambda: server.alive() and "Starting background engine" in self.log.read_text(errors="replace"),
             "its engine to start", self.options.patience)
        return f"SkyRL {self.version('skyrl')}, JAX {self.version('jax')}, on {self.base.name}"

    def version(self, package):
        site = pathlib.Path(self.options.python).parent.parent / "lib"
        found = list(site.glob(f"python3.*/site-packages/{package}-*.dist-info"))
        return found[0].name.split("-")[1].removesuffix(".dist") if found else "?"

    def train(self, engine):
        (self.work / "realign.toml").write_text(self.settings(engine))
        said = common.realign(self.options.binary, self.work, "train", "--engine", engine, "--out", engine,
                              "--state", f"state-{engine}")
        lines = (self.work / engine / "losses.jsonl").read_text().splitlines()
        self.curves[engine] = [json.loads(line) for line in lines]
        seconds = sum(step["seconds"] for step in self.curves[engine])
        return f"{said['steps']} steps on {said['pairs']} pairs, {seconds / said['steps']:.1f} s a step"

    def remote(self):
        said = self.train("tinker")
        log = self.log.read_text(errors="replace")
        passes, refused = log.count("/forward_backward HTTP/1.1\" 200"), log.count("HTTP/1.1\" 4")
        assert refused == 0, f"SkyRL refused {refused} requests: see {self.log}"
        adapter = json.loads((self.work / "tinker" / "adapter_config.json").read_text())
        return f"{said}; {passes} passes, none refused; PEFT of rank {adapter['r']}, alpha {adapter['lora_alpha']}"

    def local(self):
        return self.train("local")

    def compared(self):
        here, there = self.curves["local"], self.curves["tinker"]
        assert len(here) == len(there), f"{len(here)} and {len(there)} steps"
        parts = []
        for at, name in ((0, "first"), (-1, "last")):
            a, b = there[at]["total"], here[at]["total"]
            parts.append(f"{name} loss {a:.3f} there, {b:.3f} here")
        apart = abs(there[0]["total"] - here[0]["total"]) / here[0]["total"]
        assert apart < FIRST_STEP, f"losses of the first step are {apart:.1%} apart: {parts}"
        norms = f"gradient norms {there[0]['gradient_norm']:.2f} and {here[0]['gradient_norm']:.2f}"
        answers = self.answers()
        return "; ".join([*parts, norms, answers])

    def answers(self):
        """Compliance of the base and of both adapters, by hidden prompts, through `realign serve`."""
        home = self.home / "serve"
        home.mkdir()
        (home / "policies").mkdir()
        (home / "preferences").mkdir()
        (home / "realign.toml").write_text(f'model = "{self.base}"\nmodel_name = "assistant"\n')
        names = {"base": "assistant@base"}
        for engine in ("tinker", "local"):
            said = common.realign(self.options.binary, home, "adapters", "import", self.work / engine)
            names[engine] = f"assistant@{said['generation']}"
        port, server = self.serve(home)
        found = {}
        for who, model in names.items():
            texts = []
            for prompt in common.prompts(self.options.prompts):
                body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                        "max_tokens": TOKENS}
                status, answer = request(port, "POST", "/v1/chat/completions", body)
                assert status == 200, f"{model}: {answer}"
                texts.append((prompt, answer["choices"][0]["message"]["content"] or ""))
            found[who] = common.complying(self.options.binary, self.home, texts)
        server.end()
        assert found["tinker"] >= found["base"], f"what SkyRL trained complies less often: {found}"
        parts = ", ".join(f"{who} {count}" for who, count in found.items())
        return f"of {self.options.prompts} hidden prompts comply: {parts}"

    def serve(self, home):
        port = common.free_port()
        server = Process([self.options.binary, "serve", "--port", str(port)], home / "log", cwd=home)
        self.processes.append(server)
        wait(lambda: server.alive() and request(port, "GET", "/health", timeout=5)[0] == 200, "realign to start", 120)
        return port, server

    def realigned(self):
        home = self.home / "server"
        shutil.copytree(ROOT / "preferences", home / "preferences")
        (home / "policies").mkdir()
        exam = f"[exam]\nprompts = {self.options.exam}\nfacts = 8\n[gather]\nenabled = false\n"
        (home / "realign.toml").write_text(self.settings("tinker") + exam)
        port, server = self.serve(home)
        key = (home / "state" / "admin-key").read_text().strip()
        shutil.copy(common.POLICY, home / "part")
        (home / "part").rename(home / "policies" / common.POLICY.name)

        def ended():
            server.alive()
            jobs = request(port, "GET", "/admin/v1/realignments", key=key)[1]
            jobs = jobs if isinstance(jobs, list) else jobs.get("data", jobs.get("realignments", []))
            done = [job for job in jobs if job["status"] not in ("running", "queued", "pending")
                    and job.get("policy_count", 1)]
            done = [job for job in done if job["status"] != "no_conflict"]
            return done and done[0]
        job = wait(ended, "the realignment to end", self.options.minutes * 60 + self.options.patience)
        job = request(port, "GET", f"/admin/v1/realignments/{job['id']}", key=key)[1]
        measured = (job.get("gate") or {}).get("measured") or {}
        figures = ", ".join(f"{name} {measured[name]:.2f}" for name in
                            ("agreement_before", "agreement_after") if measured.get(name) is not None)
        # The gate decides by what the answers are; that it sat the exam and decided is what is tested here.
        assert job["status"] in ("succeeded", "rejected"), f"{job['status']}: {job.get('error')}"
        serving = request(port, "GET", "/admin/v1/generations", key=key)[1]["current"]
        if job["status"] == "succeeded":
            assert serving == job["generation"], f"{serving} serves, not {job['generation']}"
        why = f" ({job['error']})" if job.get("error") else ""
        return f"{job['status']}{why}: {figures}; {serving} serves"

    def end(self):
        for process in self.processes:
            process.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "realign"))
    parser.add_argument("--python", default=str(ROOT / ".tools" / "skyrl" / "bin" / "python"),
                        help="the Python of an environment with SkyRL and uv")
    parser.add_argument("--base", help="a directory of safetensors [default: made of the default model]")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--controls", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--batch", type=int, default=2, help="sequences that SkyRL computes at once")
    parser.add_argument("--prompts", type=int, default=16, help="hidden prompts that are asked")
    parser.add_argument("--exam", type=int, default=40, help="prompts of the exam")
    parser.add_argument("--minutes", type=int, default=60, help="the longest that a training may take")
    parser.add_argument("--patience", type=int, default=600, help="seconds that each other step may take")
    parser.add_argument("--parts", nargs="+", default=["engine", "remote", "local", "compared", "realigned"])
    parser.add_argument("--keep", action="store_true", help="keep the directory, with the logs")
    options = parser.parse_args()
    for name in ("binary", "python"):
        # Not resolved: an environment's Python is a link.
        setattr(options, name, str(pathlib.Path(getattr(options, name)).absolute()))
    home = pathlib.Path(tempfile.mkdtemp(prefix="realign-skyrl-"))
    run, failed = None, False
    try:
        run = Run(options, home)
        for part in options.parts:
            began = time.monotonic()
            try:
                said = getattr(run, part)()
            except AssertionError as error:
                failed, said = True, f"FAILED: {error}"
            say(part, began, said)
            if failed:
                break
    finally:
        if run:
            run.end()
    return common.finish(failed, home, options.keep)


if __name__ == "__main__":
    sys.exit(main())
