#!/usr/bin/env python3
"""Judge the traffic of another server by realign's policies, before you trust realign with it.

  examples/python/shadow.py --upstream http://127.0.0.1:8000 --realign http://127.0.0.1:8080 --port 9000

Clients talk to port 9000. Every request goes to the other server (vLLM, Ollama, llama.cpp, realign) unchanged, and its answer comes back
unchanged, streamed if it was streamed. Answers of /v1/chat/completions are then shown to realign, whose policies say which rule they break.
What a client gets never waits for that. At the end, and every --every seconds, it prints a table of rules.

The operators' key is read from REALIGN_ADMIN_KEY; a server keeps it in the file state/admin-key. Only the Python standard library is needed.
"""
import argparse
import collections
import http.client
import json
import os
import queue
import signal
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Headers that concern one connection only, and those that are set anew.
OF_ONE_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "accept-encoding"}
WAITING = 1000  # answers that wait to be judged; more are not judged, and counted


class Judge:
    """Asks realign about finished answers, one after another, and counts what it says."""

    def __init__(self, url, key):
        self.url, self.key = url.rstrip("/") + "/admin/v1/policies/explain", key
        self.waiting = queue.Queue(WAITING)
        self.judged = self.missed = self.failed = 0
        self.rules = collections.defaultdict(collections.Counter)
        self.example = {}
        threading.Thread(target=self.work, daemon=True).start()

    def add(self, prompt, response):
        try:
            self.waiting.put_nowait((prompt, response))
        except queue.Full:
            self.missed += 1

    def work(self):
        while True:
            prompt, response = self.waiting.get()
            try:
                self.ask(prompt, response)
            except urllib.error.HTTPError as error:
                self.failed += 1
                print(f"shadow: realign did not judge an answer: {error.code} {error.read(500).decode('utf-8', 'replace')}", file=sys.stderr)
            except (OSError, ValueError, KeyError) as error:
                self.failed += 1
                print(f"shadow: realign did not judge an answer: {error}", file=sys.stderr)
            finally:
                self.waiting.task_done()

    def ask(self, prompt, response):
        body = json.dumps({"prompt": prompt, "response": response}).encode()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url, body, headers), timeout=60) as answer:
            rules = json.load(answer)["rules"]
        self.judged += 1
        for rule in rules:
            name = f"{rule['policy']}:{rule['rule']}"
            self.rules[name][rule["verdict"]] += 1
            if rule["verdict"] == "violates":
                self.example.setdefault(name, (prompt, response))

    def table(self):
        lines = [f"{self.judged} answers judged, {self.failed} could not be judged, {self.missed} came too fast"]
        for name, counts in sorted(self.rules.items()):
            of_them = counts["violates"] + counts["complies"]
            lines.append(f"  {name}: {counts['violates']} of {of_them} answers that it is about violate it")
            if name in self.example:
                prompt, response = self.example[name]
                lines.append(f"    for example {prompt[:60]!r}: {response[:90]!r}")
        return "\n".join(lines)


def text_of(content):
    """A message's text: a string, or parts of which only texts count."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""


def prompt_of(request):
    """The last user message."""
    users = [message for message in request.get("messages", []) if message.get("role") == "user"]
    return text_of(users[-1].get("content")) if users else ""


def answers_of(raw, streamed):
    """The text of each choice of an answer."""
    if not streamed:
        return [text_of(choice["message"].get("content")) for choice in json.loads(raw).get("choices", [])]
    texts = collections.defaultdict(str)
    for line in raw.decode("utf-8", "replace").splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            for choice in json.loads(line[6:]).get("choices", []):
                texts[choice["index"]] += (choice.get("delta") or {}).get("content") or ""
    return list(texts.values())


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = judge = None

    def forward(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        to = urllib.parse.urlsplit(self.upstream)
        make = http.client.HTTPSConnection if to.scheme == "https" else http.client.HTTPConnection
        connection = make(to.netloc, timeout=600)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_ONE_HOP}
        try:
            connection.request(self.command, to.path.rstrip("/") + self.path, body, headers)
            answer = connection.getresponse()
        except OSError as error:
            self.send_error(502, f"{self.upstream} does not answer: {error}")
            return
        self.pass_on(answer, body)
        connection.close()

    def pass_on(self, answer, body):
        """Sends the answer piece by piece as it comes. It ends for the client when it waits to be judged."""
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in OF_ONE_HOP:
                self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        pieces = []
        while piece := answer.read1(65536):
            pieces.append(piece)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if self.command == "POST" and self.path.split("?")[0].endswith("/chat/completions") and answer.status == 200:
            self.show(body, b"".join(pieces), "event-stream" in (answer.getheader("content-type") or ""))
        self.wfile.write(b"0\r\n\r\n")

    def show(self, body, raw, streamed):
        try:
            prompt = prompt_of(json.loads(body))
            for response in answers_of(raw, streamed):
                self.judge.add(prompt, response)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.judge.failed += 1
            print(f"shadow: an answer could not be read: {error}", file=sys.stderr)

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = forward

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, metavar="URL", help="the server that answers")
    parser.add_argument("--realign", default="http://127.0.0.1:8080", metavar="URL")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--every", type=float, default=30, metavar="SECONDS")
    args = parser.parse_args()
    key = os.environ.get("REALIGN_ADMIN_KEY") or sys.exit("set REALIGN_ADMIN_KEY to the operators' key, for example to what the file state/admin-key holds")
    judge = Judge(args.realign, key)
    Proxy.upstream, Proxy.judge = args.upstream, judge
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"shadow: clients talk to http://127.0.0.1:{server.server_port}/v1, {args.upstream} answers", flush=True)
    stop = threading.Event()
    # Also where SIGINT is ignored at the start, as in the background of a shell.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(args.every):
        print(judge.table(), flush=True)
    judge.waiting.join()
    print(judge.table())


if __name__ == "__main__":
    main()
