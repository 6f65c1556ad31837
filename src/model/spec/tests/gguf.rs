//! GGUF metadata as converters of several years wrote it.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Shape;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value, VersionedMagic};

use super::super::*;

/// The header of a small model of an architecture with more keys on top.
fn header(architecture: &str, more: &[(&str, Value)]) -> Content {
    let sizes = [
        ("embedding_length", 32),
        ("block_count", 6),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 128),
    ];
    let mut metadata: HashMap<String, Value> = sizes
        .into_iter()
        .map(|(key, size)| (format!("{architecture}.{key}"), Value::U32(size)))
        .collect();
    let eps = format!("{architecture}.attention.layer_norm_rms_epsilon");
    metadata.insert(eps, Value::F32(1e-6));
    let name = Value::String(architecture.into());
    metadata.insert("general.architecture".into(), name);
    for (key, value) in more {
        metadata.insert(format!("{architecture}.{key}"), value.clone());
    }
    let embedding = TensorInfo {
        ggml_dtype: GgmlDType::F32,
        shape: Shape::from((64, 32)),
        offset: 0,
    };
    Content {
        magic: VersionedMagic::GgufV3,
        metadata,
        tensor_infos: HashMap::from([("token_embd.weight".into(), embedding)]),
        tensor_data_offset: 0,
    }
}

fn read(architecture: &str, more: &[(&str, Value)]) -> Result<ModelSpec> {
    ModelSpec::from_gguf(Path::new("tiny.gguf"), &header(architecture, more))
}

#[test]
fn gemma_2_files_without_the_newer_keys_have_their_values() {
    let spec = read("gemma2", &[]).unwrap();
    assert_eq!(spec.variant.attention_cap, Some(50.0));
    assert_eq!(spec.variant.logit_cap, Some(30.0));
    assert_eq!(spec.variant.windows[..2], [Some(4096), None]);
    // The file already stores 1 + w.
    assert!(spec.variant.output_norms && !spec.variant.norm_offset);
}

#[test]
fn the_largest_gemmas_scale_scores_by_hidden_over_heads() {
    for (architecture, layers, width) in [
        ("gemma2", 46, Some(8.0)),
        ("gemma3", 62, Some(8.0)),
        ("gemma3", 26, None),
    ] {
        let count = ("block_count", Value::U32(layers));
        let unset = ("attention.scale", Value::F32(0.0));
        let spec = read(architecture, &[count, unset]).unwrap();
        assert_eq!(spec.variant.attention_scale_width, width, "{architecture}");
    }
    let scaled = read("gemma3", &[("attention.scale", Value::F32(0.25))]).unwrap();
    assert_eq!(scaled.attention(0).scale, 0.25);
}

#[test]
fn window_patterns_are_listed_counted_or_the_familys() {
    let window = ("attention.sliding_window", Value::U32(8));
    let pattern = |value| ("attention.sliding_window_pattern", value);
    let full = |more: &[(&str, Value)]| -> Vec<usize> {
        let windows = read("gemma3", more).unwrap().variant.windows;
        (0..6).filter(|i| windows[*i].is_none()).collect()
    };
    assert_eq!(full(std::slice::from_ref(&window)), [5]);
    assert_eq!(full(&[window.clone(), pattern(Value::U32(3))]), [2, 5]);
    let listed = [true, false, true, true, true, true];
    let listed = Value::Array(listed.into_iter().map(Value::Bool).collect());
    assert_eq!(full(&[window.clone(), pattern(listed)]), [1]);
    let short = pattern(Value::Array(vec![Value::Bool(true)]));
    assert!(read("gemma3", &[window, short]).is_err());
}

#[test]
fn rotary_scaling_is_read_or_refused_by_key() {
    let kind = |name: &str| ("rope.scaling.type", Value::String(name.into()));
    let factor = ("rope.scaling.factor", Value::F32(4.0));
    let linear = RopeScaling::Linear { factor: 4.0 };
    let scaling = |more: &[(&str, Value)]| read("llama", more).unwrap().rope.scaling;
    assert_eq!(scaling(&[kind("linear"), factor.clone()]), linear);
    assert_eq!(scaling(&[("rope.scale_linear", Value::F32(4.0))]), linear);
    assert_eq!(scaling(&[kind("none"), factor.clone()]), RopeScaling::None);
    let cases = [
        (vec![kind("dynamic"), factor], "llama.rope.scaling.type"),
        (vec![kind("linear")], "llama.rope.scaling.factor"),
        (
            vec![("rope.dimension_count", Value::U32(4))],
            "llama.rope.dimension_count",
        ),
        (
            vec![("embedding_length", Value::String("wide".into()))],
            "llama.embedding_length",
        ),
    ];
    for (more, key) in cases {
        let error = read("llama", &more).unwrap_err().to_string();
        assert!(
            error.contains("tiny.gguf") && error.contains(key),
            "{error}"
        );
    }
}

