"""What the scripts about dependencies share: Cargo.lock, cargo metadata, versions, licence expressions."""

import json
import pathlib
import re
import subprocess
import sys

try:
    import tomllib
except ModuleNotFoundError:
    sys.exit("Python 3.11 or newer is needed here, for tomllib")

ROOT = pathlib.Path(__file__).resolve().parent.parent
DENY = ROOT / "deny.toml"
ADVISORIES = ROOT / "scripts" / "advisories.json"
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


class Failure(Exception):
    """Something that a script needs is missing or malformed; the message says what to do."""


def read_toml(path):
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {error}") from error


def lock(path=ROOT / "Cargo.lock"):
    """The packages of Cargo.lock, a dictionary each."""
    packages = read_toml(path).get("package")
    if not packages:
        raise Failure(f"{path}: has no packages; is it a Cargo.lock?")
    return packages


def cargo(*arguments):
    """What cargo prints. Without the network if it can: a machine without one then waits for nothing."""
    for network in (["--offline"], []):
        done = subprocess.run(["cargo", *arguments, "--locked", *network], cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
    raise Failure(f"cargo {' '.join(arguments)} failed; `cargo fetch --locked` downloads what it needs:\n{done.stderr}")


def metadata(*arguments):
    return json.loads(cargo("metadata", "--format-version", "1", *arguments))


VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?$")


def parse(text):
    """((major, minor, patch), pre-release, parts that were given); absent numbers are 0."""
    found = VERSION.match(text.strip())
    if not found:
        raise Failure(f"`{text}` is not a version")
    numbers = [n for n in found.groups()[:3] if n is not None]
    core = tuple(int(n) for n in numbers) + (0,) * (3 - len(numbers))
    return core, found.group(4), len(numbers)


def order(text):
    """A key that sorts versions as semver does: a pre-release precedes its release."""
    core, pre, _ = parse(text)
    if pre is None:
        return core, (1,)
    parts = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")]
    return core, (0, *parts)


def bumped(core, index):
    """The version in which the number at `index` is one more and what follows it is 0."""
    return (*core[:index], core[index] + 1, *(0,) * (2 - index)), (0,)


def comparator(version, text):
    """Whether a version satisfies one comparator of Cargo's, such as `>= 1.2`, `^0.3` or `1`."""
    if text.strip() == "*":
        return True
    operator, bound = re.match(r"\s*(>=|<=|>|<|=|\^|~|)\s*(.+)", text).groups()
    core, pre, given = parse(bound)
    at, low = order(version), order(bound)
    # What `1.2` stands for ends before 1.3; a version that is given whole stands for itself.
    beyond = bumped(core, given - 1)
    whole = given == 3
    if operator == ">=":
        return at >= low
    if operator == "<":
        return at < low
    if operator == ">":
        return at > low if whole else at >= beyond
    if operator == "<=":
        return at <= low if whole else at < beyond
    if operator == "=":
        return at == low if whole else low <= at < beyond
    if operator == "~":
        return low <= at < bumped(core, min(given - 1, 1))
    first = next((i for i in range(given) if core[i]), given - 1)
    return low <= at < bumped(core, first)


def matches(version, ranges):
    """Whether a version lies in one of the ranges, each a list of comparators with commas."""
    return any(all(comparator(version, c) for c in r.split(",")) for r in ranges)


def is_affected(version, advisory):
    return not matches(version, advisory["patched"]) and not matches(version, advisory["unaffected"])


def bare(version):
    """A version without its build metadata, which orders nothing."""
    return version.split("+")[0]


def spdx(text):
    """A licence expression as SPDX writes it. Old packages separate alternatives by a slash."""
    return re.sub(r"\s*/\s*", " OR ", text)


def licences(text):
    """The expression as a tree of ("OR" or "AND", parts) whose leaves are licences."""
    tokens = re.findall(r"[()]|[^\s()]+", spdx(text))
    tree, rest = either(tokens)
    if rest:
        raise Failure(f"`{text}` is not a licence expression")
    return tree


def either(tokens):
    return joined(tokens, "OR", both)


def both(tokens):
    return joined(tokens, "AND", name)


def joined(tokens, word, part):
    tree, tokens = part(tokens)
    parts = [tree]
    while tokens[:1] == [word]:
        tree, tokens = part(tokens[1:])
        parts.append(tree)
    return (parts[0] if len(parts) == 1 else (word, parts)), tokens


def name(tokens):
    if not tokens or tokens[0] in (")", "OR", "AND", "WITH"):
        raise Failure(f"a licence is missing before `{' '.join(tokens)}`")
    if tokens[0] == "(":
        tree, tokens = either(tokens[1:])
        if tokens[:1] != [")"]:
            raise Failure("a licence expression has an open parenthesis")
        return tree, tokens[1:]
    if tokens[1:2] == ["WITH"] and len(tokens) > 2:
        return " ".join(tokens[:3]), tokens[3:]
    return tokens[0], tokens[1:]


def is_allowed(tree, allowed):
    if isinstance(tree, str):
        return tree in allowed
    word, parts = tree
    check = any if word == "OR" else all
    return check(is_allowed(part, allowed) for part in parts)


def names(tree):
    """Every licence that an expression mentions."""
    return {tree} if isinstance(tree, str) else set().union(*map(names, tree[1]))
