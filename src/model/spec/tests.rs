//! Configurations as the families' own repositories have them, and what is wrong with others.

mod families;
mod gguf;

use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A small configuration of a family with more fields on top.
fn config(model_type: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: &Value) -> Result<ModelSpec> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    ModelSpec::from_config_json(&path)
}

#[test]
fn llama_3_scaling_keeps_short_waves_and_stretches_long_ones() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let flat = read(&config(
        "llama",
        json!({ "rope_theta": 500000.0, "rope_scaling": scaling }),
    ));
    let flat = flat.unwrap();
    let mut nested = scaling.clone();
    nested["rope_theta"] = json!(500000.0);
    let nested = read(&config("llama", json!({ "rope_parameters": nested }))).unwrap();
    assert_eq!(flat, nested);
    let plain = RopeSpec::plain(500_000.0).frequencies(8);
    let scaled = flat.rope.frequencies(8);
    assert_eq!(scaled[0], plain[0]);
    assert_eq!(scaled[3], plain[3] / 8.0);
}

#[test]
fn linear_scaling_and_listed_divisors_divide() {
    let scaling = json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } });
    let spec = read(&config("llama", scaling)).unwrap();
    let plain = RopeSpec::plain(10_000.0).frequencies(8);
    let divided: Vec<f32> = plain.iter().map(|f| f / 4.0).collect();
    assert_eq!(spec.rope.frequencies(8), divided);
    let listed = RopeSpec {
        theta: 10_000.0,
        scaling: RopeScaling::Divisors(vec![4.0; 4]),
    };
    assert_eq!(listed.frequencies(8), divided);
    assert!(listed.check(16).is_err());
}

