#!/usr/bin/env python3
"""Ask a running server for answers under the schemas of the JSON Schema Test Suite, and validate them.

    git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite ../suite
    pip install jsonschema
    scripts/check-json-schema.py --url http://127.0.0.1:8080 ../suite/tests/draft2020-12

Each schema is sent without `strict`. A table says how many answers were valid, invalid with a notice, invalid without
one, cut by `max_tokens`, and how many schemas were refused with 400. The exit code is 1 if an answer was invalid and
nothing said so, or a status was neither 200 nor 400. The same without a server or a model, with answers drawn by chance
and `boon` as the validator:

    REALIGN_JSON_SCHEMA_SUITE=../suite/tests/draft2020-12 cargo test -p realign-server --lib tools::suite -- --nocapture
"""

import argparse
import collections
import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

import jsonschema

# A measurement or a test leaves nothing in the user's home.
os.environ.setdefault("REALIGN_ENGINE__WEIGHTS_CACHE", "off")


def ask(options, schema):
    """Status, headers and body of an answer."""
    body = {
        "messages": [{"role": "user", "content": "Give an example as JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
        "max_tokens": options.max_tokens, "seed": options.seed,
    }
    headers = {"content-type": "application/json"}
    if options.key:
        headers["authorization"] = f"Bearer {options.key}"
    request = urllib.request.Request(f"{options.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            return reply.status, reply.headers, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def kind(options, schema):
    """What became of a schema, and a word on it."""
    status, headers, answer = ask(options, schema)
    if status == 400:
        return "refused", answer["error"]["message"]
    if status != 200:
        return f"status {status}", json.dumps(answer)
    choice = answer["choices"][0]
    text = choice["message"]["content"] or ""
    if choice["finish_reason"] == "length":
        return "cut", text
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        return "valid", text
    except (ValueError, jsonschema.exceptions.ValidationError) as error:
        why = str(error).split("\n", 1)[0]
    except Exception as error:  # A reference that the validator cannot follow: its own kind of error.
        return "not validated", str(error).split("\n", 1)[0]
    said = choice.get("schema_notice") or headers.get("x-realign-schema-notice")
    return ("invalid with notice" if said else "invalid without notice"), f"{text}: {why}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="tests/draft2020-12 of a checkout of the suite")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", help="a client's API key")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.json"))
    if not files:
        parser.error(f"{options.folder} has no .json files")
    counts = collections.Counter()
    for file in files:
        for group in json.loads(file.read_text()):
            what, said = kind(options, group["schema"])
            counts[what] += 1
            print(f"{what}: {file.stem}: {group['description']}: {said}", flush=True)
    print()
    for what, count in counts.most_common():
        print(f"{count:5} {what}")
    bad = [what for what in counts if what == "invalid without notice" or what.startswith("status")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
