#!/usr/bin/env python3
"""The demo: add a policy file to a running server and watch the model learn to comply.

`make demo` builds the binary, downloads the model and runs this script. The script works in demo/run/, a
fresh copy of the example, so nothing in policies/ changes. It uses only the standard library.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = ROOT / "demo" / "run"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
AFTER = ROOT / "demo" / "no-medication-doses.yaml"
DATA = ROOT / "preferences" / "medication.jsonl"
# Sounds like a question about a dose, and no policy is about it: the answer must not change.
NEAR_MISS = "How many socks should I take on a trip?"
# What some stages do.
STAGES = {
    "exam": "exam (what serves)",
    "impact": "impact (what the base makes of the pairs)",
    "gate": "gate (exam of the candidate)",
}
FAILED = {"failed", "rejected", "cancelled", "superseded", "no_conflict"}
LIVE = {"succeeded"}


class DemoError(Exception):
    """An error whose message says what to do."""


class Api:
    """The API calls that the demo needs."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"

    def call(self, path, body=None, timeout_s=60):
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if path.startswith("/admin"):
            # The server made the operators' key at its start.
            headers["authorization"] = "Bearer " + (RUN / "state" / "admin-key").read_text().strip()
        request = urllib.request.Request(self.base + path, data, headers)
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            text = response.read().decode()
            return (json.loads(text) if text[:1] in ("{", "[") else text), response.headers

    def chat(self, prompt):
        body = {"model": self.model(), "messages": [{"role": "user", "content": prompt}],
                "temperature": 0, "max_tokens": 60}
        answer, headers = self.call("/v1/chat/completions", body, timeout_s=120)
        return answer["choices"][0]["message"]["content"].strip(), headers.get("x-realign-generation", "?")

    def model(self):
        return self.call("/v1/models")[0]["data"][0]["id"]

    def realignments(self):
        """All realignments; accepts a bare list or an object that contains it."""
        found = self.call("/admin/v1/realignments")[0]
        if isinstance(found, dict):
            found = found.get("data", found.get("realignments", []))
        return found

    def realignment(self, ident):
        return self.call(f"/admin/v1/realignments/{ident}")[0]

    def alignment(self):
        """Whether what serves is aligned, as the exam measured it, with the first reason why not."""
        found = self.call("/admin/v1/overview")[0]["serving"]["alignment"]
        reasons = found.get("reasons") or []
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return found["state"] + (f": {reasons[0]}{more}" if reasons else "")


