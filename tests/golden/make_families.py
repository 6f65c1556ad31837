"""Makes tests/golden/families: a tiny random model per family, and what PyTorch computes with it.

    pip install torch transformers peft gguf     # CPU builds do
    python tests/golden/make_families.py         # rewrites tests/golden/families
    python tests/golden/make_families.py granite # only this one

Every weight is a bfloat16 number that float16 holds too, so all unquantised files of a family hold
the same model and share one set of golden values, computed in float32 with eager attention.
"""

import json
import math
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

OUT = pathlib.Path(__file__).parent / "families"
LENGTH, PROMPT = 40, 12
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHARED = dict(
    vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    pad_token_id=None, bos_token_id=None, eos_token_id=None,
)
GEMMA = dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=8)
YARN = dict(
    rope_type="yarn", rope_theta=100.0, factor=4.0, beta_fast=1.0, beta_slow=0.25,
    original_max_position_embeddings=32,
)
# Small, so that a file has less than 100 kB.
SMALL = dict(vocab_size=64, intermediate_size=48, num_hidden_layers=2, tie_word_embeddings=True)
MOE = dict(
    vocab_size=64, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=4,
    num_experts_per_tok=2, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000.0),
)
# By family: model_type, configuration, type of the safetensors, type of the GGUF's matrices.
# Rotary bases are small, so that no frequency stands still over forty tokens.
FAMILIES = {
    "llama": (
        "llama",
        dict(
            tie_word_embeddings=False,
            rope_parameters=dict(
                rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0,
                high_freq_factor=4.0, original_max_position_embeddings=64,
            ),
        ),
        torch.float32, "F32",
    ),
    "qwen2": (
        "qwen2",
        dict(
            tie_word_embeddings=True, rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.0),
        ),
        torch.float16, "F16",
    ),
    "qwen3": (
        "qwen3",
        dict(
            head_dim=16, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0),
        ),
        torch.bfloat16, "BF16",
    ),
    "gemma2": (
        "gemma2",
        dict(GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=8.0),
        torch.bfloat16, "F32",
    ),
    "gemma3": (
        "gemma3_text",
        dict(
            GEMMA, num_hidden_layers=7,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=2.0),
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            ),
        ),
        torch.bfloat16, "BF16",
    ),
    "mistral": (
        "mistral",
        dict(SMALL, head_dim=16, sliding_window=8, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        torch.bfloat16, "BF16",
    ),
    "ministral": (
        "ministral",
        dict(
            SMALL, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
            rope_parameters=dict(rope_type="default", rope_theta=1000.0),
        ),
        torch.bfloat16, None,
    ),
    "ministral3": (
        "ministral3",
        dict(
            SMALL, head_dim=16, sliding_window=None,
            rope_parameters=dict(
                YARN, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.5,
                llama_4_scaling_beta=0.1,
            ),
        ),
        torch.bfloat16, "BF16",
    ),
    "smollm3": (
        "smollm3",
        dict(
            SMALL, num_hidden_layers=4, no_rope_layer_interval=4,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0),
        ),
        torch.bfloat16, "BF16",
    ),
    "granite": (
        "granite",
        dict(
            SMALL, embedding_multiplier=3.0, residual_multiplier=0.3, attention_multiplier=0.2, logits_scaling=5.0,
            rms_norm_eps=1e-3, rope_parameters=dict(rope_type="default", rope_theta=1000.0),
        ),
        torch.bfloat16, "BF16",
    ),
    "phi3": (
        "phi3",
        dict(
            SMALL, hidden_size=64, sliding_window=9, max_position_embeddings=256, original_max_position_embeddings=64,
            rope_parameters=dict(
                rope_type="longrope", rope_theta=1000.0, partial_rotary_factor=0.75,
                short_factor=[1.0, 1.1, 1.3, 1.7, 2.0, 3.0], long_factor=[2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
                original_max_position_embeddings=64,
            ),
        ),
        torch.bfloat16, "BF16",
    ),
    "llama-yarn": (
        "llama",
        dict(SMALL, head_dim=16, rope_parameters=YARN),
        torch.bfloat16, "BF16",
    ),
    # Layers with experts and one without; the files of the second have the experts of a layer together.
    "qwen3moe": (
        "qwen3_moe",
        dict(
            MOE, num_hidden_layers=3, moe_intermediate_size=32, norm_topk_prob=True, mlp_only_layers=[1],
        ),
        torch.bfloat16, "BF16",
    ),
    "qwen3moe-plain": (
        "qwen3_moe",
        dict(
            MOE, num_hidden_layers=2, moe_intermediate_size=16, norm_topk_prob=False, decoder_sparse_step=2,
        ),
        torch.bfloat16, None,
    ),
}
# What GGUF calls a family, where it is another name.
GGUF_NAMES = {"mistral": "llama", "ministral3": "mistral3", "llama-yarn": "llama"}
# Converters permute the rows of q and k of these.
PERMUTED = ("llama", "mistral3", "smollm3", "granite")


