#!/usr/bin/env python3
"""Measures PyTorch, transformers and PEFT on the shapes of `realign bench --shape`, with random bf16 weights
created on the device. Prints JSON whose keys are the names of that command's rows.

usage: gpu_peer.py SHAPE
"""

import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

PROMPT, TOKENS, RANK = 512, 64, 16
# Pairs per training step, each with a prompt of 64 tokens and two responses of 96; each response is a sequence.
PAIRS, PAIR_PROMPT, PAIR_RESPONSE = 8, 64, 96

COMMON = {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
SHAPES = {
    "qwen2.5-7b": ("qwen2", dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                                 num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=32768)),
    "gemma-2-9b": ("gemma2", dict(vocab_size=256000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
                                  num_attention_heads=16, num_key_value_heads=8, head_dim=256,
                                  tie_word_embeddings=True)),
    "llama-3.1-8b": ("llama", dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                                   num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072)),
}


def timed(work):
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def prefill(model, vocab):
    ids = torch.randint(0, vocab, (1, PROMPT), device="cuda")
    run = lambda: model(ids, use_cache=True, logits_to_keep=1)
    run()
    return PROMPT / min(timed(run) for _ in range(3))


@torch.inference_mode()
def decode(model, vocab, streams):
    """Tokens per second of all streams, not counting the token that follows the prompt."""
    ids = torch.randint(0, vocab, (streams, 16), device="cuda")

    def run(tokens):
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=tokens,
                       max_new_tokens=tokens, pad_token_id=0)

    run(4)
    one = min(timed(lambda: run(1)) for _ in range(2))
    many = min(timed(lambda: run(TOKENS + 1)) for _ in range(2))
    return streams * TOKENS / (many - one)


def train(model, vocab):
    """Tokens per second of LoRA steps on all seven projections: both responses of each pair, one backward pass."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step():
        for _ in range(PAIRS // 2):
            ids = torch.randint(0, vocab, (4, PAIR_PROMPT + PAIR_RESPONSE), device="cuda")
            logits = model(ids).logits[:, PAIR_PROMPT - 1:-1].float()
            targets = ids[:, PAIR_PROMPT:]
            logp = torch.log_softmax(logits, -1).gather(-1, targets[..., None]).squeeze(-1).sum(1)
            torch.nn.functional.softplus(-(logp[0::2] - logp[1::2]) * 0.1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    seconds = min(timed(step) for _ in range(2))
    # Counted like our rows: each prompt once, each response without its last token.
    return PAIRS * (PAIR_PROMPT + 2 * (PAIR_RESPONSE - 1)) / seconds


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in SHAPES:
        raise SystemExit(f"{__doc__}\nSHAPE is one of {', '.join(SHAPES)}")
    kind, sizes = SHAPES[sys.argv[1]]
    config = AutoConfig.for_model(kind, **{**COMMON, **sizes})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config)
    model.eval()
    vocab, out = config.vocab_size, {}
    out[f"prefill of {PROMPT} tokens"] = prefill(model, vocab)
    out[f"decode of {TOKENS} tokens"] = decode(model, vocab, 1)
    for streams in (8, 32):
        out[f"{streams} streams"] = decode(model, vocab, streams)
    serving = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, serving)
    suffix = f", rank-{RANK} adapter on q and v"
    out[f"decode of {TOKENS} tokens{suffix}"] = decode(adapted, vocab, 1)
    out[f"8 streams{suffix}"] = decode(adapted, vocab, 8)
    model = adapted.unload()
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.cuda.reset_peak_memory_stats()
    out["training"] = train(get_peft_model(model, LoraConfig(r=RANK, target_modules=every)), vocab)
    out["peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
    print(json.dumps(out))


if __name__ == "__main__":
    main()