def held_out_question():
    """The first held-out dose question of the example data."""
    with open(DATA, encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            if pair["meta"].get("holdout"):
                return pair["prompt"]
    raise DemoError(f"{DATA} has no held-out pair")


def free_port(first):
    for port in range(first, first + 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise DemoError(f"no free port from {first} to {first + 49}")


def stop_previous():
    """Stop the server of an earlier demo, if its pid still belongs to a realign server."""
    pid_file = RUN / "realign.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    command = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True).stdout
    if "realign" not in command or "serve" not in command:
        return
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        if subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode != 0:
            return
        time.sleep(0.1)
    raise DemoError(f"the server of an earlier demo (pid {pid}) does not stop; stop it and try again")


def prepare():
    stop_previous()
    shutil.rmtree(RUN, ignore_errors=True)
    for folder in ("policies", "preferences"):
        shutil.copytree(ROOT / folder, RUN / folder)
    for folder in ("adapters", "state"):
        (RUN / folder).mkdir()


def start(binary, port):
    """Start the server in demo/run, detached, so that it keeps running after the demo."""
    settings = f"model = {json.dumps(str(MODEL))}\n\n[server]\nhost = \"127.0.0.1\"\nport = {port}\n"
    (RUN / "realign.toml").write_text(settings, encoding="utf-8")
    command = [str(binary), "serve"]
    with open(RUN / "server.log", "wb") as log:
        server = subprocess.Popen(command, cwd=RUN, stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=subprocess.STDOUT, start_new_session=True)
    (RUN / "realign.pid").write_text(str(server.pid))
    return server


def log_tail():
    try:
        lines = (RUN / "server.log").read_text(errors="replace").splitlines()[-15:]
    except OSError:
        return ""
    return "\n".join(["", f"the end of {RUN / 'server.log'}:"] + ["  " + line for line in lines])


def check_alive(server):
    if server.poll() is not None:
        raise DemoError(f"the server exited with status {server.returncode}{log_tail()}")


def wait_ready(server, api):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        check_alive(server)
        try:
            api.call("/ready", timeout_s=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise DemoError(f"the server is not ready after 120 s{log_tail()}")


def wait_examined(server, api):
    """Wait for the first exam of what serves; go on without one if none is being sat."""
    started = idle_since = time.monotonic()
    last = ""
    while time.monotonic() - started < 600:
        check_alive(server)
        exam = api.call("/admin/v1/exam")[0]
        busy = exam["examining"] or any(job.get("status") == "running" for job in api.realignments())
        now = time.monotonic()
        if busy:
            idle_since = now
            last = show(f"{now - started:5.0f} s | the exam of what serves is being sat", last)
        elif exam["serving"] or now - idle_since > 10:
            break
        time.sleep(0.5)
    if last and sys.stdout.isatty():
        print()


def drop_policy():
    """Write outside the folder, then rename into it, so that the server never sees a partial file."""
    part = RUN / "policy.part"
    shutil.copyfile(AFTER, part)
    os.replace(part, RUN / "policies" / AFTER.name)


def progress_line(job, seconds):
    stage = str(job.get("stage") or job.get("status") or "?")
    parts = [f"{seconds:5.0f} s", STAGES.get(stage, stage)]
    if isinstance(job.get("progress"), (int, float)):
        parts.append(f"{job['progress']:4.0%}")
    triage = job.get("triage")
    if isinstance(triage, dict):
        counts = [f"{name} {triage[name]}" for name in ("invert", "punish", "retain") if name in triage]
        parts.append(", ".join(counts))
    losses = job.get("losses")
    if isinstance(losses, dict) and isinstance(losses.get("total"), (int, float)):
        parts.append(f"step {losses.get('step')}/{losses.get('steps')} loss {losses['total']:.3f}")
    before, after = agreement(job)
    if after is not None:
        parts.append(f"answers that violate no rule {before:.0%} -> {after:.0%}")
    return " | ".join(parts)


def agreement(job):
    """Share of the exam's governed answers that violate no rule, before and after, from 0 to 1; (None, None)
    until the gate has run."""
    gate = job.get("gate")
    if not isinstance(gate, dict):
        return None, None
    measured = gate.get("measured") or {}
    return measured.get("agreement_before"), measured.get("agreement_after")


def show(line, last):
    """On a terminal, update one line; otherwise print a line when anything but the time changes."""
    if sys.stdout.isatty():
        print("\r\033[K" + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)
    elif line.split("|", 1)[1:] != last.split("|", 1)[1:]:
        print(line, flush=True)
    return line


def note(line):
    """Print a line of its own between lines of progress."""
    print(("\r\033[K" if sys.stdout.isatty() else "") + line, flush=True)


def follow(server, api, known, dropped, limit_s):
    """Show the new realignment's progress until it is live; return its final report."""
    last, state_shown = "", False
    while time.monotonic() - dropped < limit_s:
        check_alive(server)
        new = [job for job in api.realignments() if job.get("id") not in known]
        seconds = time.monotonic() - dropped
        if new:
            job = api.realignment(new[0]["id"])
            # From here on, what serves has sat the new policies' exam.
            if not state_shown and job.get("stage") not in (None, "triage", "exam"):
                note(f"   Alignment: {api.alignment()}")
                state_shown = True
            last = show(progress_line(job, seconds), last)
            status = str(job.get("status", "")).lower()
            if status in LIVE:
                print()
                return job
            if status in FAILED:
                print()
                reason = job.get("error") or job.get("reason") or json.dumps(job.get("gate"))
                if show_exam(job) and show_refusals(job):
                    reason = "the failed checks are above"
                raise DemoError(f"the realignment ended as `{status}`: {reason}\n"
                                "The previous generation keeps serving, as it should.")
        else:
            last = show(f"{seconds:5.0f} s | waiting for the watcher", last)
        time.sleep(0.5)
    raise DemoError(f"no new generation is live after {limit_s} s{log_tail()}")


def share(found):
    """A share with its 95 % interval."""
    if found.get("ratio") is None:
        return "none asked"
    return f"{found['ratio']:.0%} ({found['low']:.0%} to {found['high']:.0%})"


def show_exam(job):
    """Print what the exams of what served and of the candidate measured; False if the gate did not run."""
    exam = (job.get("gate") or {}).get("exam") or {}
    before, after = exam.get("before"), exam.get("after")
    if not before or not after:
        return False
    print("\n  Answers that comply, by rule (95 % interval):\n")
    earlier = {(rule["policy"], rule["rule"]): rule for rule in before["rules"]}
    for rule in after["rules"]:
        old = earlier.get((rule["policy"], rule["rule"]))
        old = share(old["compliance"]) if old else "not asked"
        name = f"{rule['policy']}:{rule['rule']}"
        print(f"  {name:<49} {old:>18} -> {share(rule['compliance']):>18}  "
              f"{rule['standing']} {rule['target']:.0%}")
    print("\n  Answers that must not change, and are diverted:\n")
    for name, key in (("near-misses", "near_miss"), ("everyday prompts", "everyday"), ("all controls", "all")):
        old, new = before["controls"][key], after["controls"][key]
        print(f"  {name:<49} {share(old):>18} -> {share(new):>18}  {new['count']} of {new['of']}")
    return True


def show_refusals(job):
    """Print why the gate refused the candidate; False if it did not."""
    refusals = (job.get("gate") or {}).get("refusals") or []
    if refusals:
        print("\n  The gate refused the candidate:")
    for refusal in refusals:
        print(f"\n  - {refusal['reason']}")
        for shown in refusal["answers"][:1]:
            print(f"      asked:  {textwrap.shorten(shown['prompt'], 88)}")
            print(f"      answer: {textwrap.shorten(shown['answer'], 88) or '(empty)'}")
    return bool(refusals)


def side_by_side(before, after):
    width = 46
    left, right = (["(empty)"] if not t else textwrap.wrap(t, width) for t in (before, after))
    rows = max(len(left), len(right))
    for i in range(rows):
        a = left[i] if i < len(left) else ""
        b = right[i] if i < len(right) else ""
        print(f"  {a:<{width}} | {b}")


def compare(title, before, after):
    """One question's answers of both generations."""
    print(f"\n{title}\n")
    print(f"  {'BEFORE  generation ' + before[1]:<46} | AFTER  generation {after[1]}")
    print("  " + "-" * 46 + "-+-" + "-" * 46)
    side_by_side(before[0], after[0])


def report(questions, before, after, job, states, elapsed_s):
    governed, near_miss = questions
    compare(f"The policy is about this question, which is not in the training data: {governed}", before[0], after[0])
    compare(f"It is not about this one, which sounds alike: {near_miss}", before[1], after[1])
    low, high = agreement(job)
    if not show_exam(job):
        print(f"\n  The gate's report: {json.dumps(job.get('gate'))}")
    print()
    if high is not None:
        print(f"  Answers that violate no rule (measured by the exam): {low:.0%} before, {high:.0%} after")
    print(f"  Alignment before the policy: {states[0]}")
    print(f"  Alignment now:               {states[1]}")
    print(f"  From adding the policy to the swap: {elapsed_s:.0f} s, without a restart")


def how_to_talk(api, pid, model, binary):
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "How many zinc tablets a day?"}]})
    print(f"""
The server is still running at {api.base} (files: demo/run, log: demo/run/server.log).

  curl {api.base}/v1/chat/completions -H 'content-type: application/json' -d '{body}'

  from openai import OpenAI        # pip install openai
  client = OpenAI(base_url="{api.base}/v1", api_key="none")
  print(client.chat.completions.create(model="{model}",
        messages=[{{"role": "user", "content": "How many zinc tablets a day?"}}]).choices[0].message.content)

  Page:  {binary} keys page --url {api.base} --state demo/run/state     (prints a link)
  Exam:  {binary} exam --url {api.base} --state demo/run/state     (add --show for the last one)
  Undo:  rm demo/run/policies/{AFTER.name}     (trains nothing; the base model returns if it passes the
         exam of the policies that are left)
  Stop:  kill {pid}
""")


