//! Whether a machine that computes otherwise is told by the fingerprint, whatever the hash says.

use std::path::Path;
use std::sync::Arc;

use realign_cpu::CpuBackend;
use realign_engine::adapter::generation::{Generation, GenerationId, StagedAdapter};
use realign_engine::adapter::peft;
use realign_engine::{EngineConfig, EngineHandle, Fingerprint, TOLERANCE, start};
use realign_model::{ModelSource, Tokenizer};
use serde_json::json;

/// Letters and spaces; the tiny models have tokens of these ids.
fn tokenizer() -> Arc<Tokenizer> {
    let letters = ('a'..='z').chain('A'..='Z').chain(['Ġ']);
    let mut vocabulary: serde_json::Map<String, serde_json::Value> = letters
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    let end = vocabulary.len();
    vocabulary.insert("<|im_end|>".into(), json!(end));
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{
            "id": end, "content": "<|im_end|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    Arc::new(Tokenizer::from_file(&path).unwrap())
}

/// A machine with a tiny model of this family.
struct Machine {
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    /// The base, and the model's adapter with every factor times some gain. Whatever they hold, they
    /// have the same hash and the same id.
    generations: [Arc<Generation>; 2],
}

impl Machine {
    fn new(family: &str, gain: f64, threads: usize) -> Machine {
        let path = Path::new("tests/golden/families").join(family);
        let source = ModelSource::parse(&path.to_string_lossy()).unwrap();
        let backend = CpuBackend::new(realign_cpu::load(&source.fetch().unwrap()).unwrap());
        let mut weights = peft::read_dir(&path.join("adapter")).unwrap().weights;
        for pair in weights.sites.values_mut() {
            pair.a = (&pair.a * gain).unwrap();
            pair.b = (&pair.b * gain).unwrap();
        }
        let adapter = StagedAdapter::new(&backend, weights).unwrap();
        let generations = [None, Some(adapter)].map(|adapter| {
            Arc::new(Generation {
                id: GenerationId("0123456789ab".into()),
                base_hash: "0".repeat(64),
                policy_revision: None,
                adapter,
            })
        });
        let config = EngineConfig {
            kv_cache_bytes: 1 << 20,
            threads,
            ..EngineConfig::default()
        };
        let tokenizer = tokenizer();
        let engine = start(&backend, tokenizer.clone(), config).unwrap();
        Machine {
            engine,
            tokenizer,
            generations,
        }
    }

    fn publish(&self, at: usize) -> Fingerprint {
        Fingerprint::of(&self.engine, &self.tokenizer, &self.generations[at]).unwrap()
    }

    fn distance(&self, published: &Fingerprint, at: usize) -> f32 {
        let found = published.distance(&self.engine, &self.tokenizer, &self.generations[at]);
        found.unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.engine.shutdown();
    }
}

#[test]
fn a_base_or_an_adapter_that_computes_otherwise_is_told_whatever_its_hash_says() {
    let controller = Machine::new("gemma3", 1.0, 1);
    let follower = Machine::new("gemma3", 1.0, 2);
    let adapter_tampered = Machine::new("gemma3", 20.0, 1);
    let base_tampered = Machine::new("llama", 1.0, 1);
    for (at, what) in [(0, "base"), (1, "adapter")] {
        let published = controller.publish(at);
        assert!(published.top.is_sorted_by(|a, b| a.1 >= b.1));
        assert_eq!((published.prompt.len(), published.top.len()), (15, 5));
        assert_eq!(follower.distance(&published, at), 0.0, "{what}");
        let distance = base_tampered.distance(&published, at);
        println!("{what} on another base: {distance}");
        assert!(distance > TOLERANCE, "{what}: {distance}");
    }
    let published = controller.publish(1);
    let distance = adapter_tampered.distance(&published, 1);
    println!("another adapter: {distance}");
    assert!(distance > TOLERANCE, "{distance}");
    assert_eq!(adapter_tampered.distance(&controller.publish(0), 0), 0.0);
}

#[test]
fn what_cannot_be_compared_is_an_error_and_no_agreement() {
    let machine = Machine::new("llama", 1.0, 1);
    let good = machine.publish(0);
    for (prompt, top) in [
        (vec![], good.top.clone()),
        (vec![u32::MAX], good.top.clone()),
        (vec![1; 257], good.top.clone()),
        (good.prompt.clone(), vec![]),
        (good.prompt.clone(), vec![(1, f32::NAN)]),
    ] {
        let bad = Fingerprint { prompt, top };
        let found = bad.distance(&machine.engine, &machine.tokenizer, &machine.generations[0]);
        let error = found.unwrap_err().to_string();
        assert!(error.contains("unusable"), "{bad:?}: {error}");
    }
}
