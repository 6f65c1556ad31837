use std::sync::Arc;

use candle_core::Tensor;
use realign_cpu::CpuBackend;
use realign_model::ModelSource;

use super::*;
use crate::adapter::generation::{GenerationId, StagedAdapter};
use crate::adapter::peft;
use crate::tests::fake::tokenizer;
use crate::{EngineConfig, start};

/// An engine on a tiny model of this family, its base, and its adapter with every factor times `gain`.
/// All have the same hash and the same id.
fn machine(family: &str, gain: f64) -> (EngineHandle, [Arc<Generation>; 2]) {
    let path = realign_model::test_support::path(&format!("tests/golden/families/{family}"));
    let files = ModelSource::parse(&path).and_then(ModelSource::fetch);
    let backend = CpuBackend::new(realign_cpu::load(&files.unwrap()).unwrap());
    let read = peft::read_dir(&std::path::Path::new(&path).join("adapter"));
    let mut weights = read.unwrap().weights;
    let scaled = |t: &Tensor| (t * gain).unwrap();
    for pair in weights.sites.values_mut() {
        (pair.a, pair.b) = (scaled(&pair.a), scaled(&pair.b));
    }
    let adapters = [None, Some(StagedAdapter::new(&backend, weights).unwrap())];
    let config = EngineConfig {
        kv_cache_bytes: 1 << 20,
        threads: 1,
        ..EngineConfig::default()
    };
    let engine = start(&backend, tokenizer(), config).unwrap();
    let generations = adapters.map(|adapter| {
        Arc::new(Generation {
            id: GenerationId("0123456789ab".into()),
            base_hash: "0".repeat(64),
            policy_revision: None,
            adapter,
        })
    });
    (engine, generations)
}

#[test]
fn a_base_or_an_adapter_that_computes_otherwise_is_told_whatever_its_hash_says() {
    let (engine, own) = machine("gemma3", 1.0);
    let tokenizer = tokenizer();
    let (same, again) = machine("gemma3", 1.0);
    let (louder, amplified) = machine("gemma3", 20.0);
    let (other, strange) = machine("llama", 1.0);
    for at in 0..2 {
        let published = Fingerprint::of(&engine, &tokenizer, &own[at]).unwrap();
        assert_eq!(published.top.len(), PUBLISHED);
        assert!(published.top.is_sorted_by(|a, b| a.1 >= b.1));
        let distance = |engine, generation| {
            let found = published.distance(engine, &tokenizer, generation);
            found.unwrap()
        };
        assert_eq!(distance(&same, &again[at]), 0.0);
        let tampered = distance(&other, &strange[at]);
        assert!(tampered > TOLERANCE, "another base: {tampered}");
        if at == 1 {
            let tampered = distance(&louder, &amplified[1]);
            assert!(tampered > TOLERANCE, "another adapter: {tampered}");
        }
    }
    for engine in [engine, same, louder, other] {
        engine.shutdown();
    }
}

#[test]
fn what_another_program_wrote_is_refused_before_anything_is_computed() {
    let good = Fingerprint {
        prompt: vec![3, 4],
        top: vec![(1, -0.5)],
    };
    assert_eq!(good.check(5), Ok(()));
    let with = |prompt: &[u32], top: &[(u32, f32)]| Fingerprint {
        prompt: prompt.to_vec(),
        top: top.to_vec(),
    };
    for (bad, why) in [
        (with(&[], &good.top), "1 to 256"),
        (with(&[1; 257], &good.top), "1 to 256"),
        (with(&[5], &good.top), "does not have"),
        (with(&[u32::MAX], &good.top), "does not have"),
        (with(&[1], &[]), "no tokens"),
        (with(&[1], &[(1, f32::NAN)]), "not finite"),
    ] {
        let error = bad.check(5).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn tokens_are_compared_by_their_ids() {
    let here = [(7, -0.5), (3, -1.5), (9, -4.0)];
    assert_eq!(difference(&here, &here), 0.0);
    assert_eq!(difference(&[(3, -0.5), (7, -1.5)], &here), 1.0);
    // One that is not among the most likely is at most as likely as the last of them.
    assert_eq!(difference(&[(5, -0.5)], &here), 3.5);
    assert_eq!(difference(&[(7, -0.5)], &[]), f32::INFINITY);
    assert_eq!(difference(&[(7, -0.5)], &[(7, f32::NAN)]), f32::INFINITY);
}