def representable(weight):
    """The nearest bfloat16 numbers, tiny ones as zero: float16 has no room for their exponents."""
    weight = weight.to(torch.bfloat16).float()
    return torch.where(weight.abs() < 2**-10, torch.zeros_like(weight), weight)


class Fused(torch.nn.Module):
    """Several maps of one input, as one whose matrix is theirs on top of each other."""

    def __init__(self, whole, names, widths):
        super().__init__()
        self.names = names
        for name, weight in zip(names, whole.weight.data.split(widths)):
            part = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            part.weight.data = weight.clone()
            self.add_module(name, part)

    def forward(self, x):
        return torch.cat([getattr(self, name)(x) for name in self.names], -1)


def taken_apart(model):
    """Phi's fused maps as modules of their own, which adapters of each can be put on."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    kv = config.num_key_value_heads * head_dim
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.qkv_proj = Fused(attention.qkv_proj, ["q_proj", "k_proj", "v_proj"], [config.hidden_size, kv, kv])
        mlp.gate_up_proj = Fused(mlp.gate_up_proj, ["gate_proj", "up_proj"], [config.intermediate_size] * 2)


def apart(name):
    return name.replace(".qkv_proj.", ".").replace(".gate_up_proj.", ".")


def make_model(model_type, config):
    config = CONFIG_MAPPING[model_type](**{**SHARED, **config}, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            base = 0.0 if model_type.startswith("gemma") else 1.0
            value = base + 0.3 * torch.randn_like(weight)
        elif name.endswith("bias"):
            value = 0.5 * torch.randn_like(weight)
        elif "embed_tokens" in name:
            value = 0.5 * torch.randn_like(weight)
        else:
            value = 1.5 * torch.randn_like(weight) / math.sqrt(weight.shape[-1])
        weight.data = representable(value)
    return model


@torch.no_grad()
def decoded(model, tokens):
    """Logits when every token but the first is fed alone, on a cache."""
    rows, cache = [], None
    for i in range(tokens.shape[1]):
        out = model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, 0])
    return torch.stack(rows)


def response_loss(model, tokens):
    """Mean negative log-probability of what follows the prompt."""
    logits = model(tokens).logits[0, PROMPT - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, tokens[0, PROMPT:])


def with_adapter(model, tokens, directory):
    """Saves a random adapter; returns its logits, loss and gradients by PEFT's names."""
    # With the others, PEFT would adapt the tensors of experts.
    projections = PROJECTIONS[:4] if hasattr(model.config, "moe_intermediate_size") else PROJECTIONS
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=projections, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    parameters = {n: p for n, p in adapted.named_parameters() if "lora_" in n}
    for parameter in parameters.values():
        parameter.data = representable(0.2 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = None
    adapted.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    # PEFT writes a set here, in an order that changes from run to run.
    weights = directory / "adapter_model.safetensors"
    save_file({apart(n): t for n, t in load_file(weights).items()}, weights)
    path = directory / "adapter_config.json"
    written = json.loads(path.read_text())
    written["target_modules"] = projections
    # Another set, empty.
    written["target_parameters"] = written["target_parameters"] or None
    path.write_text(json.dumps(written, indent=1) + "\n")
    loss = response_loss(adapted, tokens)
    loss.backward()
    gradients = {apart(n.replace(".default", "")): p.grad.clone() for n, p in parameters.items()}
    with torch.no_grad():
        logits = adapted(tokens).logits[0]
    adapted.unload()
    return logits, loss.item(), gradients


def gguf_names(family, name):
    """The name a converter gives a tensor."""
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    gemma = family.startswith("gemma")
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm" if gemma else "ffn_norm",
        "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
        "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
        "qkv_proj": "attn_qkv", "gate_up_proj": "ffn_up",
    }
    if "experts" in name:
        return f"blk.{name.split('.')[2]}.{parts[name.split('.')[-2]]}_exps.weight"
    parts["gate"] = "ffn_gate_inp"
    words = name.split(".")  # model.layers.<i>.[self_attn.]<part>.<weight|bias>
    return f"blk.{words[2]}.{parts[words[-2]]}.{words[-1]}"


def experts_apart(state):
    """The tensors of all experts as their maps, (experts, out, in), which is how GGUF files have them."""
    apart = {}
    for name, weight in state.items():
        place, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            gates, ups = weight.chunk(2, dim=1)
            apart[f"{place}.gate_proj.weight"], apart[f"{place}.up_proj.weight"] = gates, ups
        else:
            apart[f"{name}.weight" if last == "down_proj" else name] = weight
    return apart


def expert_by_expert(state):
    """A matrix for each expert, which is how checkpoints are published."""
    apart = {}
    for name, weight in experts_apart(state).items():
        if ".experts." not in name:
            apart[name] = weight
            continue
        place, rest = name.split(".experts.")
        apart.update({f"{place}.experts.{i}.{rest}": part for i, part in enumerate(weight)})
    return apart


def experts_together(state):
    """The reverse of `experts_apart`."""
    whole = {}
    for name, weight in state.items():
        place, _, last = name.removesuffix(".weight").rpartition(".")
        if ".experts" not in name:
            whole[name] = weight
        elif last == "gate_proj":
            whole[f"{place}.gate_up_proj"] = torch.cat([weight, state[f"{place}.up_proj.weight"]], 1)
        elif last == "down_proj":
            whole[f"{place}.down_proj"] = weight
    return whole


