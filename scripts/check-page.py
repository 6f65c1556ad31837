#!/usr/bin/env python3
"""Tests the operators' page in headless Chromium against a real server, and takes screenshots.

`make page` runs this script. It needs Chromium (Debian package `chromium`) and the default model. It uses
only the standard library: a small WebSocket client controls the browser through its DevTools protocol.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEY = "page-check"
MARKUP = "<img src=x onerror=document.title='broken'> & <b>bold</b>"
CONFIG = """
model = {model!r}
model_name = "assistant"
[server]
admin_key = "{key}"
[train]
max_pairs = {pairs}
controls = {pairs}
[gate]
max_prompts = {prompts}
max_tokens = 24
# A few pairs train little: every candidate that is not broken may serve.
min_prompts = 1
min_compliance = 0.0
max_control_diverted = 1.0
[exam]
prompts = {exam}
facts = 6
"""


# How long anything may take; a busy machine needs more.
PATIENCE = int(os.environ.get("CHECK_PAGE_SECONDS", "150"))


def wait(what, ask, seconds=PATIENCE):
    """Call `ask` until its result is true, and return that result."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = ask()
        if found:
            return found
        time.sleep(0.2)
    raise SystemExit(f"check-page: still waiting for {what} after {seconds} s")


def check(what, holds):
    print(("ok    " if holds else "FAILED ") + what)
    if not holds:
        raise SystemExit(1)


