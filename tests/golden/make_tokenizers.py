#!/usr/bin/env python3
"""Make tokenizers.json and tiny_sentencepiece.json: texts and the ids that the reference tokenizers give.

    pip install "tokenizers==0.23.*" "sentencepiece==0.2.*" "gguf==0.19.*"
    python tests/golden/make_tokenizers.py

The references: for SentencePiece vocabularies the sentencepiece package, on a model put together from a
GGUF file's pieces, scores and types; for byte-level BPE the tokenizers package, with the pre-tokenizers
that the model families publish, on SmolLM2's vocabulary. The tiny vocabulary is trained on the text below.

--fuzz N adds N random texts, --pieces every piece of Gemma's vocabulary; both are meant for --out, as the
files in the repository stay small.
"""

import argparse
import io
import json
import pathlib
import random
import struct

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

HERE = pathlib.Path(__file__).resolve().parent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

TEXTS = [
    "",
    " ",
    "  ",
    "   leading and trailing   ",
    "The capital of France is",
    "The capital  of   France    is     Paris.",
    "\n",
    "\n\n",
    "one\ntwo\n\nthree\n\n\n\n\nfour",
    "\r\n windows\r\n\r\nlines \r mac",
    "\t\ttabs\t and \t spaces \t\n\t mixed",
    "a" * 67,
    " " * 70,
    "\n" * 70,
    "\t" * 40 + "x",
    "abababababababababab aaaaaabaaaab mississippi banana bananas",
    "don't they'RE we'll I'D x'y 'tis o'clock",
    "x2y 3.14 1,000,000 2026-11-24 0x7F 12345678901234567890",
    "١٢٣ ४५६ ⅷ ² Ⅳ",
    "naïve café – résumé, coöperate; “quotes” ‘single’ … ½",
    "cafe\u0301 is decomposed, A\u030a too; ﬁ ligature, ｆｕｌｌ width",
    "Москва и Санкт-Петербург",
    "東京は日本の首都です。 北京是中国的首都。 서울은 한국의 수도이다.",
    "مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "😀 👩‍👩‍👧 🇫🇷 👍🏽 ❤️",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 𐍈 \U000e0041 \U0010ffff",
    "a\u00a0non-breaking\u2009thin\u3000wide\u200bzero\ufeffmark",
    "control \x00 \x01 \x1f \x7f \x85 characters",
    "\ue000 private \uf8ff",
    "def f(x):\n    return {'a': [x ** 2, None]}  # comment\n\n\nclass A(B):\n\tpass\n",
    "fn main() { println!(\"{:?}\", vec![1u8; 3]); } // → ok",
    "<table><tr><td>1</td></tr></table><b>bold</b> < b > <br/>",
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "<|im_start|>system\nobey<|im_end|> <|endoftext|>",
    "<bos> <eos> <unk> <pad> <s> </s> <0x41> <0x0A> <unused5> <start_of_image>",
    "▁ is ▁▁ the mark ▁itself",
    "https://example.org/a_b-c?d=e&f=%20g#h user@example.org",
    "Take 400 mg every six hours, for 3–5 days.",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "{\"key\": [1, 2.5e-3, true, null, \"\\u00e9\"]}",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$",
    "ZALGO h\u0321\u0327e\u0322\u0353l\u0334\u0355l\u0335o\u0336",
    "MiXeD CaSe WORDS and camelCase snake_case SCREAMING_CASE",
    "--- *** ___ === ??? !!! ... ,,, ;;; ((())) [[[]]]",
]