#[test]
fn qwen_differs_by_biases_and_head_norms() {
    let qwen2 = read(&config(
        "qwen2",
        json!({ "use_sliding_window": false, "sliding_window": 4 }),
    ));
    let qwen2 = qwen2.unwrap();
    assert!(qwen2.qkv_bias && !qwen2.variant.output_bias && !qwen2.variant.qk_norm);
    assert_eq!(qwen2.attention(3), AttentionShape::full(8));
    let windowed =
        json!({ "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 3 });
    let windowed = read(&config("qwen2", windowed)).unwrap();
    assert_eq!(windowed.variant.windows, [None, None, None, Some(4)]);
    let qwen3 = read(&config(
        "qwen3",
        json!({ "head_dim": 16, "attention_bias": false }),
    ))
    .unwrap();
    assert!(qwen3.variant.qk_norm && !qwen3.qkv_bias);
    assert_eq!(qwen3.projection_shape(Projection::O), (64, 32));
}

#[test]
fn gemma_2_alternates_windows_and_caps_scores_and_logits() {
    let gemma = json!({
        "head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 8,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh",
    });
    let spec = read(&config("gemma2", gemma)).unwrap();
    let variant = &spec.variant;
    assert_eq!(variant.windows, [Some(8), None, Some(8), None]);
    assert_eq!(variant.embedding_scale, Some(32f64.sqrt()));
    assert!(variant.norm_offset && variant.output_norms && spec.tied_embeddings);
    assert_eq!(variant.activation, Activation::GeluTanh);
    let expected = AttentionShape {
        head_dim: 8,
        scale: 0.25,
        cap: Some(50.0),
        window: Some(8),
        local_rope: false,
    };
    assert_eq!(spec.attention(0), expected);
    assert_eq!(variant.logit_cap, Some(30.0));
}

#[test]
fn gemma_3_has_two_rotations_and_may_leave_out_defaults() {
    // The fields that the 4B model's file has, and no others.
    let text = json!({
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
        "sliding_window": 1024,
    });
    let multimodal = json!({ "model_type": "gemma3", "text_config": text, "vision_config": {} });
    let spec = read(&multimodal).unwrap();
    assert_eq!((spec.heads, spec.kv_heads, spec.head_dim), (8, 4, 256));
    assert_eq!(spec.architecture, "gemma3");
    let full: Vec<usize> = (0..34)
        .filter(|i| spec.variant.windows[*i].is_none())
        .collect();
    assert_eq!(full, [5, 11, 17, 23, 29]);
    assert_eq!(spec.rope.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(spec.rope.theta, 1e6);
    assert_eq!(spec.variant.local_rope, Some(RopeSpec::plain(1e4)));
    assert!(spec.variant.qk_norm && spec.variant.attention_cap.is_none());

    // The same, as newer files nest it.
    let mut newer = text;
    newer["rope_scaling"] = Value::Null;
    newer["layer_types"] = (0..34)
        .map(|i| {
            if full.contains(&i) {
                "full_attention"
            } else {
                "sliding_attention"
            }
        })
        .collect();
    newer["rope_parameters"] = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
    });
    assert_eq!(read(&newer).unwrap(), spec);
}

#[test]
fn a_wrong_field_is_named_with_its_file() {
    let cases = [
        (
            json!({ "model_type": "mamba" }),
            "model_type",
            "supported architectures",
        ),
        (json!({ "hidden_size": null }), "hidden_size", "missing"),
        (
            json!({ "vocab_size": "many" }),
            "vocab_size",
            "whole number",
        ),
        (
            json!({ "num_key_value_heads": 3 }),
            "num_key_value_heads",
            "divide",
        ),
        (json!({ "head_dim": 7 }), "head_dim", "even"),
        (json!({ "num_hidden_layers": 0 }), "(sizes)", "at least 1"),
        (json!({ "num_key_value_heads": 0 }), "(sizes)", "at least 1"),
        (
            json!({ "num_attention_heads": 0 }),
            "num_attention_heads",
            "do not divide",
        ),
        (
            json!({ "num_attention_heads": 5 }),
            "num_attention_heads",
            "do not divide",
        ),
        (
            json!({ "num_hidden_layers": u64::MAX }),
            "num_hidden_layers",
            "limit",
        ),
        (json!({ "vocab_size": u64::MAX }), "(sizes)", "limit"),
        (json!({ "head_dim": 1u64 << 63 }), "(sizes)", "limit"),
        (
            json!({ "hidden_size": 1 << 20, "intermediate_size": 1 << 24, "num_hidden_layers": 4096 }),
            "(sizes)",
            "weights",
        ),
        (
            json!({ "max_position_embeddings": u64::MAX }),
            "(sizes)",
            "context",
        ),
        (json!({ "rope_theta": 0 }), "rope", "positive"),
        (json!({ "hidden_act": "relu" }), "hidden_act", "silu"),
        (json!({ "mlp_bias": true }), "mlp_bias", "false is"),
        (
            json!({ "rope_scaling": { "rope_type": "dynamic" } }),
            "rope_type",
            "llama3",
        ),
        (
            json!({ "rope_scaling": { "rope_type": "linear" } }),
            "factor",
            "missing",
        ),
        (json!({ "rope_theta": -1.0 }), "rope", "positive"),
        (
            json!({ "partial_rotary_factor": 0.5 }),
            "partial_rotary_factor",
            "whole heads",
        ),
        (
            json!({ "sliding_window": 4, "layer_types": ["full_attention"] }),
            "layer_types",
            "4 entries",
        ),
        (
            json!({ "sliding_window": 0, "layer_types": vec!["sliding_attention"; 4] }),
            "sliding_window",
            "at least 1",
        ),
    ];
    for (more, field, says) in cases {
        let error = read(&config("llama", more)).unwrap_err().to_string();
        assert!(
            error.contains("config.json") && error.contains(&format!("`{field}`")),
            "{error}"
        );
        assert!(error.contains(says), "{error}");
    }
    let missing = ModelSpec::from_config_json(Path::new("/none/config.json")).unwrap_err();
    assert!(missing.to_string().contains("/none/config.json"));
}
