"""A server of its own for a measurement, and requests to it. Traffic goes to 127.0.0.1 only."""
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.request

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")


def ask(url, body):
    """One chat completion, whole."""
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def metric(url, name):
    """A metric without labels."""
    with urllib.request.urlopen(url + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))


def wait(url):
    for _ in range(600):
        try:
            if urllib.request.urlopen(url + "/ready", timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} is not ready after a minute")


@contextlib.contextmanager
def served(binary, model, settings):
    """The URL of a server with these lines of `[engine]`, without policies."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        pathlib.Path(directory, "realign.toml").write_text(f'model = "{model}"\n[engine]\n{settings}\n')
        for name in ("policies", "preferences"):
            pathlib.Path(directory, name).mkdir()
        command = [binary, "serve", "--port", str(port)]
        server = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            wait(url)
            yield url
        finally:
            server.terminate()
            server.wait(60)
