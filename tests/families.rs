//! Every model family against PyTorch + PEFT on tiny random models: whole sequences, paged
//! decoding in chunks and token by token, LoRA gradients, and every kind of weight file.
//! tests/golden/make_families.py makes the fixtures.

mod files;
mod kept;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use realign_cpu::{CpuBackend, CpuExecutor};
use realign_engine::adapter::peft;
use realign_model::packing::{Example, Packed};
use realign_model::{
    AdapterSpan, BLOCK_TOKENS, Backend, KvType, LoraPair, LoraSite, LoraWeights, ModelFiles,
    ModelSource, PagedSequence, Projection, Segment, Step,
};
use realign_reference::{AdapterRows, Batch, Reference};
use serde_json::Value;

/// With a GGUF file of eight bits.
const QUANTISED: [&str; 6] = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "qwen3moe"];
pub(crate) const FAMILIES: [&str; 14] = [
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "mistral",
    // No converter writes a GGUF file of it.
    "ministral",
    "ministral3",
    "smollm3",
    "granite",
    "phi3",
    "llama-yarn",
    "qwen3moe",
    // Its files have the experts of a layer together; no GGUF file can say that weights are not normalised.
    "qwen3moe-plain",
];

/// Elements of the KV cache, and how far logits may be from PyTorch's with them.
const CACHES: [(&str, KvType, f32); 3] = [
    ("f32", KvType::F32, 1e-4),
    ("f16", KvType::F16, 1e-2),
    // Eight bits of random models, whose scores are large.
    ("q8", KvType::Q8, 2.5e-1),
];

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/golden/families").join(name)
}

fn files(path: &Path) -> ModelFiles {
    let source = ModelSource::parse(&path.to_string_lossy()).unwrap();
    source.fetch().unwrap()
}

