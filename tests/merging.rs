//! A model's files with an adapter merged in say what the adapter says beside them.

use candle_core::{DType, Device, Tensor};
use realign_model::packing::{Example, Packed};
use realign_model::{LoraPair, LoraSite, LoraWeights, ModelSource, Projection};
use realign_reference::Reference;

use super::e2e::tiny_model;
use super::golden_parity::{adapter, dense_model, examples, model_path};

/// Sums of log-probabilities of the responses.
fn scores(model: &Reference, examples: &[Example], adapter: Option<&LoraWeights>) -> Vec<f64> {
    let packed = Packed::new(examples);
    let scores = model.response_logprobs(&packed, adapter).unwrap();
    scores.into_iter().flatten().collect()
}

fn merged(source: &str, adapter: &LoraWeights) -> Reference {
    let files = ModelSource::parse(source)
        .and_then(ModelSource::fetch)
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    files.write_merged(adapter, dir.path()).unwrap();
    if files.gguf().is_none() {
        std::fs::copy(
            files.root.join("config.json"),
            dir.path().join("config.json"),
        )
        .unwrap();
    }
    let source = dir.path().to_str().unwrap();
    let merged = ModelSource::parse(source).and_then(ModelSource::fetch);
    realign_reference::load(&merged.unwrap()).unwrap()
}

/// Q8_0 rounds what was Q4_1 and a difference. This adapter has had a few steps of training, so its own
/// effect is small; rows in a wrong order would be further off than the base is.
#[test]
fn a_gguf_file_with_the_adapter_in_it_scores_as_the_adapter_does() {
    let samples = examples("samples");
    let adapter = adapter("adapter");
    let base = scores(dense_model(), &samples, None);
    let beside = scores(dense_model(), &samples, Some(&adapter));
    let inside = scores(&merged(&model_path(), &adapter), &samples, None);
    let apart = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum() };
    let (effect, error) = (apart(&base, &beside), apart(&inside, &beside));
    println!("the adapter moves scores by {effect:.3}, merging it by {error:.3} more");
    assert!(effect > 1.0, "the adapter does nothing: {effect}");
    assert!(error < 0.4 * effect, "{error} beside {effect}");
}

#[test]
fn safetensors_with_the_adapter_in_them_score_as_the_adapter_does() {
    let source = tiny_model::directory().to_str().unwrap();
    let files = ModelSource::parse(source).and_then(ModelSource::fetch);
    let model = realign_reference::load(&files.unwrap()).unwrap();
    // The upper layer alone, and not all of its matrices: as the default recipe leaves some out.
    let mut adapter = LoraWeights::default();
    for (projection, out, inner) in [(Projection::Q, 64, 64), (Projection::Down, 64, 128)] {
        let values = |n: usize| (0..n).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 300.0);
        let tensor = |rows: usize, columns: usize| {
            let values: Vec<f32> = values(rows * columns).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        let pair = LoraPair {
            a: tensor(4, inner),
            b: tensor(out, 4),
            scale: 2.0,
        };
        let site = LoraSite {
            layer: 1,
            projection,
        };
        adapter.sites.insert(site, pair);
    }
    let example = Example::new(vec![104, 105, 32], vec![vec![97, 98, 99, 100]]);
    let examples = [example];
    let base = scores(&model, &examples, None)[0];
    let beside = scores(&model, &examples, Some(&adapter))[0];
    let inside = scores(&merged(source, &adapter), &examples, None)[0];
    assert!((base - beside).abs() > 0.01, "the adapter does nothing");
    assert!((inside - beside).abs() < 1e-4, "{inside} and {beside}");
}

#[test]
fn an_adapter_for_matrices_that_are_not_there_is_refused_by_name() {
    let one = Tensor::zeros((1, 64), DType::F32, &Device::Cpu).unwrap();
    let site = LoraSite {
        layer: 9,
        projection: Projection::Q,
    };
    let pair = LoraPair {
        b: one.t().unwrap().contiguous().unwrap(),
        a: one,
        scale: 1.0,
    };
    let mut adapter = LoraWeights::default();
    adapter.sites.insert(site, pair);
    let source = tiny_model::directory().to_str().unwrap();
    let files = ModelSource::parse(source).and_then(ModelSource::fetch);
    let dir = tempfile::tempdir().unwrap();
    let error = files.unwrap().write_merged(&adapter, dir.path());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("layers.9.self_attn.q_proj"), "{error}");
}
