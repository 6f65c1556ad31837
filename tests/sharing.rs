//! Prompts that begin alike share their rows in a batch: nothing may come to something else by it.

use std::path::Path;

use candle_core::Tensor;
use realign_cpu::CpuBackend;
use realign_model::learning::logprobs_of;
use realign_model::packing::{Example, Packed};
use realign_model::{Backend, LoraWeights, Measured, ModelSource, PassOptions, Precision};
use realign_reference::ReferenceBackend;

use crate::families::FAMILIES;

/// What turns begin with.
const TURN: u32 = 2;

/// Examples of two system prompts, longer than the families' windows: two with the same prompt,
/// one with hardly more than a system prompt, and one that shares nothing.
fn examples() -> Vec<Example> {
    let tokens = |seed: u32, n: u32| (0..n).map(move |i| 3 + (seed * 31 + i * 7) % 50);
    let example = |system: u32, prompt: u32, own: u32, responses: u32| {
        let turn = |seed, n| [TURN].into_iter().chain(tokens(seed, n));
        let prompt = turn(system, 13 + system).chain(turn(prompt, own));
        let responses = (0..responses).map(|r| tokens(40 + own + r, 3 + 4 * r + own).collect());
        Example::new(prompt.collect(), responses.collect())
    };
    vec![
        example(1, 7, 9, 2),
        example(2, 8, 5, 1),
        example(1, 9, 30, 2),
        example(5, 9, 4, 2),
        example(1, 7, 9, 1),
        example(2, 8, 12, 2),
        example(1, 0, 0, 2),
    ]
}

/// What the passes say about a batch: a value, a derivative and a gradient.
struct Found {
    values: Vec<f32>,
    slopes: Vec<f32>,
    gradients: Vec<Tensor>,
}

fn find(backend: &dyn Backend, adapter: &LoraWeights, batch: &Packed) -> Found {
    let options = PassOptions {
        precision: Precision::Exact,
        ..PassOptions::default()
    };
    let mut passes = backend.passes(options).unwrap();
    let losses = logprobs_of(batch);
    let measured = Measured {
        losses: &losses,
        reference: None,
    };
    let hidden = passes.hidden(batch, Some(adapter)).unwrap();
    let values = passes.measure(measured, &hidden).unwrap();
    // A token's coefficient depends on the token alone, so a batch's gradient is the sum of its
    // examples'.
    let coefficients: Vec<f32> = batch
        .targets()
        .iter()
        .map(|t| 0.1 * *t as f32 - 2.0)
        .collect();
    let gradients = passes
        .gradients(batch, adapter, measured, &mut |_| coefficients.clone())
        .unwrap();
    let gradients = gradients.into_values().flat_map(|(a, b)| [a, b]).collect();
    let slopes = passes.slopes(batch, adapter, adapter).unwrap().slopes;
    Found {
        values,
        slopes,
        gradients,
    }
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares a batch with its examples, each by itself.
fn compare(backend: &dyn Backend, adapter: &LoraWeights, examples: &[Example], what: &str) {
    let found = find(backend, adapter, &Packed::new(examples));
    let alone: Vec<Found> = examples
        .iter()
        .map(|e| find(backend, adapter, &Packed::new([e])))
        .collect();
    let all = |of: fn(&Found) -> &Vec<f32>| alone.iter().flat_map(of).copied().collect::<Vec<_>>();
    let off = furthest(&found.values, &all(|f| &f.values));
    assert!(off < 2e-4, "{what}: log-probabilities off by {off}");
    let slopes = all(|f| &f.slopes);
    let size = furthest(&slopes, &vec![0.0; slopes.len()]);
    let off = furthest(&found.slopes, &slopes);
    assert!(off < 1e-3 * size, "{what}: slopes off by {off} of {size}");
    for (i, gradient) in found.gradients.iter().enumerate() {
        let mut sum = alone[0].gradients[i].clone();
        for other in &alone[1..] {
            sum = (sum + &other.gradients[i]).unwrap();
        }
        let (gradient, sum) = (flat(gradient), flat(&sum));
        let size = furthest(&sum, &vec![0.0; sum.len()]);
        let off = furthest(&gradient, &sum);
        assert!(
            size > 0.0 && off < 1e-3 * size,
            "{what}: gradient {i} off by {off} of {size}"
        );
    }
}

#[test]
fn shared_beginnings_change_nothing() {
    for family in FAMILIES {
        let dir = Path::new("tests/golden/families").join(family);
        let files = ModelSource::parse(&dir.to_string_lossy())
            .and_then(ModelSource::fetch)
            .unwrap();
        let adapter = realign_engine::adapter::peft::read_dir(&dir.join("adapter"))
            .unwrap()
            .weights;
        let packed = CpuBackend::new(realign_cpu::load(&files).unwrap());
        let tensors = ReferenceBackend::new(realign_reference::load(&files).unwrap());
        let backends: [(&dyn Backend, &str); 2] = [(&packed, "packed"), (&tensors, "tensors")];
        for (backend, kind) in backends {
            let what = format!("{family}, {kind}");
            let mut examples = examples();
            let rows: usize = examples.iter().map(Example::rows).sum();
            let batch = Packed::new(&examples);
            assert!(batch.token_count() < rows - 50, "rows are shared");
            compare(backend, &adapter, &examples, &what);
            let mut passes = backend.passes(PassOptions::default()).unwrap();
            let states = passes.states(&batch, 1).unwrap();
            let (together, mut at) = (passes.hidden(&batch, None).unwrap(), 0);
            for (example, states) in examples.iter_mut().zip(states) {
                let alone = Packed::new([&*example]);
                let own = passes.states(&alone, 1).unwrap();
                let off = furthest(&flat(&states.hidden), &flat(&own[0].hidden));
                assert!(off < 1e-3, "{what}: states off by {off}");
                if kind == "packed" {
                    // A run that is resumed has other batches, and must end where it would have.
                    assert_eq!(off, 0.0, "{what}: states depend on the batch");
                    let hidden = passes.hidden(&alone, None).unwrap();
                    let rows = hidden.dim(0).unwrap();
                    let own = together.narrow(0, at, rows).unwrap();
                    let off = furthest(&flat(&hidden), &flat(&own));
                    assert_eq!(off, 0.0, "{what}: hidden states depend on the batch");
                    at += rows;
                }
                example.states = Some(states);
            }
            let mut above = adapter.clone();
            above.sites.retain(|site, _| site.layer > 0);
            compare(backend, &above, &examples, &format!("{what}, with states"));
        }
    }
}
