#!/usr/bin/env python3
"""Check that docs/unsafe.md counts every `unsafe` in src/, and that each has its argument beside it.

A line with `unsafe` needs a comment with SAFETY or a section `# Safety` in the eight lines above it. The methods of a
trait need it only where the trait declares them. The counts are of lines of code.
"""

import argparse
import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| `(src/[^`]+\.rs)` \| (\d+) \|", re.M)
ABOVE = 8


def code(line):
    """A line without its comment and its strings."""
    return re.sub(r'"(\\.|[^"\\])*"', "", line.split("//")[0])


def unsafe_lines(text):
    """(number, line, whether its argument is beside it) of every line with `unsafe`."""
    lines = text.split("\n")
    of_trait = False
    for number, line in enumerate(lines):
        if re.match(r"\S", line):
            of_trait = re.match(r"(unsafe )?impl\b.* for ", line) is not None
        # The type of a pointer to an unsafe function does nothing.
        if not re.search(r"\bunsafe\b", code(line)) or re.search(r'\bunsafe (extern "\w+" )?fn\(', line):
            continue
        before = "\n".join(lines[max(0, number - ABOVE):number + 1])
        declared = of_trait and re.match(r"\s+unsafe fn ", line)
        yield number + 1, line.strip(), bool(declared or "SAFETY" in before or "# Safety" in before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    listed, failed = collections.Counter(), []
    for path, count in ROW.findall((ROOT / "docs" / "unsafe.md").read_text(encoding="utf-8")):
        listed[path] += int(count)
    found = collections.Counter()
    for path in sorted((ROOT / "src").rglob("*.rs")):
        name = path.relative_to(ROOT).as_posix()
        for number, line, argued in unsafe_lines(path.read_text(encoding="utf-8")):
            found[name] += 1
            if not argued:
                failed.append(f"{name}:{number}: `{line}` has no SAFETY comment and no # Safety section")
    for name in sorted(listed.keys() | found.keys()):
        if listed[name] != found[name]:
            failed.append(f"docs/unsafe.md counts {listed[name]} in {name}, which has {found[name]}: update the page")
    for line in failed:
        print(f"check-unsafe: {line}", file=sys.stderr)
    print(f"check-unsafe: {sum(found.values())} in {len(found)} files")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
