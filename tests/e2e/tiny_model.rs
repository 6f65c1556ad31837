//! A random Llama model with one token per byte, so small that every stage takes only seconds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 128;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const BYTES: usize = 256;
const VOCABULARY: usize = BYTES + 2;
/// Longest prompt and completion together, in tokens.
pub(crate) const MAX_LEN: usize = 2048;

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
    + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The model's directory; written once per test run, with the same bytes every time.
pub(crate) fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = parent.join(format!("tiny-model-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        write_json(&dir.join("config.json"), &config());
        write_json(&dir.join("tokenizer.json"), &tokenizer());
        let conventions = json!({ "eos_token": "<|im_end|>", "chat_template": TEMPLATE });
        write_json(&dir.join("tokenizer_config.json"), &conventions);
        candle_core::safetensors::save(&weights(), dir.join("model.safetensors")).unwrap();
        dir
    })
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": MAX_LEN, "hidden_act": "silu",
        "tie_word_embeddings": false, "eos_token_id": BYTES + 1,
    })
}

/// Byte-level BPE without merges: the characters that represent bytes, then two control tokens.
fn tokenizer() -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocabulary: Map<String, Value> = alphabet
        .iter()
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    let control = ["<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = control
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({
                "id": BYTES + i, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

fn weights() -> HashMap<String, Tensor> {
    let mut random = ChaCha8Rng::seed_from_u64(20261123);
    let mut uniform = |rows: usize, columns: usize, width: f32| -> Vec<f32> {
        (0..rows * columns)
            .map(|_| random.random_range(-width..width))
            .collect()
    };
    let matrix = |values: Vec<f32>, rows: usize, columns: usize| {
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let ones = || Tensor::ones(HIDDEN, candle_core::DType::F32, &Device::Cpu).unwrap();
    let kv = HIDDEN / HEADS * KV_HEADS;
    let maps = [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", kv, HIDDEN),
        ("self_attn.v_proj", kv, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", HIDDEN, INTERMEDIATE),
    ];
    let mut tensors = HashMap::new();
    for layer in 0..LAYERS {
        for (name, rows, columns) in maps {
            let values = uniform(rows, columns, 0.3);
            let name = format!("model.layers.{layer}.{name}.weight");
            tensors.insert(name, matrix(values, rows, columns));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.insert(format!("model.layers.{layer}.{name}.weight"), ones());
        }
    }
    tensors.insert("model.norm.weight".into(), ones());
    let embedding = uniform(VOCABULARY, HIDDEN, 1.0);
    tensors.insert(
        "model.embed_tokens.weight".into(),
        matrix(embedding, VOCABULARY, HIDDEN),
    );
    // Control tokens keep a logit of 0, which no adapter can change: some byte always wins, so a
    // greedy answer has exactly as many tokens as were asked for.
    let mut head = uniform(VOCABULARY, HIDDEN, 0.3);
    head[BYTES * HIDDEN..].fill(0.0);
    tensors.insert("lm_head.weight".into(), matrix(head, VOCABULARY, HIDDEN));
    tensors
}