class Browser:
    """A page in Chromium, controlled through the DevTools protocol."""

    def __init__(self, profile, url):
        binary = shutil.which("chromium") or shutil.which("chromium-browser")
        if not binary:
            raise SystemExit("check-page: Chromium is missing; install the package `chromium`")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen([binary, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = pathlib.Path(profile, "DevToolsActivePort")
            port = wait("Chromium", lambda: port_file.exists() and port_file.read_text().split("\n")[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = json.load(answer)
            self.connect(next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page"))
            self.last_id, self.problems = 0, []
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.call("Emulation.setDeviceMetricsOverride", width=1280, height=1000, deviceScaleFactor=1, mobile=False)
            self.call("Page.navigate", url=url)
        except BaseException:
            self.close()
            raise

    def connect(self, url):
        host, path = url.removeprefix("ws://").split("/", 1)
        name, port = host.split(":")
        self.socket = socket.create_connection((name, int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.exactly(1)
        assert b" 101 " in head.split(b"\r\n")[0], head

    def exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise SystemExit("check-page: Chromium closed the connection")
            data += part
        return data

    def message(self):
        text = b""
        while True:
            first, second = self.exactly(2)
            length = second & 127
            if length == 126:
                length = struct.unpack(">H", self.exactly(2))[0]
            elif length == 127:
                length = struct.unpack(">Q", self.exactly(8))[0]
            text += self.exactly(length)
            if first & 128:
                return json.loads(text)

    def call(self, method, **params):
        self.last_id += 1
        data = json.dumps({"id": self.last_id, "method": method, "params": params}).encode()
        mask = os.urandom(4)
        size = struct.pack(">BBH", 129, 254, len(data)) if len(data) < 65536 else struct.pack(">BBQ", 129, 255, len(data))
        self.socket.sendall(size + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
        while True:
            answer = self.message()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(answer["params"]["exceptionDetails"])
            if answer.get("method") == "Log.entryAdded":
                self.problems.append(answer["params"]["entry"])
            if answer.get("id") == self.last_id:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector):
        return self.run(f"document.querySelector({selector!r}).innerText") or ""

    def visible(self, selector):
        return self.run(f"document.querySelector({selector!r})?.checkVisibility() ?? false")

    def screenshot(self, file, scheme, until=None):
        """The whole page, or what of it is above the lower edge of an element."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        time.sleep(0.3)
        clip = {}
        if until:
            edge = self.run(f"document.querySelector({until!r}).getBoundingClientRect().bottom + scrollY + 18")
            width = self.run("document.documentElement.clientWidth")
            clip = {"clip": {"x": 0, "y": 0, "width": width, "height": edge, "scale": 1}}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, **clip)
        file.write_bytes(base64.b64decode(shot["data"]))
        print(f"      {file}")

    def close(self):
        self.process.kill()
        self.process.wait()


class Server:
    """A server with a copy of the example data and no policies."""

    def __init__(self, binary, folder, arguments):
        self.folder = pathlib.Path(folder)
        for name in ("policies", "preferences"):
            (self.folder / name).mkdir()
        for file in (ROOT / "preferences").glob("*.jsonl"):
            shutil.copy(file, self.folder / "preferences")
        model = str((ROOT / arguments.model).resolve())
        config = CONFIG.format(model=model, key=KEY, pairs=arguments.pairs, prompts=arguments.prompts, exam=arguments.prompts + 24)
        (self.folder / "realign.toml").write_text(config)
        log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen([binary, "serve", "--port", "0"], cwd=folder, stderr=log)
        self.url = wait("a listening server", self.address)

    def address(self):
        log = (self.folder / "log").read_text()
        if self.process.poll() is not None:
            raise SystemExit(f"check-page: the server exited\n{log}")
        return "listening: " in log and log.split("listening: ")[1].split("/v1")[0]

    def ask(self, path, body=None, method=None):
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def chat(self, prompt):
        return self.ask("/v1/chat/completions", {
            "model": "assistant", "max_tokens": 24, "temperature": 0, "messages": [{"role": "user", "content": prompt}]})

    def close(self):
        self.process.terminate()
        self.process.wait(60)


PROMPTS = ["How much ibuprofen should I take for a headache?", "What is the capital of France?",
           "How much paracetamol may an adult take a day?", "Name three colours."]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True, help="the realign binary")
    parser.add_argument("--out", required=True, help="directory for the screenshots")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--pairs", type=int, default=24, help="train.max_pairs; a small number keeps this short")
    parser.add_argument("--prompts", type=int, default=12, help="gate.max_prompts; the exam asks 24 more")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        server = Server(str(pathlib.Path(arguments.binary).resolve()), folder, arguments)
        try:
            browser = Browser(profile, server.url + "/")
            try:
                drive(server, browser, out)
            finally:
                browser.close()
        finally:
            server.close()


def ask(browser, prompt):
    """Ask the playground's prompt, and return the names of those that answered."""
    browser.run(f"document.querySelector('#play-prompt').value = {json.dumps(prompt)}; document.querySelector('#play-tokens').value = 40;"
                "document.querySelector('#play').requestSubmit()")
    wait("the playground's answers", lambda: "answered" in browser.text("#play-note"))
    return browser.run("[...document.querySelectorAll('#play-answers h3')].map(h => h.innerText)")


def playground(server, browser, out):
    judged = browser.text("#compliance").splitlines()[1]
    who = ask(browser, PROMPTS[0])
    check(f"base and current answer side by side {who}", len(who) == 2 and any("base" in w for w in who) and any("current" in w for w in who))
    check("each answer is judged", browser.run("[...document.querySelectorAll('#play-answers .verdicts .pill')].every(p => /violates|complies/.test(p.innerText))"))
    print("      " + " | ".join(browser.run("[...document.querySelectorAll('#play-answers .said')].map(s => s.innerText.slice(0, 90))")))
    # What the model says is up to it: the marks are tested with texts of this script.
    marks = browser.run(r"""(() => {
        const rule = {policy: "p", rule: "r", verdict: "violates", tests: [{path: "violates.response.any_phrase", subject: "response", holds: true,
            found: [{start: 6, end: 12, pattern: "20 mg", text: "20 mg "}]}]};
        const node = document.createElement("div");
        node.append(...annotated("\u{1F642} Take 20 mg now", deciding({rules: [rule]}), differing("\u{1F642} Take 20 mg now", "\u{1F642} Take some now")));
        return [...node.querySelectorAll("mark, ins")].map(n => n.tagName + ":" + n.textContent);
    })()""")
    check(f"places and differences are marked {marks}", "INS:20" in marks and any(m.startswith("MARK:") for m in marks) and not any("Take" in m for m in marks))
    check("playground answers are not live ones", browser.text("#compliance").splitlines()[1] == judged)
    browser.run("document.querySelector('#play-as').value = 'control'; document.querySelector('#play-as').dispatchEvent(new Event('change'))")
    check("a control needs no answer", not browser.visible("#play-save .of-example"))
    browser.run("document.querySelector('#play-as').value = 'example violates'; document.querySelector('#play-as').dispatchEvent(new Event('change'));"
                "document.querySelector('#play-save').requestSubmit()")
    wait("the changed policy", lambda: "doses.yaml" in browser.text("#play-extended"))
    check("the line of the example is shown", browser.text("#play-extended .line").startswith('- { prompt: "How much ibuprofen'))
    check("the changed file can be downloaded", "Download doses.yaml" in browser.text("#play-extended"))
    labelled = """[...document.querySelectorAll("input, select, textarea, button")].filter(e => e.checkVisibility()
        && !(e.labels && e.labels.length) && !e.innerText.trim() && !e.getAttribute("aria-label")).map(e => e.id || e.outerHTML)"""
    check(f"every control has a label {browser.run(labelled)}", not browser.run(labelled))
    wide = "[...document.querySelectorAll('.column')].filter(c => c.scrollWidth > c.clientWidth + 1).length"
    check("no answer is wider than its column", browser.run(wide) == 0)
    browser.screenshot(out / "playground.png", "light")
    browser.screenshot(out / "playground-dark.png", "dark")


def drive(server, browser, out):
    wait("the login", lambda: browser.visible("#login"))
    browser.screenshot(out / "login.png", "light")
    enter = "document.querySelector('#key').value = {!r}; document.querySelector('#login button').click()"
    browser.run(enter.format("wrong"))
    wait("the rejected key", lambda: "wrong" in browser.text("#login-error"))
    browser.problems.clear()  # Browsers log every 401.
    browser.run(enter.format(KEY))
    wait("the page", lambda: browser.visible("#page"))
    check("the key lives in this tab only", browser.run(f"sessionStorage.length == 1 && localStorage.length == 0 && !document.cookie"))
    check("the model is named", browser.text("#model") == "assistant")
    wait("the first check of the policies", lambda: "no conflict" in browser.text("#history"))
    browser.screenshot(out / "quiet-dark.png", "dark")

    policy = (ROOT / "demo/no-medication-doses.yaml").read_text()
    # Replaces the file's own description, to test that markup in it is shown as text.
    head, rules = policy.split("\nrules:", 1)
    # Training on a few pairs would not reach the demo's own bound, and this tests only the page.
    rules = re.sub(r"min_policy_agreement_gain: [0-9.]+", "min_policy_agreement_gain: 0.0", rules)
    rules = re.sub(r"min_compliance: [0-9.]+", "min_compliance: 0.0", rules)
    rules = re.sub(r"max_control_diverted: [0-9.]+", "max_control_diverted: 1.0", rules)
    keys = [line for line in head.splitlines() if line.startswith(("apiVersion:", "id:", "version:"))]
    (server.folder / "policies/doses.yaml").write_text("\n".join([*keys, f"description: {json.dumps(MARKUP)}"]) + "\nrules:" + rules)
    wait("a realignment", lambda: "realigning" in browser.text("#status"))
    wait("losses", lambda: browser.run("document.querySelectorAll('#realignment path.line').length > 1"))
    for prompt in PROMPTS:
        server.chat(prompt)
    seen = []
    while "realigning" in browser.text("#status"):
        # While the candidate sits its exam, operators can ask it too.
        if not seen and browser.run("[...document.querySelectorAll('#play-who label')].some(l => l.innerText.includes('candidate'))"):
            seen = ask(browser, PROMPTS[0])
            browser.screenshot(out / "candidate.png", "light")
            check(f"a candidate answers beside the base {seen}", any("candidate" in who for who in seen))
            break
        time.sleep(0.2)
    browser.screenshot(out / "running.png", "light")
    browser.screenshot(out / "running-dark.png", "dark")
    wait("its end", lambda: "realigning" not in browser.text("#status"))
    for prompt in PROMPTS:
        server.chat(prompt)
    wait("judgements", lambda: "8 answers judged" in browser.text("#compliance"))
    print("      " + browser.text("#compliance").replace("\n", " | ")[:200])
    check("markup in a policy is text", MARKUP in browser.text("#policies")
          and browser.run("document.images.length == 0 && document.title == 'realign'"))
    browser.screenshot(out / "done.png", "light")
    browser.screenshot(out / "done-dark.png", "dark")

    current = lambda: server.ask("/admin/v1/generations")["current"]
    trained = current()
    state = lambda: server.ask("/admin/v1/overview")["serving"]["alignment"]["state"]
    shows_state = lambda: f"Alignment\n{state()}" in browser.text("#serving") and state() in browser.text("#status")
    check("the trained generation serves", trained in browser.text("#generations") and "succeeded" in browser.text("#realignment"))
    wait("the measured state", shows_state)
    rule = "no-medication-doses:states-a-dose"
    wait("the exam, before and now", lambda: rule in browser.text("#exam") and "Before\tNow" in browser.text("#exam"))
    # What README.md shows (docs/page.png) of a realignment with more prompts.
    browser.screenshot(out / "page.png", "dark", until="section:has(#exam)")
    posted = time.time()
    browser.run("document.querySelector('#sit').click()")
    wait("the exam that was asked for", lambda: server.ask("/admin/v1/exam")["serving"]["sat_at"] >= int(posted))
    wait("the button", lambda: browser.run("!document.querySelector('#sit').disabled"))
    playground(server, browser, out)
    click = "document.querySelector('#rollback button').click()"
    browser.run(click)
    check("a rollback asks for confirmation", "Sure?" in browser.text("#rollback") and current() == trained)
    browser.run(click)
    wait("the rollback", lambda: current() != trained)
    wait("the state after it", shows_state)
    who = browser.text("#play-who")
    check(f"what served before is no candidate {who.split()}", "candidate" not in who and "previous" in who)
    (server.folder / "policies/broken.yaml").write_text("rules: [\n")
    wait("the banner", lambda: "broken.yaml" in browser.text("#banner"))
    browser.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=True)
    check("a narrow window does not scroll sideways", browser.run("document.documentElement.scrollWidth <= 420"))
    browser.screenshot(out / "narrow.png", "light")
    check(f"the browser reports no problems {browser.problems or ''}", not browser.problems)
    browser.run("document.querySelector('#forget').click()")
    wait("the login", lambda: browser.visible("#login"))
    browser.run(f"location.hash = '#key={KEY}'")
    wait("the page, by a link with the key", lambda: browser.visible("#page"))
    check("the address does not keep the key", browser.run("!location.href.includes('key=')"))


if __name__ == "__main__":
    sys.exit(main())
