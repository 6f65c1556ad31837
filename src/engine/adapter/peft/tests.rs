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

#[cfg(unix)]
#[test]
fn adapters_of_pipes_and_devices_are_refused_at_once() {
    for (file, kind) in [(CONFIG_FILE, "pipe"), (MODEL_FILE, "device")] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &encode(&small_weights(2, 1.0), "base").unwrap());
        let path = dir.path().join(file);
        std::fs::remove_file(&path).unwrap();
        if kind == "pipe" {
            let made = std::process::Command::new("mkfifo").arg(&path).status();
            assert!(made.unwrap().success());
        } else {
            std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        }
        let error = read_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(kind), "{error}");
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

fn parse_with(field: &str, value: Value) -> Result<PeftConfig, String> {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
    config[field] = value;
    PeftConfig::parse(config.to_string().as_bytes()).map_err(|e| e.to_string())
}

#[test]
fn configurations_that_mean_more_are_refused_by_field() {
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("fan_in_fan_out", json!(true)),
        ("task_type", json!("SEQ_CLS")),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_pattern", json!("blocks")),
        ("layer_replication", json!([[0, 2]])),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("use_rslora", json!("true")),
        ("lora_bias", json!(true)),
        ("lora_dropout", json!(2)),
        ("alora_invocation_tokens", json!([1, 2])),
        ("arrow_config", json!({"top_k": 3})),
        ("ensure_weight_tying", json!(true)),
        ("megatron_config", json!({"a": 1})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("velora_config", json!({"num_groups": 64})),
        ("target_parameters", json!(["mlp.experts"])),
        ("trainable_token_indices", json!([1])),
        ("use_bdlora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        // The base's weights were changed.
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("OLoRA")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("init_lora_weights", json!("invented")),
        ("corda_config", json!({"corda_method": "kpm"})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("lora_ga_config", json!({"direction": "ArB2r"})),
        // Not known.
        ("use_something_new", json!(true)),
        ("something_config", json!({"x": 1})),
        ("something_scale", json!(2.0)),
        // Numbers.
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(2.5)),
        ("r", json!(4096)),
        ("lora_alpha", json!("2")),
        ("lora_alpha", json!(0)),
        ("lora_alpha", json!(-16)),
        ("lora_alpha", json!(1e39)),
        ("rank_pattern", json!({"(": 2})),
        ("rank_pattern", json!({"q_proj": 1.5})),
        ("alpha_pattern", json!({"q_proj": 1e39})),
        ("alpha_pattern", json!({"q_proj": null})),
        ("target_modules", json!(7)),
        ("target_modules", json!([7])),
        ("exclude_modules", json!("(")),
        ("layers_to_transform", json!("0")),
    ] {
        let error = parse_with(field, value.clone()).unwrap_err();
        let written = value.to_string();
        let shown = error.contains(&written) || value.is_object() || field == "exclude_modules";
        assert!(error.contains(field) && shown, "{field} {written}: {error}");
    }
}

#[test]
fn fields_that_change_nothing_are_accepted() {
    for (field, value) in [
        (
            "auto_mapping",
            json!({"base_model_class": "LlamaForCausalLM", "unsloth_fixed": true}),
        ),
        ("bias", json!("none")),
        ("eva_config", json!({"rho": 2.0})),
        ("inference_mode", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("init_lora_weights", json!(false)),
        ("layers_pattern", json!(["layers"])),
        ("loftq_config", json!({})),
        ("lora_dropout", json!(0.05)),
        ("megatron_core", json!("megatron.core")),
        ("peft_version", json!("0.99.0")),
        ("qalora_group_size", json!(16)),
        ("revision", json!("main")),
        ("task_type", json!("CAUSAL_LM")),
        ("use_bdlora", Value::Null),
        ("use_rslora", json!(true)),
        ("use_something_new", json!(false)),
        ("something_config", Value::Null),
        ("something_list", json!([])),
    ] {
        let parsed = parse_with(field, value.clone());
        assert!(parsed.is_ok(), "{field} {value}: {parsed:?}");
    }
}

/// Python writes numbers that JSON does not have.
#[test]
fn numbers_that_json_does_not_have_are_shown() {
    for number in ["Infinity", "NaN", "-Infinity", "1e400"] {
        for text in [
            format!("{{\"peft_type\": \"LORA\", \"r\": 8, \"lora_alpha\": {number}}}"),
            format!("{{\n  \"lora_alpha\": {number},\n  \"peft_type\": \"LORA\"\n}}"),
        ] {
            let error = PeftConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("\"lora_alpha\": {number}")),
                "{error}"
            );
        }
    }
}

