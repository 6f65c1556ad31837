//! The kinds of weight files, and what is said about broken ones.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use realign_cpu::CpuBackend;
use realign_model::{KvType, LoadedModel, ModelSource};
use serde_json::Value;

use super::{FAMILIES, Golden, QUANTISED, files, fixture, load, packed, served, whole};

#[test]
fn unquantised_gguf_files_hold_the_same_models() {
    for family in FAMILIES {
        if ["ministral", "qwen3moe-plain"].contains(&family) {
            continue;
        }
        let golden = Golden::of(family);
        let model = load(&fixture(family).join("model.gguf"));
        let logits = whole(&model, &golden.tokens, None);
        golden.check(&logits, "logits", 1e-4, "gguf");
        let adapter = golden.adapter();
        let adapted = whole(&model, &golden.tokens, Some(&adapter));
        golden.check(&adapted, "logits_adapter", 1e-4, "gguf");
    }
}

#[test]
fn eight_bit_gguf_files_agree_with_their_dequantised_weights() {
    for family in QUANTISED {
        let golden = Golden::of(family);
        let model = load(&fixture(family).join("model-q8_0.gguf"));
        let exact = whole(&model, &golden.tokens, None);
        golden.check(&exact, "logits_q8_0", 1e-4, "dequantised");
        // Served products round activations to 8 bits too.
        let packed = packed(&fixture(family).join("model-q8_0.gguf"));
        let served = served(
            (&packed, KvType::default()),
            &golden.tokens,
            &[golden.tokens.len()],
            None,
        );
        golden.check(&served, "logits_q8_0", 0.1, "8-bit activations");
    }
}

#[test]
fn safetensors_quantised_while_they_are_loaded_agree_with_the_file_of_eight_bits() {
    let eight = Some("q8_0".parse().unwrap());
    for family in QUANTISED {
        let golden = Golden::of(family);
        let plain = files(&fixture(family));
        let quantised = plain.clone().quantised(eight).unwrap();
        assert_ne!(quantised.base_hash().unwrap(), plain.base_hash().unwrap());
        let model = realign_reference::load(&quantised).unwrap();
        let exact = whole(&model, &golden.tokens, None);
        // Ties are rounded otherwise than in the file.
        golden.check(&exact, "logits_q8_0", 0.01, "quantised while loading");
        let packed = CpuBackend::new(realign_cpu::load(&quantised).unwrap());
        let rows = [golden.tokens.len()];
        let served = served((&packed, KvType::default()), &golden.tokens, &rows, None);
        golden.check(&served, "logits_q8_0", 0.1, "8-bit activations");
        let error = files(&fixture(family).join("model-q8_0.gguf")).quantised(eight);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("leave engine.isq out")
        );
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let golden = Golden::of("llama");
    let model = load(&fixture("llama-sharded"));
    let logits = whole(&model, &golden.tokens, None);
    golden.check(&logits, "logits", 1e-4, "sharded bf16");
}

/// A copy of a fixture's files that a test may break.
pub(super) fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::remove_file(dir.path().join("golden.safetensors")).ok();
    dir
}

fn error_of(path: &Path) -> String {
    let loaded = ModelSource::parse(&path.to_string_lossy())
        .and_then(ModelSource::fetch)
        .and_then(|files| realign_cpu::load(&files));
    let error = loaded.expect_err("a broken file does not load");
    error.to_string()
}