fn load(path: &Path) -> Reference {
    let model = realign_reference::load(&files(path));
    model.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn packed(path: &Path) -> CpuBackend {
    let model = realign_cpu::load(&files(path));
    CpuBackend::new(model.unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// What PyTorch computed for one family.
struct Golden {
    family: &'static str,
    tokens: Vec<u32>,
    prompt: usize,
    loss: f64,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    fn of(family: &'static str) -> Self {
        let dir = fixture(family);
        let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let tensors =
            candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu).unwrap();
        Self {
            family,
            tokens: crate::golden_parity::ids(&json["tokens"]),
            prompt: json["prompt"].as_u64().unwrap() as usize,
            loss: json["loss"].as_f64().unwrap(),
            tensors,
        }
    }

    /// Fails unless the largest difference is at most `tolerance` of the largest golden value.
    fn check(&self, got: &Tensor, name: &str, tolerance: f32, what: &str) {
        let distance = self.distance(got, name);
        assert!(
            distance <= tolerance,
            "{} {name}, {what}: {distance}",
            self.family
        );
    }

    /// The largest difference, as a part of the largest golden value.
    fn distance(&self, got: &Tensor, name: &str) -> f32 {
        let expected = &self.tensors[name];
        assert_eq!(got.dims(), expected.dims(), "{} {name}", self.family);
        let largest = |t: Tensor| {
            let t = t.abs().unwrap().flatten_all().unwrap();
            t.max(0).unwrap().to_scalar::<f32>().unwrap()
        };
        largest((got - expected).unwrap()) / largest(expected.clone())
    }

    fn adapter(&self) -> LoraWeights {
        peft::read_dir(&fixture(self.family).join("adapter"))
            .unwrap()
            .weights
    }
}

/// Logits of a whole sequence, (tokens, vocabulary).
fn whole(model: &Reference, tokens: &[u32], adapter: Option<&LoraWeights>) -> Tensor {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let segment = Segment::sequence(0, tokens.len());
    let adapters = rows_of(adapter, tokens.len());
    let batch = Batch {
        tokens,
        positions: &positions,
        adapters: &adapters,
        segments: Arc::from([segment]),
    };
    model.logits(&model.hidden(&batch).unwrap()).unwrap()
}

fn rows_of(adapter: Option<&LoraWeights>, rows: usize) -> Vec<AdapterRows<'_>> {
    adapter
        .map(|adapter| AdapterRows {
            rows: 0..rows,
            adapter,
        })
        .into_iter()
        .collect()
}

/// Logits from the CPU executor, fed in chunks, with the adapter on every row if there is one.
fn served(
    (backend, kv): (&CpuBackend, KvType),
    tokens: &[u32],
    chunks: &[usize],
    adapter: Option<LoraWeights>,
) -> Tensor {
    let spec = backend.spec();
    let adapter = adapter.map(|adapter| backend.stage(&adapter).unwrap());
    let count = tokens.len().div_ceil(BLOCK_TOKENS);
    let mut executor = CpuExecutor::new(backend.model().clone(), count + 1, 2, kv).unwrap();
    let blocks: Arc<[u32]> = (0..count as u32).rev().collect();
    let mut logits = vec![0f32; tokens.len() * spec.vocab_size];
    let mut cached = 0;
    for &rows in chunks {
        let positions: Vec<u32> = (cached as u32..(cached + rows) as u32).collect();
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let spans: Vec<AdapterSpan> = adapter
            .iter()
            .map(|adapter| AdapterSpan {
                rows: 0..rows,
                adapter: adapter.clone(),
            })
            .collect();
        let step = Step {
            tokens: &tokens[cached..cached + rows],
            positions: &positions,
            sequences: &[PagedSequence {
                start: 0,
                rows,
                cached,
                blocks: blocks.clone(),
            }],
            adapters: &spans,
            outputs: &outputs,
        };
        let room = &mut logits[cached * spec.vocab_size..(cached + rows) * spec.vocab_size];
        executor.forward(&step, room).unwrap();
        cached += rows;
    }
    assert_eq!(cached, tokens.len());
    Tensor::from_vec(logits, (tokens.len(), spec.vocab_size), &Device::Cpu).unwrap()
}

#[test]
fn the_cpu_executor_agrees_with_and_without_an_adapter() {
    for family in FAMILIES {
        let (golden, backend) = (Golden::of(family), packed(&fixture(family)));
        for (name, kv, tolerance) in CACHES {
            let tokens = &golden.tokens;
            let run = |chunks: &[usize], adapter| served((&backend, kv), tokens, chunks, adapter);
            let [whole, chunked, decoded] = [&[40][..], &[7, 16, 1, 16], &[1; 40]].map(|chunks| {
                let what = format!("executor, {name}, chunks {chunks:?}");
                let base = run(chunks, None);
                golden.check(&base, "logits", tolerance, &what);
                let adapted = run(chunks, Some(golden.adapter()));
                golden.check(&adapted, "logits_adapter", tolerance, &what);
                base
            });
            golden.check(&decoded, "decoded", tolerance, name);
            for other in [chunked, decoded] {
                let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(
                    bits(&whole),
                    bits(&other),
                    "{family} {name}: chunks change bits"
                );
            }
        }
    }
}

#[test]
fn whole_sequences_agree_with_and_without_an_adapter() {
    for family in FAMILIES {
        let (golden, model) = (Golden::of(family), load(&fixture(family)));
        let adapter = golden.adapter();
        let base = whole(&model, &golden.tokens, None);
        golden.check(&base, "logits", 1e-4, "whole");
        let adapted = whole(&model, &golden.tokens, Some(&adapter));
        golden.check(&adapted, "logits_adapter", 1e-4, "whole");
    }
}

/// Were a constant read wrongly, these fixtures would show it: each changes the logits.
#[test]
fn every_constant_of_a_family_matters() {
    let full = "rope_parameters/full_attention/factor";
    let cases: [(&str, &[(&str, Value)]); 14] = [
        (
            "llama",
            &[
                ("rope_parameters/factor", 2.0.into()),
                ("rope_parameters/low_freq_factor", 2.0.into()),
                (
                    "rope_parameters/original_max_position_embeddings",
                    32.into(),
                ),
            ],
        ),
        ("qwen2", &[("rope_parameters/factor", 3.0.into())]),
        ("qwen3", &[("rope_parameters/rope_theta", 900.0.into())]),
        (
            "gemma2",
            &[
                ("sliding_window", 9.into()),
                ("layer_types/1", "sliding_attention".into()),
                ("attn_logit_softcapping", Value::Null),
                ("final_logit_softcapping", Value::Null),
                ("query_pre_attn_scalar", 16.into()),
                ("hidden_activation", "silu".into()),
            ],
        ),
        (
            "gemma3",
            &[
                ("sliding_window", 7.into()),
                ("layer_types/5", "sliding_attention".into()),
                (
                    "rope_parameters/sliding_attention/rope_theta",
                    1000.0.into(),
                ),
                (full, 1.0.into()),
            ],
        ),
        (
            "mistral",
            &[
                ("sliding_window", 9.into()),
                ("sliding_window", Value::Null),
            ],
        ),
        (
            "ministral",
            &[("layer_types/1", "sliding_attention".into())],
        ),
        (
            "ministral3",
            &[
                ("rope_parameters/mscale", 2.0.into()),
                ("rope_parameters/mscale_all_dim", 1.0.into()),
            ],
        ),
        (
            "smollm3",
            &[
                ("no_rope_layers/3", 1.into()),
                ("no_rope_layers/0", 0.into()),
            ],
        ),
        (
            "granite",
            &[
                ("embedding_multiplier", 4.0.into()),
                ("residual_multiplier", 0.4.into()),
                ("attention_multiplier", 0.3.into()),
                ("logits_scaling", 4.0.into()),
                ("rms_norm_eps", 1e-2.into()),
            ],
        ),
        (
            "phi3",
            &[
                ("sliding_window", 8.into()),
                ("rope_parameters/short_factor/5", 30.0.into()),
                (
                    "rope_parameters/original_max_position_embeddings",
                    32.into(),
                ),
            ],
        ),
        (
            "llama-yarn",
            &[
                ("rope_parameters/factor", 2.0.into()),
                ("rope_parameters/beta_fast", 4.0.into()),
                ("rope_parameters/beta_slow", 0.9.into()),
                (
                    "rope_parameters/original_max_position_embeddings",
                    64.into(),
                ),
            ],
        ),
        (
            "qwen3moe",
            &[
                ("num_experts_per_tok", 1.into()),
                ("norm_topk_prob", false.into()),
            ],
        ),
        ("qwen3moe-plain", &[("norm_topk_prob", true.into())]),
    ];
    for (family, changes) in cases {
        let golden = Golden::of(family);
        for (field, value) in changes {
            let dir = files::copy(family);
            files::edit_json(&dir.path().join("config.json"), |config| {
                let place = config.pointer_mut(&format!("/{field}"));
                *place.expect("the fixture has the field") = value.clone();
            });
            let logits = whole(&load(dir.path()), &golden.tokens, None);
            let distance = golden.distance(&logits, "logits");
            assert!(distance > 1e-3, "{family}: {field} changes {distance}");
        }
    }
}

/// The adapter with every factor as a variable, and the variables by PEFT's names.
fn trainable(adapter: &LoraWeights) -> (LoraWeights, Vec<(String, Var)>) {
    let mut variables = Vec::new();
    let mut trainable = LoraWeights::default();
    for (site, pair) in &adapter.sites {
        let mut variable = |factor: &Tensor, part: &str| {
            let variable = Var::from_tensor(factor).unwrap();
            variables.push((parameter_name(*site, part), variable.clone()));
            variable.as_tensor().clone()
        };
        let pair = LoraPair {
            a: variable(&pair.a, "A"),
            b: variable(&pair.b, "B"),
            scale: pair.scale,
        };
        trainable.sites.insert(*site, pair);
    }
    (trainable, variables)
}

fn parameter_name(site: LoraSite, part: &str) -> String {
    let projection = site.projection;
    format!(
        "base_model.model.model.layers.{}.{}.{}.lora_{part}.weight",
        site.layer,
        projection.parent(),
        projection.name()
    )
}

#[test]
fn lora_gradients_agree_on_every_projection() {
    for family in FAMILIES {
        let (golden, model) = (Golden::of(family), load(&fixture(family)));
        let (prompt, response) = golden.tokens.split_at(golden.prompt);
        let packed = Packed::new([&Example::new(prompt.to_vec(), vec![response.to_vec()])]);
        let (adapter, variables) = trainable(&golden.adapter());
        let spec = &model.decoder.spec;
        let layers = (0..spec.layers).map(|layer| {
            let site = |projection| LoraSite { layer, projection };
            let sites = Projection::ALL.map(|p| spec.site_shape(site(p)).is_some());
            sites.into_iter().filter(|there| *there).count()
        });
        assert_eq!(variables.len(), 2 * layers.sum::<usize>());
        let logprobs = model.token_logprobs(&packed, Some(&adapter)).unwrap();
        let loss = logprobs.mean_all().unwrap().neg().unwrap();
        let got = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!(
            (got - golden.loss).abs() < 1e-4 * golden.loss,
            "{family}: loss {got}, PyTorch has {}",
            golden.loss
        );
        let gradients = loss.backward().unwrap();
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).expect("every factor has one");
            golden.check(gradient, &format!("grad.{name}"), 2e-4, "reference");
        }
    }
}
