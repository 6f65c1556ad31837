"""What the scripts for other engines share: processes, requests, the base model, a judge. Standard library."""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
POLICY = ROOT / "demo" / "no-medication-doses.yaml"
HIDDEN = ROOT / "benches" / "policies" / "medication" / "hidden" / "heldout.jsonl"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def say(part, began, text):
    print(f"{part:<12} {time.monotonic() - began:5.0f} s  {text}", flush=True)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(until, what, patience):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            found = until()
            if found:
                return found
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"waited {patience} s for {what}")


class Process:
    """A process and what it starts, as a process group of its own, with a log."""

    def __init__(self, command, log, cwd=None, env=None):
        self.log = pathlib.Path(log)
        with open(self.log, "ab") as file:
            self.process = subprocess.Popen(
                [str(part) for part in command], cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, start_new_session=True, preexec_fn=lambda: os.nice(5))

    def alive(self):
        if self.process.poll() is not None:
            raise AssertionError(f"a process ended with {self.process.returncode}: see {self.log}")
        return True

    def end(self, how=signal.SIGTERM, patience=30):
        """Ends this process's own group, which its pid names."""
        for signum in (how, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, signum)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            if signum == signal.SIGKILL:
                return


def request(port, method, path, body=None, key=None, timeout=120):
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        try:
            return answer.status, json.loads(text or b"null")
        except ValueError:
            return answer.status, text.decode(errors="replace")
    finally:
        connection.close()


def realign(binary, home, *arguments):
    done = subprocess.run([str(binary), *map(str, arguments), "--json", "-q"], cwd=home, capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise AssertionError(f"realign {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def base_model(python, given, home):
    """A directory of safetensors: the given one, or one that is made of the default model."""
    if given:
        return pathlib.Path(given).absolute()
    out = home / "base"
    script = pathlib.Path(__file__).with_name("gguf_to_hf.py")
    done = subprocess.run(["nice", "-n", "5", str(python), str(script), str(MODEL), str(out)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"no base model was made of {MODEL}: {done.stderr[-600:]}")
    return out


def prompts(count):
    """Prompts that no training sees, the first ones."""
    with open(HIDDEN, encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines][:count]


def complying(binary, home, answers):
    """How many of these answers to prompts violate no rule of the demo's policy."""
    judge = home / "judge"
    (judge / "policies").mkdir(parents=True, exist_ok=True)
    shutil.copy(POLICY, judge / "policies")
    with open(judge / "answers.jsonl", "w", encoding="utf-8") as file:
        for prompt, answer in answers:
            file.write(json.dumps({"prompt": prompt, "chosen": answer or "-", "rejected": "...."}) + "\n")
    # A pair is retained if what was chosen complies.
    return realign(binary, judge, "triage", "--data", "answers.jsonl")["counts"]["retain"]


def finish(failed, home, keep):
    if failed or keep:
        print(f"logs and files: {home}", file=sys.stderr)
    else:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if failed else 0
