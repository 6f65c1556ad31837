#!/usr/bin/env python3
"""Writes a GGUF file of any size with random weights, to measure how long a start takes and what it needs of memory.

    scripts/make-random-gguf.py models/SmolLM2-135M-Instruct.Q4_1.gguf big.gguf --layers 32 --hidden 4096 --inner 11008 \
        --heads 32 --kv-heads 32

Tokenizer and chat template are those of the first file, which must be of the llama architecture. The layers' matrices are
Q4_K unless --type says otherwise. The table of embeddings is Q6_K, as in a file of type Q4_K_M, or BF16 where all is.
What the model says is noise.
"""

import argparse
import os
import random
import struct

ALIGNMENT = 32
F32, Q4_K, Q5_K, Q6_K, BF16 = 0, 12, 13, 14, 30
TYPES = {"q4_k": Q4_K, "q5_k": Q5_K, "q6_k": Q6_K, "bf16": BF16}
# Elements and bytes of a block.
BLOCKS = {F32: (1, 4), Q4_K: (256, 144), Q5_K: (256, 176), Q6_K: (256, 210), BF16: (1, 2)}
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, U32 = 8, 9, 4


def value_end(data, at, kind):
    """Where a metadata value of this type ends."""
    if kind == STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        return at + 8 + length
    if kind == ARRAY:
        inner, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if inner in SIZES:
            return at + SIZES[inner] * count
        for _ in range(count):
            at = value_end(data, at, inner)
        return at
    return at + SIZES[kind]


def metadata(path):
    """The metadata of a file: (key, type, bytes)."""
    with open(path, "rb") as file:
        data = file.read(64 << 20)
    magic, version, _, count = struct.unpack_from("<4sIQQ", data, 0)
    if magic != b"GGUF" or version < 2:
        raise SystemExit(f"{path} is no GGUF file of version 2 or 3")
    at, pairs = 24, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        key = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        (kind,) = struct.unpack_from("<I", data, at)
        end = value_end(data, at + 4, kind)
        pairs.append((key, kind, data[at + 4 : end]))
        at = end
    return pairs


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def tensors(args, vocabulary):
    """(name, type, columns, rows), in the order of the file."""
    head = args.hidden // args.heads
    kv = head * args.kv_heads
    yield "token_embd.weight", BF16 if args.type == "bf16" else Q6_K, args.hidden, vocabulary
    yield "output_norm.weight", F32, args.hidden, 1
    for layer in range(args.layers):
        for name, rows, columns in [
            ("attn_q", args.hidden, args.hidden),
            ("attn_k", kv, args.hidden),
            ("attn_v", kv, args.hidden),
            ("attn_output", args.hidden, args.hidden),
            ("ffn_gate", args.inner, args.hidden),
            ("ffn_up", args.inner, args.hidden),
            ("ffn_down", args.hidden, args.inner),
        ]:
            yield f"blk.{layer}.{name}.weight", TYPES[args.type], columns, rows
        yield f"blk.{layer}.attn_norm.weight", F32, args.hidden, 1
        yield f"blk.{layer}.ffn_norm.weight", F32, args.hidden, 1


def block(kind, rng):
    """A block with small scales and random integers."""
    scale = struct.pack("<e", 0.002)
    if kind == F32:
        return struct.pack("<f", 1.0)
    if kind == BF16:
        # From 1/128 to 1/32, of either sign.
        return struct.pack("<H", rng.getrandbits(1) << 15 | 0x3C00 | rng.getrandbits(8))
    if kind in (Q4_K, Q5_K):
        return scale * 2 + rng.randbytes(BLOCKS[kind][1] - 4)
    return rng.randbytes(208) + scale


def content(kind, elements, rng):
    """The bytes of a tensor: blocks of a pool, so that gigabytes are written in seconds."""
    per, size = BLOCKS[kind]
    pool = b"".join(block(kind, rng) for _ in range(4096 if kind != F32 else 1))
    left = elements // per * size
    while left > 0:
        start = rng.randrange(len(pool) // size) * size
        part = (pool[start:] + pool[:start])[:left]
        yield part
        left -= len(part)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("like", help="a GGUF file of the llama architecture")
    parser.add_argument("out")
    for name, default in [("layers", 32), ("hidden", 4096), ("inner", 11008), ("heads", 32), ("kv-heads", 32)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--type", choices=TYPES, default="q4_k", help="of the layers' matrices")
    args = parser.parse_args()
    if args.hidden % 256 or args.inner % 256:
        raise SystemExit("--hidden and --inner must be multiples of 256, the block of the K types")
    numbers = {
        "llama.block_count": args.layers,
        "llama.embedding_length": args.hidden,
        "llama.feed_forward_length": args.inner,
        "llama.attention.head_count": args.heads,
        "llama.attention.head_count_kv": args.kv_heads,
        "llama.rope.dimension_count": args.hidden // args.heads,
        "general.alignment": ALIGNMENT,
    }
    pairs = [pair for pair in metadata(args.like) if pair[0] not in numbers]
    pairs += [(key, U32, struct.pack("<I", value)) for key, value in numbers.items()]
    tokens = next(value for key, _, value in pairs if key == "tokenizer.ggml.tokens")
    (vocabulary,) = struct.unpack_from("<Q", tokens, 4)
    listed = list(tensors(args, vocabulary))
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(pairs))
    for key, kind, value in pairs:
        header += string(key) + struct.pack("<I", kind) + value
    offset = 0
    for name, kind, columns, rows in listed:
        shape = [columns] if rows == 1 else [columns, rows]
        header += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        header += struct.pack("<IQ", kind, offset)
        per, size = BLOCKS[kind]
        offset += -(-(columns * rows // per * size) // ALIGNMENT) * ALIGNMENT
    rng = random.Random(1)
    with open(args.out, "wb") as file:
        file.write(header)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for _, kind, columns, rows in listed:
            for part in content(kind, columns * rows, rng):
                file.write(part)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
    print(f"{args.out}: {os.path.getsize(args.out) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