#[test]
fn newer_families_are_read_by_their_keys() {
    let granite = [
        ("attention.scale", Value::F32(0.0625)),
        ("embedding_scale", Value::F32(12.0)),
        ("residual_scale", Value::F32(0.5)),
        ("logit_scale", Value::F32(8.0)),
    ];
    let spec = read("granite", &granite).unwrap();
    assert_eq!(spec.variant.embedding_scale, Some(24.0));
    assert_eq!(spec.attention(0).scale, 0.0625);
    assert_eq!(spec.variant.logit_divisor, Some(8.0));
    let spec = read("smollm3", &[]).unwrap();
    let still = [false, false, false, true, false, false];
    assert_eq!(spec.variant.local_rope_layers, still);
    let window = ("attention.sliding_window", Value::U32(8));
    let spec = read("llama", std::slice::from_ref(&window)).unwrap();
    assert_eq!(spec.variant.windows, [Some(8); 6]);
    let none = ("attention.sliding_window", Value::U32(0));
    let phi = [none, ("rope.dimension_count", Value::U32(6))];
    let spec = read("phi3", &phi).unwrap();
    assert_eq!((spec.rotary_width(), spec.variant.windows.len()), (6, 0));
    let ministral = [
        ("rope.scaling.type", Value::String("yarn".into())),
        ("rope.scaling.factor", Value::F32(4.0)),
        ("rope.scaling.original_context_length", Value::U32(32)),
        ("rope.scaling.yarn_log_multiplier", Value::F32(1.0)),
        ("attention.temperature_scale", Value::F32(0.1)),
    ];
    let spec = read("mistral3", &ministral).unwrap();
    // Beyond its original context it scales scores by their position.
    assert_eq!((spec.rope.amplitude(), spec.max_position), (1.0, 32));
}

#[test]
fn experts_are_refused_under_the_name_of_a_dense_family() {
    let experts = [("expert_count", Value::U32(8))];
    let error = read("llama", &experts).unwrap_err().to_string();
    assert!(
        error.contains("llama.expert_count") && error.contains("8 experts"),
        "{error}"
    );
}

#[test]
fn experts_of_qwen_3_are_read() {
    let experts = [
        ("expert_count", Value::U32(8)),
        ("expert_used_count", Value::U32(2)),
        ("expert_feed_forward_length", Value::U32(16)),
    ];
    let spec = read("qwen3moe", &experts).unwrap();
    let mixture = spec.mixture(5).unwrap();
    assert_eq!((mixture.experts, mixture.used, mixture.inner), (8, 2, 16));
    assert!(mixture.normalised && spec.variant.qk_norm);
    let plain = [&experts[..], &[("expert_weights_norm", Value::Bool(false))]].concat();
    let plain = read("qwen3moe", &plain).unwrap();
    assert!(!plain.mixture(0).unwrap().normalised);
    for (suffix, value) in [
        ("expert_count", Value::U32(0)),
        ("expert_used_count", Value::U32(9)),
        ("expert_shared_count", Value::U32(1)),
        ("expert_gating_func", Value::U32(2)),
        ("expert_weights_scale", Value::F32(2.5)),
        ("expert_weights_norm", Value::U32(1)),
    ] {
        let more = [&experts[..], &[(suffix, value)]].concat();
        let error = read("qwen3moe", &more).unwrap_err().to_string();
        let named = error.contains(&format!("qwen3moe.{suffix}"));
        assert!(named || error.contains("num_experts_per_tok"), "{error}");
    }
    let error = read("qwen3moe", &experts[..2]).unwrap_err().to_string();
    assert!(error.contains("expert_feed_forward_length"), "{error}");
}
