use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::adapter::test_support::small_weights;

fn golden(name: &str) -> PathBuf {
    realign_model::test_support::root()
        .join("tests/golden")
        .join(name)
}

fn write(dir: &Path, files: &PeftFiles) {
    std::fs::write(dir.join(CONFIG_FILE), &files.config).unwrap();
    std::fs::write(dir.join(MODEL_FILE), &files.model).unwrap();
}

#[test]
fn reads_what_peft_wrote() {
    for name in ["adapter", "adapter_step3"] {
        let adapter = read_dir(&golden(name)).unwrap();
        assert_eq!(adapter.weights.sites.len(), 60);
        let sites = adapter.weights.sites.values();
        let parameters: usize = sites.map(|p| p.a.elem_count() + p.b.elem_count()).sum();
        assert_eq!(parameters, 460_800);
        let v = adapter.weights.get(29, Projection::V).unwrap();
        assert_eq!((v.a.dims(), v.b.dims()), (&[8, 576][..], &[192, 8][..]));
        assert_eq!(v.scale, 2.0);
    }
}

#[test]
fn writes_the_same_bytes_twice_and_reads_them_back() {
    let adapter = read_dir(&golden("adapter")).unwrap();
    let files = encode(&adapter.weights, "base").unwrap();
    assert_eq!(files, encode(&adapter.weights, "base").unwrap());
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files);
    let again = read_dir(dir.path()).unwrap();
    assert_eq!(again.config.base_model.as_deref(), Some("base"));
    for (site, pair) in &adapter.weights.sites {
        let read = &again.weights.sites[site];
        assert_eq!(f32_bytes(&pair.a).unwrap(), f32_bytes(&read.a).unwrap());
        assert_eq!(f32_bytes(&pair.b).unwrap(), f32_bytes(&read.b).unwrap());
    }
}

#[test]
fn sites_of_different_rank_and_scale_survive() {
    let mut weights = small_weights(2, 1.0);
    let other = small_weights(4, 0.75);
    let site = *other.sites.keys().last().unwrap();
    weights.sites.insert(site, other.sites[&site].clone());
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &encode(&weights, "base").unwrap());
    let read = read_dir(dir.path()).unwrap().weights;
    for (site, pair) in &weights.sites {
        assert_eq!(read.sites[site].scale, pair.scale);
        assert_eq!(read.sites[site].a.dims(), pair.a.dims());
    }
}

#[test]
fn rslora_and_patterns_set_the_scale() {
    let config = json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true,
        "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"layers.1.self_attn.q_proj": 2}
    });
    let config = PeftConfig::parse(config.to_string().as_bytes()).unwrap();
    for (path, rank, scale) in [
        ("model.layers.0.self_attn.v_proj", 4, 4.0),
        ("model.layers.0.self_attn.q_proj", 16, 2.0),
        ("model.layers.1.self_attn.q_proj", 16, 0.5),
        ("model.layers.11.self_attn.q_proj", 16, 2.0),
    ] {
        assert_eq!(
            (config.rank(path), config.scale(path)),
            (rank, scale),
            "{path}"
        );
    }
}

#[test]
fn configurations_that_mean_more_are_refused_by_field() {
    let base = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("r", json!(0)),
        ("lora_alpha", json!("2")),
        ("rank_pattern", json!({"(": 2})),
    ] {
        let mut config = base.clone();
        config[field] = value;
        let error = PeftConfig::parse(config.to_string().as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}

/// Encodes two-dimensional f32 tensors of ones (or `fill`).
fn tensors(entries: &[(&str, [usize; 2], f32)]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = entries
        .iter()
        .map(|(_, shape, fill)| fill.to_le_bytes().repeat(shape[0] * shape[1]))
        .collect();
    let views = entries.iter().zip(&data).map(|((name, shape, _), bytes)| {
        (
            *name,
            TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn damaged_tensors_are_named() {
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    const HEAD: &str = "base_model.model.lm_head.lora_A.weight";
    const WRONG: &str = "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight";
    type Entry = (&'static str, [usize; 2], f32);
    let cases: &[(&[Entry], &str)] = &[
        (&[(A, [2, 3], 1.0)], "lora_B.weight is missing"),
        (&[(B, [3, 2], 1.0)], "lora_A.weight is missing"),
        (&[(A, [4, 3], 1.0), (B, [3, 4], 1.0)], "says 2"),
        (&[(A, [2, 3], f32::NAN), (B, [3, 2], 1.0)], "NaN"),
        (&[(HEAD, [2, 3], 1.0)], "lm_head"),
        (&[(WRONG, [2, 3], 1.0)], "mlp.q_proj"),
        (&[], "no LoRA tensors"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let config: Value = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
    std::fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    for (entries, expect) in cases {
        std::fs::write(dir.path().join(MODEL_FILE), tensors(entries)).unwrap();
        let error = read_dir(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(expect) && error.contains(MODEL_FILE),
            "{expect}: {error}"
        );
    }
    std::fs::write(dir.path().join(MODEL_FILE), b"nonsense").unwrap();
    let error = read_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("not a safetensors file"), "{error}");
}
