//! Logits, log-probs, losses, gradients and impact scores against PyTorch + PEFT in float32 on the
//! same GGUF file. Tolerances are those of tests/golden/README.md.

use std::path::Path;
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use realign_model::packing::{Example, Packed};
use realign_model::{LoraPair, LoraSite, LoraWeights, ModelSource, Projection};
use realign_reference::{Reference, ReferenceBackend};
use serde_json::Value;

pub(crate) fn golden() -> &'static Value {
    static GOLDEN: OnceLock<Value> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let text =
            std::fs::read_to_string("tests/golden/golden.json").expect("golden.json is committed");
        serde_json::from_str(&text).expect("golden.json is JSON")
    })
}

pub(crate) fn model_path() -> String {
    let path = std::env::var("REALIGN_TEST_MODEL")
        .unwrap_or_else(|_| "models/SmolLM2-135M-Instruct.Q4_1.gguf".into());
    assert!(
        Path::new(&path).exists(),
        "{path} is missing: `make test` fetches it"
    );
    path
}

/// The default model in f32, loaded once for all tests.
pub(crate) fn dense_model() -> &'static Reference {
    dense().model()
}

/// As [`dense_model`], as a backend.
pub(crate) fn dense() -> &'static ReferenceBackend {
    static MODEL: OnceLock<ReferenceBackend> = OnceLock::new();
    MODEL.get_or_init(|| {
        let files = ModelSource::parse(&model_path())
            .and_then(ModelSource::fetch)
            .expect("the model is there");
        ReferenceBackend::new(realign_reference::load(&files).expect("it loads"))
    })
}

pub(crate) fn adapter(dir: &str) -> LoraWeights {
    let tensors = candle_core::safetensors::load(
        format!("tests/golden/{dir}/adapter_model.safetensors"),
        &Device::Cpu,
    );
    let tensors = tensors.expect("the fixture is committed");
    let mut weights = LoraWeights::default();
    for layer in 0..30 {
        for projection in [Projection::Q, Projection::V] {
            let get = |part: &str| {
                tensors[&format!(
                    "base_model.model.model.layers.{layer}.self_attn.{}.lora_{part}.weight",
                    projection.name()
                )]
                    .clone()
            };
            weights.sites.insert(
                LoraSite { layer, projection },
                LoraPair {
                    a: get("A"),
                    b: get("B"),
                    scale: 2.0,
                },
            );
        }
    }
    weights
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .expect("an id list")
        .iter()
        .map(|v| v.as_u64().expect("an id") as u32)
        .collect()
}

/// A golden pair as an example: response 0 is the chosen one.
pub(crate) fn example(sample: &Value) -> Example {
    let boundary = sample["boundary"].as_u64().expect("boundary") as usize;
    let (chosen, rejected) = (ids(&sample["chosen_ids"]), ids(&sample["rejected_ids"]));
    Example::new(
        chosen[..boundary].to_vec(),
        vec![chosen[boundary..].to_vec(), rejected[boundary..].to_vec()],
    )
}

pub(crate) fn examples(key: &str) -> Vec<Example> {
    golden()[key]
        .as_array()
        .expect("samples")
        .iter()
        .map(example)
        .collect()
}

fn close(got: f64, expected: &Value, tolerance: f64, what: &str) {
    let expected = expected
        .as_f64()
        .unwrap_or_else(|| panic!("{what}: golden value missing"));
    assert!(
        (got - expected).abs() <= tolerance,
        "{what}: got {got}, PyTorch has {expected}"
    );
}

#[test]
fn response_logprobs_agree_with_and_without_the_adapter() {
    let samples = golden()["samples"].as_array().unwrap();
    let packed = Packed::new(&examples("samples"));
    for (key, weights) in [
        ("logp_ref", None),
        ("logp_adapter", Some(adapter("adapter"))),
    ] {
        let got = dense_model()
            .response_logprobs(&packed, weights.as_ref())
            .unwrap();
        for (sample, got) in samples.iter().zip(got) {
            let id = sample["id"].as_str().unwrap();
            close(
                got[0],
                &golden()[key][id]["chosen"],
                2e-3,
                &format!("{key} {id} chosen"),
            );
            close(
                got[1],
                &golden()[key][id]["rejected"],
                2e-3,
                &format!("{key} {id} rejected"),
            );
        }
    }
}

#[test]
fn top_logits_agree_at_the_first_and_the_last_prompt_position() {
    let prompt = examples("samples")[0].prompt.clone();
    for (key, weights) in [("ref", None), ("adapter", Some(adapter("adapter")))] {
        for (position, len) in [("position_0", 1), ("last_prompt_position", prompt.len())] {
            let expected = &golden()["logits"][key][position];
            let packed = Packed::new([&Example::new(prompt[..len].to_vec(), vec![vec![2]])]);
            let hidden = dense_model()
                .response_hidden(&packed, weights.as_ref())
                .unwrap();
            let logits: Tensor = dense_model().logits(&hidden).unwrap().squeeze(0).unwrap();
            let logits = logits.to_vec1::<f32>().unwrap();
            for (id, value) in ids(&expected["ids"])
                .into_iter()
                .zip(expected["logits"].as_array().unwrap())
            {
                close(
                    f64::from(logits[id as usize]),
                    value,
                    1e-3,
                    &format!("{key} {position} token {id}"),
                );
            }
        }
    }
}