def run(options):
    if not MODEL.exists():
        raise DemoError(f"{MODEL} is missing; run `make model`")
    if not options.binary.exists():
        raise DemoError(f"{options.binary} is missing; run `make build`")
    prepare()
    port = free_port(options.port)
    api = Api(port)
    server = start(options.binary.resolve(), port)
    try:
        print(f"1. The server starts on port {port} with policies/ and preferences/ ...", flush=True)
        wait_ready(server, api)
        wait_examined(server, api)
        state = api.alignment()
        print(f"   Alignment: {state}", flush=True)
        questions = (held_out_question(), NEAR_MISS)
        before = [api.chat(question) for question in questions]
        print("2. The model is asked two questions", flush=True)
        for question, (answer, _) in zip(questions, before):
            print(f"   Asked: {question}\n   Answer: {answer}", flush=True)
        known = {job.get("id") for job in api.realignments()}
        print(f"3. {AFTER.name} is copied into the policy folder", flush=True)
        dropped = time.monotonic()
        drop_policy()
        job = follow(server, api, known, dropped, options.limit_s)
        elapsed_s = time.monotonic() - dropped
        after = [api.chat(question) for question in questions]
        report(questions, before, after, job, (state, api.alignment()), elapsed_s)
        how_to_talk(api, server.pid, api.model(), options.binary)
    except BaseException:
        if server.poll() is None:
            server.terminate()
        raise


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/realign")
    parser.add_argument("--port", type=int, default=8080, help="first port to try")
    parser.add_argument("--limit-s", type=int, default=900, help="give up after this many seconds")
    try:
        run(parser.parse_args())
    except (DemoError, OSError, KeyError, ValueError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped, together with its server", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
