"""What the scripts of clients share: where the server is, and how checks are reported.

A check is a function without arguments, or a coroutine function, that raises if the client and the
server do not understand one another. `report` runs them and prints a line of JSON for each.
"""

import asyncio
import inspect
import json
import os
import sys
import traceback

URL = os.environ["REALIGN_BASE_URL"]
ROOT = URL.removesuffix("/v1")
MODEL = os.environ["REALIGN_MODEL"]
HELLO = [{"role": "user", "content": "Say hello."}]

CITY = {"type": "string", "enum": ["Oslo", "Rome", "Lima"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def expect(holds, why):
    if not holds:
        raise AssertionError(why)


def refused(kind, call, *words):
    """The call raises the client's error of this kind, and the message has the words."""
    try:
        call()
    except kind as error:
        for word in words:
            expect(word in str(error), f"{word!r} is not in {str(error)!r}")
        return error
    raise AssertionError(f"no {kind.__name__}")


def is_weather(arguments):
    """Whether they are what the function's schema allows."""
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    expect(given.get("city") in CITY["enum"], f"arguments {given}")
    expect(given.get("days") in range(1, 8), f"arguments {given}")
    return given


def say(name, error=None):
    # On a line of its own, whatever a client has written before.
    print("\n" + json.dumps({"check": name, "error": error}), flush=True)


def brief(error):
    """Our line that failed, and the error that it failed with."""
    here = os.path.dirname(__file__)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(here) and frame.filename != __file__]
    if isinstance(error, BaseExceptionGroup):
        return "".join(brief(part) for part in error.exceptions)
    return "".join(traceback.format_list(ours)) + "".join(traceback.format_exception_only(error))


def report(checks):
    """Runs the checks, or those that the arguments name."""
    only = sys.argv[1:]
    for check in checks:
        if only and check.__name__ not in only:
            continue
        try:
            asyncio.run(check()) if inspect.iscoroutinefunction(check) else check()
            say(check.__name__)
        except Exception as error:
            say(check.__name__, brief(error))