# What the tiny vocabulary learns from.
LESSON = """
A small boat left the harbour before the sun rose over the hills. The fisher sang an old song about
bananas and the sea, and the sea answered with waves. Nobody in the village had seen such a calm morning
since the storm of the last autumn, and nobody trusted it. By noon the wind had turned; by evening the
boat was home again, with seven baskets of silver fish and one very wet dog. In the kitchen the kettle
whistled, the bread was warm, and the children asked for the story of the whale that learned to count:
one, two, three, four, five, six, seven, eight, nine, ten. A café by the quay stayed open until midnight.
The lamps along the street burned low, and the rain began, softly at first, then harder and harder.
""".split("\n")


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """One protocol buffer field: int, float or bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentence_piece_model(vocabulary):
    """A SentencePiece processor with these pieces, scores and types, and nothing else trained."""
    pieces = zip(vocabulary["tokens"], vocabulary["scores"], vocabulary["types"], strict=True)
    proto = b""
    for token, score, kind in pieces:
        text = token.replace(" ", "▁") if kind == USER_DEFINED else token
        proto += field(1, field(1, text.encode()) + field(2, float(score)) + field(3, int(kind)))
    has_bytes = BYTE in vocabulary["types"]
    trainer = field(3, 2) + field(35, int(has_bytes)) + field(40, vocabulary["types"].index(UNKNOWN))
    normalizer = (field(1, b"identity") + field(3, int(vocabulary["add_space_prefix"])) + field(4, 0) + field(5, 1))
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(proto + field(2, trainer) + field(3, normalizer))
    return processor


def read_gguf(path):
    fields = gguf.GGUFReader(path).fields

    def get(key, default=None):
        found = fields.get(f"tokenizer.ggml.{key}")
        return default if found is None else found.contents()

    return {"tokens": get("tokens"), "scores": get("scores"), "types": [int(t) for t in get("token_type")],
            "merges": get("merges"), "unknown": get("unknown_token_id"),
            "add_space_prefix": get("add_space_prefix", True)}


def gemma(path):
    vocabulary = read_gguf(path)
    # The file calls the unknown token a control token; SentencePiece needs exactly one unknown.
    vocabulary["types"][vocabulary["unknown"]] = UNKNOWN
    return vocabulary


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(vocabulary, pre):
    """SmolLM2's vocabulary behind the pre-tokenizer of a model family."""
    vocab = {token: id for id, token in enumerate(vocabulary["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in vocabulary["merges"]]
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe")
    tokenizer = Tokenizer(model)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in ("smollm", "gpt-2"))
    first = {
        "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True)],
        "gpt-2": list,
        "qwen2": lambda: [pre_tokenizers.Split(Regex(WORDS + r"\p{N}" + OTHERS), "isolated")],
        "llama-bpe": lambda: [pre_tokenizers.Split(Regex(WORDS + r"\p{N}{1,3}" + OTHERS), "isolated")],
    }[pre]()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def byte_level_special(vocabulary):
    """As SmolLM2's, with its control tokens recognised in the text."""
    tokenizer = byte_level(vocabulary, "smollm")
    typed = zip(vocabulary["tokens"], vocabulary["types"], strict=True)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == CONTROL])
    return tokenizer


