#!/usr/bin/env python3
"""Renders chat templates with transformers and writes what they give as golden text.

    python3 -m venv venv && venv/bin/pip install transformers==5.24.0 jinja2==3.1.6
    venv/bin/python scripts/make-template-golden.py TEMPLATES [OUT]

TEMPLATES is a folder of *.jinja files: tests/golden/templates/sources itself, or
vendor/llama.cpp/models/templates of the source distribution of llama-cpp-python (PyPI), for templates
whose licence keeps them out of this repository. OUT is the file to write, by default
tests/golden/templates/golden.json. To test others:

    REALIGN_TEMPLATES=TEMPLATES REALIGN_TEMPLATES_GOLDEN=OUT cargo test -p realign-model --lib chat::golden

Texts are lists of lines, and a line stands once in the file. Where a template raises, the cell has the
exception's class and message.
"""

import datetime
import json
import pathlib
import sys

import transformers
import transformers.utils.chat_template_utils as utils

HERE = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = HERE / "tests/golden/templates"
NOW = datetime.datetime(2026, 3, 7, 9, 5, 2)


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(*NOW.timetuple()[:6])


class FixedDate(datetime.date):
    @classmethod
    def today(cls):
        return cls(*NOW.timetuple()[:3])


def render(template, conversation):
    options = dict(conversation.get("options", {}))
    kwargs = {**conversation.get("variables", {})}
    # Every conversation gets the same two special tokens.
    text, _ = utils.render_jinja_template(
        conversations=[normalised(conversation["messages"])],
        tools=conversation.get("tools"),
        documents=None,
        chat_template=template,
        continue_final_message=options.get("continue_final_message", False),
        add_generation_prompt=options.get("add_generation_prompt", False),
        bos_token="<s>",
        eos_token="</s>",
        **kwargs,
    )
    return text[0]


def normalised(messages):
    return utils._normalize_chat_messages(messages)


def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    utils.datetime = FixedClock
    folder = pathlib.Path(sys.argv[1])
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else GOLDEN / "golden.json"
    conversations = json.loads((GOLDEN / "conversations.json").read_text())
    lines, places, cells = [], {}, {}

    def place(line):
        if line not in places:
            places[line] = len(lines)
            lines.append(line)
        return places[line]

    raised = 0
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_bytes().decode()
        row = {}
        for name, conversation in conversations.items():
            try:
                text = render(template, json.loads(json.dumps(conversation)))
                row[name] = [place(line) for line in text.split("\n")]
            except Exception as error:  # whatever a template raises
                row[name] = {"raises": type(error).__name__, "message": str(error)}
                raised += 1
        cells[path.stem] = row
    parts = [f'"transformers": {json.dumps(transformers.__version__)}']
    body = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    parts.append(f'"lines": [\n{body}\n]')
    rows = []
    for name, row in cells.items():
        inner = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(cell, separators=(',', ':'), ensure_ascii=False)}"
            for key, cell in row.items()
        )
        rows.append(f"{json.dumps(name)}: {{\n{inner}\n}}")
    parts.append('"cells": {\n' + ",\n".join(rows) + "\n}")
    out.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    total = sum(map(len, cells.values()))
    print(f"{len(cells)} templates, {total} cells, {raised} raise, {out.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