def interleaved(rows, heads):
    """Rows of q or k as llama GGUFs order them: the halves of every head alternate."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_metadata(writer, config, family):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if family == "mistral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
        writer.add_rope_dimension_count(len(rope["short_factor"]) * 2)
    if family == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if family == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if getattr(config, "sliding_window", None) and not family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
        writer.add_attention_scale(config.query_pre_attn_scalar**-0.5)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def write_gguf(path, model, family, kind):
    """Writes a GGUF with matrices of one type; returns the weights it holds, dequantised."""
    writer = gguf.GGUFWriter(path, family)
    write_metadata(writer, model.config, family)
    kind = gguf.GGMLQuantizationType[kind]
    held = {}
    for name, weight in experts_apart(model.state_dict()).items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        data = weight.numpy()
        if family.startswith("gemma") and "norm" in name:
            data = data + 1
        if family in PERMUTED:
            heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
            if (part := name.split(".")[-2]) in heads:
                data = interleaved(data, getattr(model.config, heads[part]))
        data = np.ascontiguousarray(data)
        if data.ndim == 1 or "mlp.gate.weight" in name:
            writer.add_tensor(gguf_names(family, name), data)
            continue
        packed = gguf.quants.quantize(data, kind)
        writer.add_tensor(gguf_names(family, name), packed, raw_dtype=kind)
        # Quantisation is by row and permutation of rows, so it commutes with the permutation.
        held[name] = torch.from_numpy(
            gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind).copy()
        )
    rope = model.config.rope_parameters
    if rope.get("rope_type") == "longrope":
        for kind in ("short", "long"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))
    if rope.get("rope_type") == "llama3":
        rope = model.model.rotary_emb
        head_dim = model.config.hidden_size // model.config.num_attention_heads
        theta = model.config.rope_parameters["rope_theta"]
        plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / rope.inv_freq).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def write_sharded(directory, source, state, config):
    """The same weights in two bfloat16 shards with an index, as large models come."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    shutil.copy(source / "config.json", directory)
    names = sorted(state)
    half = len(names) // 2
    weight_map = {}
    for i, part in enumerate([names[:half], names[half:]], 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({n: state[n].to(torch.bfloat16) for n in part}, directory / file)
        weight_map.update({n: file for n in part})
    index = {"metadata": {"total_size": 2 * sum(t.numel() for t in state.values())}}
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({**index, "weight_map": weight_map}, indent=1, sort_keys=True) + "\n"
    )


def make_family(family, seed):
    model_type, config, dtype, gguf_type = FAMILIES[family]
    directory = OUT / family
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    model = make_model(model_type, config)
    tokens = torch.randint(0, model.config.vocab_size, (1, LENGTH))
    with torch.no_grad():
        logits = model(tokens).logits[0]
    step_by_step = decoded(model, tokens)
    assert torch.allclose(logits, step_by_step, atol=1e-4), family
    model.config.save_pretrained(directory)
    tied = model.config.tie_word_embeddings
    state = {n: w for n, w in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    if family == "qwen3moe":
        state = expert_by_expert(state)
    save_file({n: w.to(dtype).contiguous() for n, w in state.items()}, directory / "model.safetensors")
    if family == "llama":
        write_sharded(OUT / "llama-sharded", directory, state, model.config)
    if gguf_type:
        name = GGUF_NAMES.get(family, family)
        write_gguf(directory / "model.gguf", model, name, gguf_type)
        # These are enough for the reading of blocks.
        held = (seed <= 5 or family == "qwen3moe") and write_gguf(directory / "model-q8_0.gguf", model, name, "Q8_0")
    if family == "phi3":
        taken_apart(model)
    adapted, loss, gradients = with_adapter(model, tokens, directory / "adapter")
    golden = {"logits": logits, "decoded": step_by_step, "logits_adapter": adapted}
    if gguf_type and held:
        model.load_state_dict(experts_together(held), strict=False)
        with torch.no_grad():
            golden["logits_q8_0"] = model(tokens).logits[0]
    golden.update({f"grad.{n}": g for n, g in gradients.items()})
    save_file({n: t.contiguous() for n, t in golden.items()}, directory / "golden.safetensors")
    summary = {
        "family": family, "tokens": tokens[0].tolist(), "prompt": PROMPT, "loss": loss,
        "largest_logit": logits.abs().max().item(),
        "gradient_norms": {n: g.norm().item() for n, g in sorted(gradients.items())},
    }
    (directory / "golden.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(family, f"loss {loss:.4f}", f"largest logit {summary['largest_logit']:.3f}")


def main():
    wanted = sys.argv[1:] or list(FAMILIES)
    for seed, family in enumerate(FAMILIES, 1):
        if family in wanted:
            shutil.rmtree(OUT / family, ignore_errors=True)
            make_family(family, seed)


if __name__ == "__main__":
    main()
