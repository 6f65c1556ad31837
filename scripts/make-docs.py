#!/usr/bin/env python3
"""Builds the documentation site with mdBook, and checks every link in it.

`make docs` runs this. The pages are the documents of the repository, laid out by docs/SUMMARY.md; the reference is
generated: settings from realign.example.toml, commands from the binary's own help, routes and metrics from the
sources, the schema from policies/policy.schema.json. Nothing of the site is loaded from elsewhere.
"""

import argparse
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Documents of the repository that are pages under another name, and those that are none.
PAGES = {"README.md": "README.md", "ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md",
         "policies/examples/README.md": "examples.md"}
NO_PAGE = {"docs/LOG.md", "docs/SUMMARY.md"}
ASSETS = {".png", ".svg"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def pages():
    found = dict(PAGES)
    for file in sorted((ROOT / "docs").glob("*.md")):
        name = f"docs/{file.name}"
        if name not in NO_PAGE:
            found[name] = file.name
    return found


def outside_code(text, change):
    """Apply `change` to the parts of a Markdown text that are not fenced code."""
    parts = re.split(r"(^```.*?^```[^\n]*$)", text, flags=re.M | re.S)
    return "".join(part if at % 2 else change(part) for at, part in enumerate(parts))


def relink(name, text, known, src):
    """Point the links of a document at pages. What is in the repository and no page becomes text."""
    problems = []

    def one(match):
        image, label, target = match.groups()
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            return match.group(0)
        path, _, anchor = target.partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(name), path))
        if file in known:
            return f"{image}[{label}]({known[file]}{'#' + anchor if anchor else ''})"
        if not (ROOT / file).exists():
            problems.append(f"{name}: there is no {target}")
        elif pathlib.Path(file).suffix in ASSETS and file.startswith("docs/"):
            copy = src / file.removeprefix("docs/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy)
            return f"{image}[{label}]({file.removeprefix('docs/')})"
        return label if "`" in label else f"`{label}`" if label == path else f"{label} (`{file}`)"

    return outside_code(text, lambda part: LINK.sub(one, part)), problems


def mermaid(text):
    """A diagram of the README is shown as its source: drawing it would need a script from elsewhere."""
    return text.replace("```mermaid", "```text")


# ---- the generated reference

def settings():
    text = (ROOT / "realign.example.toml").read_text()
    return ("# Settings\n\nEvery key of `realign.toml`, with its default. The environment variable\n"
            "`REALIGN_<SECTION>__<KEY>` overrides a key, such as `REALIGN_SERVER__PORT=9000`, and flags override both.\n"
            "`realign init` writes this file with every key commented out, so that a later release's defaults hold.\n\n"
            f"```toml\n{text}```\n")


def helps(binary, path=()):
    """The help of a command and of all below it."""
    shown = subprocess.run([binary, *path, "--help"], capture_output=True, text=True, check=True).stdout
    # `serve` ends with the settings, which have a page of their own.
    shown = shown.split("\nConfiguration: every key of realign.toml")[0].rstrip()
    yield path, shown
    commands = re.search(r"^Commands:\n((?:  .*\n)+)", shown, re.M)
    for line in commands.group(1).splitlines() if commands else []:
        name = line.split()[0]
        # A line that is indented further goes on with the one before.
        if name != "help" and re.match(r"  \S", line):
            yield from helps(binary, (*path, name))


def commands(binary):
    text = "# Commands\n\nWhat `realign COMMAND --help` prints.\n"
    for path, shown in helps(binary):
        depth = "#" * min(2 + max(0, len(path) - 1), 4)
        name = os.path.basename(binary)
        shown = shown.replace(f"Usage: {name}", "Usage: realign")
        text += f"\n{depth} realign {' '.join(path)}\n\n```text\n{shown}\n```\n".replace("realign \n", "realign\n")
    return text


def routes():
    table = (ROOT / "src/server/api/routes/table.rs").read_text()
    audiences = {"clients": "Clients", "dialects": "Clients", "small_routes": "Clients", "everyone": "Everyone",
                 "operators": "Operators", "realignments": "Operators", "generations": "Operators", "unguarded": "Operators' listener, without a key"}
    rows, now = {}, "Clients"
    for part in re.split(r"(?=^(?:pub\(super\) )?fn |Route::(?:get|post|put)\()", table, flags=re.M):
        if begins := re.match(r"(?:pub\(super\) )?fn (\w+)\(", part):
            now = audiences.get(begins.group(1), now)
        route = re.match(r"Route::(\w+)\(\s*\"([^\"]+)\"", part)
        named = re.search(r"\.named\(\s*\"\w+\",\s*\"([^\"]+)\"", part)
        if route and named:
            rows.setdefault(now, []).append((route.group(1).upper(), route.group(2), named.group(1)))
    assert sum(map(len, rows.values())) > 40, "the table of routes is read wrongly"
    text = ("# Routes\n\nEvery route, as the server's own `GET /openapi.json` documents it with the fields of requests and answers.\n"
            "Operators' routes need `Authorization: Bearer KEY` with the operators' key.\n")
    for audience, found in rows.items():
        text += f"\n## {audience}\n\n| | route | |\n| --- | --- | --- |\n"
        text += "".join(f"| {method} | `{path}` | {said} |\n" for method, path, said in found)
    return text


def metrics():
    source = (ROOT / "src/server/telemetry/names.rs").read_text()
    rows, said = [], []
    for line in source.splitlines():
        if line.startswith("///"):
            said.append(line[3:].strip())
        elif found := re.search(r"\"(realign_\w+)\"", line):
            kind, _, meaning = " ".join(said).partition(":")
            rows.append((found.group(1), kind, meaning.strip()))
            said = []
    assert len(rows) > 30, "the metrics' names are read wrongly"
    text = "# Metrics\n\n`GET /metrics` has them in Prometheus' text format. What to alert on: [watching](../operating.md#watching).\n\n"
    text += "| metric | kind and labels | what it says |\n| --- | --- | --- |\n"
    return text + "".join(f"| `{name}` | {kind} | {meaning} |\n" for name, kind, meaning in rows)


def schema():
    whole = json.loads((ROOT / "policies/policy.schema.json").read_text())
    text = ("# Policy schema\n\nThe fields of a policy file, from its JSON Schema (`realign policy schema`). "
            "[Write a policy](../policies.md) explains them.\n")

    def kind(field):
        if "$ref" in field:
            name = field["$ref"].rsplit("/", 1)[1]
            return f"[{name}](#{name.lower()})"
        for key in ("anyOf", "oneOf"):
            if key in field:
                return " or ".join(kind(one) for one in field[key] if one.get("type") != "null")
        if "enum" in field:
            return ", ".join(f"`{one}`" for one in field["enum"] if one is not None)
        if "const" in field:
            return f"`{field['const']}`"
        types = field.get("type", "anything")
        types = [types] if isinstance(types, str) else [one for one in types if one != "null"]
        if types == ["array"]:
            return f"list of {kind(field.get('items') or {})}"
        return " or ".join(types)

    def table(name, one):
        said = f"\n## {name}\n\n{one.get('description', '')}\n"
        fields = one.get("properties")
        if not fields:
            return said + f"\n{kind(one)}\n" + "".join(
                f"- {kind(choice)}: {choice.get('description', '')}\n" for choice in one.get("oneOf", []) if "const" in choice)
        said += "\n| field | | |\n| --- | --- | --- |\n"
        for field, of in fields.items():
            need = "required" if field in one.get("required", []) else f"default `{json.dumps(of['default'])}`" if of.get("default") is not None else ""
            words = " ".join(of.get("description", "").split()).replace("|", "\\|")
            said += f"| `{field}` | {kind(of)}{', ' + need if need else ''} | {words} |\n"
        return said

    text += table("Policy", whole)
    for name, one in whole.get("$defs", {}).items():
        text += table(name, one)
    return text


# ---- the check

class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("id"):
            self.ids.add(attributes["id"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        for key in ("src", "href"):
            if tag != "a" and attributes.get(key):
                self.loads.append(attributes[key])


def check(site):
    """Every link leads somewhere, and nothing is loaded from elsewhere."""
    read = {}
    for file in site.rglob("*.html"):
        page = read[file.resolve()] = Page()
        page.feed(file.read_text())
    problems = []
    for file, page in read.items():
        # It has all pages in one, to be printed.
        if file.name in ("print.html", "toc.html"):
            continue
        where = file.relative_to(site.resolve())
        for target in page.loads + page.links:
            if re.match(r"[a-z]+:", target) or target.startswith("//"):
                if target in page.loads and not target.startswith("data:"):
                    problems.append(f"{where} loads {target}")
                continue
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            to = (file.parent / path).resolve() if path else file
            if not to.exists():
                problems.append(f"{where}: no {target}")
            elif anchor and to in read and anchor not in read[to].ids:
                problems.append(f"{where}: {target} has no such heading")
    return problems, len(read)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--binary", required=True, help="the realign binary, whose help is the reference of commands")
    parser.add_argument("--mdbook", default="mdbook")
    parser.add_argument("--out", required=True, help="directory of the site; its sources go beside it")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    src = out / "src"
    shutil.rmtree(out, ignore_errors=True)
    (src / "reference").mkdir(parents=True)
    known, problems = pages(), []
    for name, page in known.items():
        text, found = relink(name, (ROOT / name).read_text(), known, src)
        problems += found
        (src / page).write_text(mermaid(text))
    for name, text in {"settings": settings(), "commands": commands(arguments.binary), "routes": routes(),
                       "metrics": metrics(), "schema": schema()}.items():
        (src / f"reference/{name}.md").write_text(text)
    summary = (ROOT / "docs/SUMMARY.md").read_text()
    (src / "SUMMARY.md").write_text(summary)
    shutil.copy(ROOT / "docs/book.toml", out / "book.toml")
    listed = set(re.findall(r"\]\(([^)]+)\)", summary))
    problems += [f"docs/SUMMARY.md does not list {page}" for page in known.values() if page not in listed]
    subprocess.run([arguments.mdbook, "build", "--dest-dir", "site", str(out)], check=True)
    found, count = check(out / "site")
    problems += found
    for problem in problems:
        print(f"FAILED {problem}")
    print(f"{count} pages in {out / 'site'}, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
