#!/usr/bin/env python3
"""Drives the clients that people use against a server of its own, and prints a table.

usage: run.py BINARY MODEL [CLIENT...]     all clients, or those named
       run.py --lock [CLIENT...]           resolves the pinned versions again and writes locks/

Installs each client into a directory of its own in .clients. Exits 1 if a check fails, and 2 if a
client cannot be installed or the server does not start.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE.parents[1] / ".clients"
sys.path.insert(0, str(HERE.parent / "python"))

from clients import NODE, PYTHON  # noqa: E402
from with_server import SETTINGS, NoServer, serving  # noqa: E402

ROOM = {"REALIGN_ENGINE__MAX_MODEL_LEN": "2048", "REALIGN_ENGINE__KV_CACHE_MB": "256"}
# lm-eval reads the chat template and counts tokens here.
SERVED = SETTINGS | ROOM | {"REALIGN_SERVER__TOKENIZER_INFO": "true"}
# A client that hangs is a failure, not an endless run. A busy machine may need more.
LIMIT_SECONDS = int(os.environ.get("REALIGN_CLIENT_SECONDS", "900"))
# No client calls home, and none takes a key or an address from the surroundings.
QUIET = {
    "ANONYMIZED_TELEMETRY": "false",
    "LANGSMITH_TRACING": "false",
    "HF_HOME": str(INSTALLED / "hf"),
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OPENAI_API_KEY": "none",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONWARNINGS": "ignore",
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    "AI_SDK_LOG_WARNINGS": "false",
}


def wanted(name):
    """What pip is given for a client."""
    file = HERE / "locks" / f"{name}.txt"
    return PYTHON[name][1] + (["-c", str(file)] if file.exists() else [])


def stamp(name):
    """What an environment has to be made from to be up to date."""
    file = HERE / "locks" / f"{name}.txt"
    return "\n".join(PYTHON[name][1]) + (file.read_text() if file.exists() else "")


def python_of(name):
    """The interpreter of a client's environment, which is made if it is missing or outdated."""
    home = INSTALLED / name
    python, ready = home / "bin" / "python", home / ".ready"
    if not (ready.exists() and ready.read_text() == stamp(name)):
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *wanted(name)], check=True)
        ready.write_text(stamp(name))
    return python


def node_modules():
    """The directory with Node's clients."""
    home = INSTALLED / "node"
    home.mkdir(parents=True, exist_ok=True)
    files = {name: (HERE / name).read_text() for name in ("package.json", "package-lock.json")}
    ready, stamp = home / ".ready", "".join(files.values())
    if not (ready.exists() and ready.read_text() == stamp):
        for name, text in files.items():
            (home / name).write_text(text)
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=home, check=True)
        ready.write_text(stamp)
    return home


def lock(names):
    """Writes what pip chose now for the pinned versions."""
    (HERE / "locks").mkdir(exist_ok=True)
    for name in names:
        (HERE / "locks" / f"{name}.txt").unlink(missing_ok=True)
        pip = [python_of(name), "-m", "pip", "--disable-pip-version-check", "freeze"]
        frozen = subprocess.run(pip, check=True, capture_output=True, text=True).stdout
        (HERE / "locks" / f"{name}.txt").write_text(frozen)
        (INSTALLED / name / ".ready").write_text(stamp(name))


def prepared(name):
    """A client's version, and the command that drives it."""
    if name in NODE:
        script, package = NODE[name]
        home = node_modules()
        # Modules are looked for above the script, so it runs from beside them.
        for file in HERE.glob("*.mjs"):
            (home / file.name).write_text(file.read_text())
        about = json.loads((home / "node_modules" / package / "package.json").read_text())
        return about["version"], ["node", home / script]
    script, packages = PYTHON[name]
    return packages[0].split("==")[1], [python_of(name), HERE / script]


def driven(name, command, found):
    """The client's checks with the error of each, which is None where it holds."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    began = time.monotonic()
    try:
        ran = subprocess.run(
            command,
            env=environment | QUIET | found,
            cwd=INSTALLED,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        out, err, code = ran.stdout, ran.stderr, ran.returncode
    except subprocess.TimeoutExpired as late:
        out, err, code = (late.stdout or b"").decode(), f"not done in {LIMIT_SECONDS} s", -1
    said = [json.loads(line) for line in out.splitlines() if line.startswith('{"check"')]
    checks = {line["check"]: line["error"] for line in said}
    if code != 0 or not checks:
        checks[f"{name} exits with {code}"] = (out + err)[-4000:]
    return checks, time.monotonic() - began


def main(arguments):
    everything = [*PYTHON, *NODE]
    if arguments[:1] == ["--lock"]:
        lock(arguments[1:] or PYTHON)
        return 0
    unknown = [name for name in arguments[2:] if name not in everything]
    if len(arguments) < 2 or unknown:
        print(f"{__doc__}\nclients: {', '.join(everything)}", file=sys.stderr)
        return 2
    binary, model, chosen = arguments[0], arguments[1], arguments[2:] or everything
    INSTALLED.mkdir(exist_ok=True)
    try:
        commands = {name: prepared(name) for name in chosen}
        rows = drive_all(binary, model, commands)
    except (subprocess.CalledProcessError, NoServer) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{'client':<16}{'version':<12}{'checks':>6}{'failed':>8}{'s':>6}  result")
    for name, version, checks, seconds in rows:
        failed = sum(error is not None for error in checks.values())
        result = "FAIL" if failed else "pass"
        print(f"{name:<16}{version:<12}{len(checks):>6}{failed:>8}{seconds:>6.0f}  {result}")
    return int(any(error for _, _, checks, _ in rows for error in checks.values()))


def drive_all(binary, model, commands):
    rows = []
    with serving(binary, model, SERVED) as (server, found):
        for name, (version, command) in commands.items():
            checks, seconds = driven(name, command, found)
            if server.poll() is not None:
                checks["the server lives"] = "it died: " + Path(found["REALIGN_SERVER_LOG"]).read_text()
            rows.append((name, version, checks, seconds))
            for check, error in checks.items():
                print(f"{name}: {check}: {'ok' if error is None else 'FAILED'}", flush=True)
                if error:
                    print("    " + error.strip().replace("\n", "\n    "), flush=True)
            if server.poll() is not None:
                break
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