#[test]
fn the_configuration_and_the_tensors_name_the_same_modules() {
    let q = |layer| format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
    let tensors = {
        let names: Vec<String> = [0, 2]
            .into_iter()
            .flat_map(|l| {
                [
                    format!("{}.lora_A.weight", q(l)),
                    format!("{}.lora_B.weight", q(l)),
                ]
            })
            .collect();
        let shape = |name: &String| {
            if name.contains("lora_A") {
                [2, 3]
            } else {
                [3, 2]
            }
        };
        let entries: Vec<_> = names.iter().map(|n| (n.as_str(), shape(n), 1.0)).collect();
        tensors(&entries)
    };
    let read = |changes: Value| {
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        let config = PeftConfig::parse(config.to_string().as_bytes()).unwrap();
        decode(&tensors, &config)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    for changes in [
        json!({}),
        json!({"target_modules": null}),
        json!({"target_modules": ["q_proj"]}),
        json!({"target_modules": ["self_attn.q_proj"]}),
        json!({"target_modules": "all-linear"}),
        json!({"target_modules": ".*self_attn\\.(q|v)_proj"}),
        json!({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}),
        json!({"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}),
    ] {
        assert_eq!(read(changes.clone()), Ok(()), "{changes}");
    }
    for (changes, field, name) in [
        (
            json!({"target_modules": ["q_proj", "v_proj"]}),
            "target_modules",
            "v_proj",
        ),
        (
            json!({"target_modules": ["q_proj", "lm_head"]}),
            "target_modules",
            "lm_head",
        ),
        (
            json!({"target_modules": ["v_proj"]}),
            "target_modules",
            "q_proj",
        ),
        (json!({"target_modules": []}), "target_modules", "q_proj"),
        (
            json!({"target_modules": ["proj"]}),
            "target_modules",
            "q_proj",
        ),
        (
            json!({"target_modules": "q_proj"}),
            "target_modules",
            "q_proj",
        ),
        (
            json!({"exclude_modules": ["q_proj"]}),
            "exclude_modules",
            "q_proj",
        ),
        (
            json!({"layers_to_transform": 0}),
            "layers_to_transform",
            "layers.2",
        ),
        (
            json!({"layers_to_transform": [0, 1, 2]}),
            "layers_to_transform",
            "names 1",
        ),
    ] {
        let error = read(changes.clone()).unwrap_err();
        assert!(
            error.contains(field) && error.contains(name),
            "{changes}: {error}"
        );
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

/// A file of tensors with this header, of `size` bytes; what follows the header takes no room on the disk.
fn sparse(dir: &Path, header: &str, size: u64) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let path = dir.join(MODEL_FILE);
    std::fs::write(&path, bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(size).unwrap();
}

/// The files are so large that reading one of them would take seconds and gigabytes.
#[test]
fn a_file_is_refused_by_its_header_before_its_tensors_are_read() {
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const LARGE: u64 = 3 << 30;
    let entry = |name: &str, dtype: &str, shape: [u64; 2], end: u64| {
        json!({ name: { "dtype": dtype, "shape": shape, "data_offsets": [0, end] } }).to_string()
    };
    let wide = |header: &str| LARGE + 8 + header.len() as u64;
    let (rows, row) = (2, LARGE / 2 / 4);
    let other = entry("lm_head.weight", "F32", [rows, row], LARGE);
    let rank = entry(A, "F32", [4, row / 2], LARGE);
    let integers = entry(A, "I32", [rows, row], LARGE);
    let short = entry(A, "F32", [rows, 3], 24);
    let gap =
        json!({ A: { "dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32] } }).to_string();
    let overflow = entry(A, "F32", [u64::MAX, 2], 24);
    let cases = [
        (&*other, wide(&other), "lm_head"),
        (&rank, wide(&rank), "says 2"),
        (&integers, wide(&integers), "I32"),
        (&short, LARGE, "its header says that the file has"),
        (&short, 8 + short.len() as u64 + 23, "its header says"),
        (&gap, LARGE, "header is damaged"),
        (&overflow, LARGE, "header is damaged"),
        ("{\"", LARGE, "header is damaged"),
        ("{}", LARGE, "its header says that the file has 10 bytes"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let config: Value = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
    std::fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
    let refused = |expect: &str| {
        let error = read_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expect), "{expect}: {error}");
    };
    for (header, size, expect) in cases {
        sparse(dir.path(), header, size);
        refused(expect);
    }
    // The header's own length: more than there is, more than any header has, less than eight bytes.
    for (length, size) in [(100u64, 50), (5 << 20, LARGE), (u64::MAX, LARGE)] {
        let path = dir.path().join(MODEL_FILE);
        std::fs::write(&path, length.to_le_bytes()).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        refused("its header should have");
    }
    std::fs::write(dir.path().join(MODEL_FILE), b"short").unwrap();
    refused("less than eight bytes");
}

#[test]
fn damaged_tensors_are_named() {
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    const HEAD: &str = "base_model.model.lm_head.lora_A.weight";
    const BIAS: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias";
    const DORA: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    const SAVED: &str = "base_model.model.model.embed_tokens.weight";
    const WRONG: &str = "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight";
    type Entry = (&'static str, [usize; 2], f32);
    let cases: &[(&[Entry], &str)] = &[
        (&[(A, [2, 3], 1.0)], "lora_B.weight is missing"),
        (&[(B, [3, 2], 1.0)], "lora_A.weight is missing"),
        (&[(A, [4, 3], 1.0), (B, [3, 4], 1.0)], "says 2"),
        (&[(A, [2, 3], f32::NAN), (B, [3, 2], 1.0)], "NaN"),
        (&[(HEAD, [2, 3], 1.0)], "lm_head"),
        (
            &[(A, [2, 3], 1.0), (B, [3, 2], 1.0), (BIAS, [3, 1], 1.0)],
            "lora_B.bias",
        ),
        (
            &[(A, [2, 3], 1.0), (B, [3, 2], 1.0), (DORA, [3, 1], 1.0)],
            "magnitude",
        ),
        (
            &[(A, [2, 3], 1.0), (B, [3, 2], 1.0), (SAVED, [3, 1], 1.0)],
            "embed_tokens",
        ),
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
