"""Makes tests/golden/gemma3_270m.json: what PyTorch writes with Gemma 3 270M, token by token.

    pip install torch transformers gguf          # CPU builds do
    make model-gemma
    python tests/golden/make_gemma.py

The weights are those of the GGUF file, dequantised to float32. Gemma's GGUF stores RMSNorm weights with
the offset of one added, which Hugging Face's layout does not.
"""

import hashlib
import json
import pathlib

import gguf
import torch
import transformers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parent.parent / "models" / "gemma-3-270m.Q4_K_M.gguf"
TOKENS = 32
# Token ids as the tokenizer of the file gives them, <bos> first; tests check that they are ours too.
PROMPTS = ["The capital of France is", "To make a cup of tea, you", "def fibonacci(n):\n", "1, 2, 4, 8, 16,"]
LAYER = {
    "attn_norm": ("input_layernorm", 1), "post_attention_norm": ("post_attention_layernorm", 1),
    "ffn_norm": ("pre_feedforward_layernorm", 1), "post_ffw_norm": ("post_feedforward_layernorm", 1),
    "attn_q_norm": ("self_attn.q_norm", 1), "attn_k_norm": ("self_attn.k_norm", 1),
    "attn_q": ("self_attn.q_proj", 0), "attn_k": ("self_attn.k_proj", 0), "attn_v": ("self_attn.v_proj", 0),
    "attn_output": ("self_attn.o_proj", 0), "ffn_gate": ("mlp.gate_proj", 0), "ffn_up": ("mlp.up_proj", 0),
    "ffn_down": ("mlp.down_proj", 0),
}


def hugging_face_name(name):
    """The name in a Gemma 3 state dictionary, and what has to be taken off the values."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", 0
    if name == "output_norm.weight":
        return "model.norm.weight", 1
    _, layer, part, _ = name.split(".")
    target, offset = LAYER[part]
    return f"model.layers.{layer}.{target}.weight", offset


def load(reader):
    field = lambda key: reader.fields[f"gemma3.{key}"].contents()
    config = Gemma3TextConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=field("embedding_length"), intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"), num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"), head_dim=field("attention.key_length"),
        sliding_window=field("attention.sliding_window"), query_pre_attn_scalar=field("attention.key_length"),
        rms_norm_eps=float(field("attention.layer_norm_rms_epsilon")), tie_word_embeddings=True,
        max_position_embeddings=field("context_length"),
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": float(field("rope.freq_base"))},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        attn_implementation="eager",
    )
    model = Gemma3ForCausalLM(config).float().eval()
    state = {}
    for tensor in reader.tensors:
        name, offset = hugging_face_name(tensor.name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        state[name] = torch.from_numpy(values.copy()) - offset
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def encode(reader, text):
    """SentencePiece merging over the file's vocabulary: the pair of the best score first."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    scores = reader.fields["tokenizer.ggml.scores"].contents()
    ids = {token: index for index, token in enumerate(tokens)}
    parts = list(text.replace(" ", "\u2581"))
    while True:
        pairs = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ids]
        if not pairs:
            return [reader.fields["tokenizer.ggml.bos_token_id"].contents()] + [ids[part] for part in parts]
        at = -max(pairs)[1]
        parts[at:at + 2] = [parts[at] + parts[at + 1]]


@torch.no_grad()
def greedy(model, ids):
    tokens, gaps = list(ids), []
    for _ in range(TOKENS):
        logits = model(torch.tensor([tokens])).logits[0, -1]
        best = torch.topk(logits, 2)
        gaps.append(round(float(best.values[0] - best.values[1]), 4))
        tokens.append(int(best.indices[0]))
    return {"ids": tokens[len(ids):], "top1_top2_logit_gap": gaps}


def main():
    torch.set_num_threads(2)
    reader = gguf.GGUFReader(MODEL)
    model = load(reader)
    generations = []
    for prompt in PROMPTS:
        ids = encode(reader, prompt)
        generations.append({"prompt": prompt, "prompt_ids": ids, "ref": greedy(model, ids)})
    meta = {"file": MODEL.name, "sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest(),
            "torch": torch.__version__, "transformers": transformers.__version__, "dtype": "float32"}
    text = json.dumps({"meta": meta, "generations": generations}, indent=1, ensure_ascii=False)
    (HERE / "gemma3_270m.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
