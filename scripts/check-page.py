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


def wait(what, ask, seconds=150):
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

    def screenshot(self, file, scheme):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        time.sleep(0.3)
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
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
    posted = time.time()
    browser.run("document.querySelector('#sit').click()")
    wait("the exam that was asked for", lambda: server.ask("/admin/v1/exam")["serving"]["sat_at"] >= int(posted))
    wait("the button", lambda: browser.run("!document.querySelector('#sit').disabled"))
    click = "document.querySelector('#rollback button').click()"
    browser.run(click)
    check("a rollback asks for confirmation", "Sure?" in browser.text("#rollback") and current() == trained)
    browser.run(click)
    wait("the rollback", lambda: current() != trained)
    wait("the state after it", shows_state)
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