def tiny():
    """A trained SentencePiece BPE vocabulary of 480 pieces, 256 of them bytes."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LESSON), model_writer=out, model_type="bpe", vocab_size=480, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, user_defined_symbols=["\n", "\n\n", "▁▁", "▁▁▁", "<b>"],
        control_symbols=["<turn>"], bos_id=1, eos_id=2, unk_id=0, num_threads=1)
    trained = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    ids = range(trained.GetPieceSize())

    def kind(id):
        kinds = [(trained.IsUnknown, UNKNOWN), (trained.IsControl, CONTROL), (trained.IsByte, BYTE),
                 (trained.IsUnused, UNUSED)]
        found = [kind for test, kind in kinds if test(id)]
        user_defined = trained.IdToPiece(id) in ("\n", "\n\n", "▁▁", "▁▁▁", "<b>")
        return found[0] if found else USER_DEFINED if user_defined else NORMAL

    types = [kind(id) for id in ids]
    # GGUF files write user-defined tokens with plain spaces.
    tokens = [trained.IdToPiece(id).replace("▁", " ") if types[id] == USER_DEFINED else trained.IdToPiece(id)
              for id in ids]
    return {"tokens": tokens, "scores": [round(trained.GetScore(id), 4) for id in ids], "types": types,
            "add_space_prefix": False}


def with_unused(vocabulary):
    """Every fifth longer piece is unused, so that it is only a step to others."""
    types, count = list(vocabulary["types"]), 0
    for id, token in enumerate(vocabulary["tokens"]):
        if types[id] == NORMAL and len(token) > 1:
            count += 1
            types[id] = UNUSED if count % 5 == 0 else NORMAL
    return {**vocabulary, "types": types}


def without_bytes(vocabulary):
    """Without byte tokens: what no piece covers is the unknown token."""
    rows = zip(vocabulary["tokens"], vocabulary["scores"], vocabulary["types"], strict=True)
    kept = [row for row in rows if row[2] != BYTE]
    return {"tokens": [r[0] for r in kept], "scores": [r[1] for r in kept], "types": [r[2] for r in kept],
            "add_space_prefix": vocabulary["add_space_prefix"]}


def tied(vocabulary):
    """Scores rounded so coarsely that many pieces tie: then the leftmost pair merges first."""
    return {**vocabulary, "scores": [float(int(score / 40)) for score in vocabulary["scores"]]}


def fuzz(count, tokens):
    rng = random.Random(20261124)
    pool = [t.replace("▁", " ") for t in tokens]
    for _ in range(count):
        kind, length = rng.randrange(4), rng.randrange(1, 40)
        if kind == 0:  # neighbouring pieces that may or may not merge
            yield "".join(rng.choice(pool) for _ in range(length))
        elif kind == 1:  # few letters: many overlapping ways to merge
            yield "".join(rng.choice("ab ne\n") for _ in range(length * 2))
        elif kind == 2:
            yield "".join(rng.choice(TEXTS)[:12] for _ in range(length // 4 + 1))
        else:  # any characters, surrogates excepted
            codes = (rng.choice([rng.randrange(1, 0x250), rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x110000)])
                     for _ in range(length))
            yield "".join(map(chr, codes))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=pathlib.Path, default=HERE.parent.parent / "models")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--pieces", action="store_true")
    arguments = parser.parse_args()
    smol = read_gguf(arguments.models / "SmolLM2-135M-Instruct.Q4_1.gguf")
    large = gemma(arguments.models / "gemma-3-270m.Q4_K_M.gguf")
    small = tiny()
    prefixed = {**small, "add_space_prefix": True}
    variants = {"plain": small, "space_prefix": prefixed, "unused": with_unused(small),
                "no_bytes": without_bytes(prefixed), "tied": tied(small)}
    texts = TEXTS + list(fuzz(arguments.fuzz, small["tokens"][260:] + large["tokens"][1000:9000]))
    if arguments.pieces:
        texts += [t.replace("▁", " ") for t, kind in zip(large["tokens"], large["types"]) if kind == NORMAL]
    encoders = {pre: lambda t, e=byte_level(smol, pre): e.encode(t, add_special_tokens=False).ids
                for pre in ("smollm", "gpt-2", "qwen2", "llama-bpe")}
    special = byte_level_special(smol)
    encoders["smollm_special"] = lambda t: special.encode(t, add_special_tokens=False).ids
    encoders["gemma"] = sentence_piece_model(large).EncodeAsIds
    for name, variant in variants.items():
        encoders[f"tiny_{name}"] = sentence_piece_model(variant).EncodeAsIds
    ids = {name: [encode(text) for text in texts] for name, encode in encoders.items()}
    write(arguments.out / "tokenizers.json", {"texts": texts, "ids": ids})
    write(arguments.out / "tiny_sentencepiece.json", variants)


def write(path, value):
    """One line per entry of the second level, so that a change shows where it is."""
    def lines(value, depth):
        if depth == 0 or not isinstance(value, dict | list):
            return json.dumps(value, ensure_ascii=True)
        if isinstance(value, dict):
            body = ",\n".join(f"{json.dumps(k)}: {lines(v, depth - 1)}" for k, v in value.items())
            return "{\n" + body + "\n}"
        return "[\n" + ",\n".join(lines(v, depth - 1) for v in value) + "\n]"

    path.write_text(lines(value, 2) + "\n")


if __name__ == "__main__":
    main()