fn check_error(path: &Path, says: &[&str]) {
    let error = error_of(path);
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

fn truncate(path: &Path, keep: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(keep).unwrap();
}

/// Rewrites a JSON file.
pub(super) fn edit_json(path: &Path, edit: impl Fn(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn truncated_files_are_named() {
    let dir = copy("llama");
    let safetensors = dir.path().join("model.safetensors");
    truncate(&safetensors, 100_000);
    check_error(dir.path(), &["model.safetensors", "truncated"]);
    truncate(&safetensors, 4);
    check_error(dir.path(), &["model.safetensors"]);
    let gguf = dir.path().join("model.gguf");
    truncate(&gguf, 100_000);
    check_error(&gguf, &["model.gguf", "truncated", "tensor `"]);
    truncate(&gguf, 300);
    check_error(&gguf, &["model.gguf", "not a readable GGUF file"]);
    std::fs::write(&gguf, "<html>not found</html>").unwrap();
    check_error(&gguf, &["model.gguf", "not a readable GGUF file"]);
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let dir = copy("qwen3");
    let config = dir.path().join("config.json");
    edit_json(&config, |c| c["intermediate_size"] = 96.into());
    check_error(
        dir.path(),
        &["model.safetensors", "mlp.gate_proj", "[64, 32]", "[96, 32]"],
    );
    edit_json(&config, |c| {
        c["intermediate_size"] = 64.into();
        c["num_hidden_layers"] = 5.into();
        c["layer_types"] = Value::Null;
    });
    check_error(dir.path(), &["model.layers.4.", "missing"]);
    edit_json(&config, |c| c["model_type"] = "mamba2".into());
    check_error(dir.path(), &["config.json", "model_type", "supported"]);
    std::fs::write(&config, "{").unwrap();
    check_error(dir.path(), &["config.json", "JSON"]);
    std::fs::remove_file(&config).unwrap();
    check_error(dir.path(), &["config.json"]);
}

#[test]
fn experts_that_are_missing_or_misshapen_are_named() {
    let dir = copy("qwen3moe");
    let config = dir.path().join("config.json");
    let set = |field: &str, value: Value| edit_json(&config, |c| c[field] = value.clone());
    set("num_local_experts", 5.into());
    check_error(dir.path(), &["mlp.gate.weight", "[4, 32]", "[5, 32]"]);
    set("num_local_experts", 4.into());
    set("moe_intermediate_size", 48.into());
    check_error(
        dir.path(),
        &["mlp.experts.0.gate_proj.weight", "[32, 32]", "[48, 32]"],
    );
    set("moe_intermediate_size", 32.into());
    set("mlp_only_layers", Value::Array(vec![]));
    check_error(dir.path(), &["model.layers.1.mlp.gate.weight", "missing"]);
    set("mlp_only_layers", "none".into());
    check_error(dir.path(), &["mlp_only_layers", "list"]);
    let dir = copy("qwen3moe-plain");
    let config = dir.path().join("config.json");
    edit_json(&config, |c| c["moe_intermediate_size"] = 8.into());
    check_error(
        dir.path(),
        &["mlp.experts.gate_up_proj", "[4, 32, 32]", "[4, 16, 32]"],
    );
}

#[test]
fn a_malformed_shard_index_says_what_is_wrong() {
    let dir = copy("llama-sharded");
    let index = dir.path().join("model.safetensors.index.json");
    let shard = "model-00002-of-00002.safetensors";
    let norm = "model.norm.weight";
    edit_json(&index, |v| v["weight_map"][norm] = "../elsewhere".into());
    check_error(dir.path(), &["index.json", norm, "../elsewhere"]);
    edit_json(&index, |v| {
        v["weight_map"][norm] = "model-00001-of-00002.safetensors".into()
    });
    check_error(
        dir.path(),
        &["index.json", norm, "model-00001-of-00002.safetensors"],
    );
    edit_json(&index, |v| v["weight_map"][norm] = shard.into());
    load(dir.path());
    std::fs::remove_file(dir.path().join(shard)).unwrap();
    check_error(dir.path(), &["index.json", shard]);
    std::fs::write(&index, "{}").unwrap();
    check_error(dir.path(), &["index.json", "weight_map"]);
    std::fs::write(&index, "[").unwrap();
    check_error(dir.path(), &["index.json", "JSON"]);
}

#[test]
fn a_tokenizer_of_another_model_is_refused_before_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(crate::e2e::tiny_model::directory()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    edit_json(&dir.path().join("config.json"), |c| {
        c["vocab_size"] = 200.into()
    });
    let error = LoadedModel::load(&*dir.path().to_string_lossy(), &realign_cpu::Cpu).unwrap_err();
    let error = error.to_string();
    let place = dir.path().display().to_string();
    assert!(
        error.contains(&place) && error.contains("tokenizer has 258 tokens"),
        "{error}"
    );
    assert!(error.contains("200 rows"), "{error}");
}

#[test]
fn an_unknown_gguf_architecture_is_named_with_those_that_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let architecture = gguf_file::Value::String("rwkv7".into());
    let tensor = Tensor::zeros((4, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
    gguf_file::write(
        &mut std::fs::File::create(&path).unwrap(),
        &[("general.architecture", &architecture)],
        &[("token_embd.weight", &tensor)],
    )
    .unwrap();
    check_error(
        &path,
        &["other.gguf", "general.architecture", "rwkv7", "gemma3"],
    );
}
