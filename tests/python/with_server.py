#!/usr/bin/env python3
"""Runs a command beside a server of its own.

usage: with_server.py BINARY MODEL COMMAND...

The server listens on a free port of 127.0.0.1, in an empty directory, with a context of 256 tokens
so that requests without a limit end soon. The command finds it in $REALIGN_BASE_URL (ends in /v1)
and its model under the name in $REALIGN_MODEL; $REALIGN_ADMIN_KEY is the operators' key. Exits as the command does; 2 if the server does not
start, 3 if it died meanwhile.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")

NAME = "served"
SETTINGS = {
    "REALIGN_MODEL_NAME": NAME,
    "REALIGN_SERVER__PORT": "0",
    "REALIGN_ENGINE__MAX_MODEL_LEN": "256",
    "REALIGN_ENGINE__KV_CACHE_MB": "64",
    "REALIGN_LOG": "warn,realign::server=info",
}


class NoServer(Exception):
    """The server did not start, or died: its log."""


def listening(server, log):
    """The address, once the log tells it."""
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        with open(log) as lines:
            found = re.search(r"listening: (http://[^/]+)/v1", lines.read())
        if found:
            return found[1]
        time.sleep(0.05)
    return None


@contextlib.contextmanager
def serving(binary, model, settings=SETTINGS):
    """A server's process, and the variables that its clients need."""
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        environment = os.environ | settings | {"REALIGN_MODEL": os.path.abspath(model)}
        with open(log, "w") as out:
            command = [os.path.abspath(binary), "serve"]
            server = subprocess.Popen(command, cwd=directory, env=environment, stderr=out)
        try:
            address = listening(server, log)
            if address is None:
                raise NoServer("the server did not start:\n" + open(log).read())
            with open(os.path.join(directory, "state", "admin-key")) as key:
                admin_key = key.read().strip()
            yield server, {
                "REALIGN_BASE_URL": f"{address}/v1",
                "REALIGN_MODEL": settings["REALIGN_MODEL_NAME"],
                "REALIGN_ADMIN_KEY": admin_key,
                "REALIGN_SERVER_LOG": log,
            }
            if server.poll() is not None:
                print("the server died:\n" + open(log).read(), file=sys.stderr)
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def main(arguments):
    if len(arguments) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    binary, model, command = arguments[0], arguments[1], arguments[2:]
    try:
        with serving(binary, model) as (server, found):
            status = subprocess.run(command, env=os.environ | found).returncode
            return status if server.poll() is None else 3
    except NoServer as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
