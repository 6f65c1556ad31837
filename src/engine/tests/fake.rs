//! A model of a few hash functions, and an engine without a thread around it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::{Device, Result, Tensor, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use super::super::blocks::BlockPool;
use super::super::request::*;
use super::super::runner::Runner;
use super::super::scheduler::Scheduler;
use super::super::sequence::Sequence;
use crate::adapter::generation::{Generation, GenerationId, StagedAdapter};
use realign_model::{
    Executor, LoraPair, LoraSite, LoraWeights, Outputs, Projection, Staged, Step, Tokenizer,
};

/// Letters `a` to `p`, each a token, and one that ends the turn.
pub(crate) const VOCABULARY: usize = 17;
pub(crate) const BLOCK: usize = 4;
/// The generation whose logits are not finite from position [`SOUND`] on.
pub(crate) const BROKEN: u32 = 666;
pub(crate) const SOUND: usize = 12;

/// One sequence's part of a step: tokens it had in the cache, and rows that ran.
pub(crate) type Part = (usize, usize);

/// Keeps a hash per cache slot in place of keys and values.
pub(crate) struct FakeModel {
    cells: Vec<u64>,
    steps: Arc<Mutex<Vec<Vec<Part>>>>,
    fails_at: Option<usize>,
    /// Tokens after which an answer repeats itself, mostly; `None`: it does not.
    period: Option<usize>,
}

impl FakeModel {
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            // One block is for probes.
            cells: vec![0; (blocks + 1) * BLOCK],
            steps: Arc::default(),
            fails_at: None,
            period: None,
        }
    }
}

fn mix(state: u64, value: u64) -> u64 {
    let x = (state ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

impl Executor for FakeModel {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }

    fn residuals(
        &mut self,
        _step: &Step,
        _layers: &[usize],
        _show: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        bail!("there are no layers")
    }

    fn forward(&mut self, layout: &Step, outputs: &mut Outputs) -> Result<()> {
        let part = |s: &realign_model::PagedSequence| (s.cached, s.rows);
        let mut steps = self.steps.lock().unwrap();
        steps.push(layout.sequences.iter().map(part).collect());
        if self.fails_at == Some(steps.len()) {
            bail!("out of something");
        }
        let mut rows = outputs.logits.chunks_exact_mut(VOCABULARY);
        for s in layout.sequences.iter() {
            let slot = |p: usize| s.blocks[p / BLOCK] as usize * BLOCK + p % BLOCK;
            let span = layout.adapters.iter().find(|a| a.rows.contains(&s.start));
            let scale = span.map_or(0.0, |a| *a.adapter.get::<f64>().unwrap());
            for row in s.start..s.start + s.rows {
                let position = layout.positions[row] as usize;
                assert_eq!(position, s.cached + row - s.start);
                let before = (position > 0).then(|| self.cells[slot(position - 1)]);
                let own = mix(u64::from(layout.tokens[row]), scale.to_bits());
                self.cells[slot(position)] = mix(before.unwrap_or(1), own);
                if layout.outputs.contains(&(row as u32)) {
                    let all = (0..=position).fold(7, |h, p| mix(h, self.cells[slot(p)]));
                    let mut random = ChaCha8Rng::seed_from_u64(all);
                    let row = rows.next().unwrap();
                    row.fill_with(|| random.random_range(-3.0..3.0));
                    if let Some(period) = self.period {
                        // One token in sixteen is another one.
                        row[position % period] += if all % 16 == 0 { 0.0 } else { 40.0 };
                    }
                    if scale == f64::from(BROKEN) && position >= SOUND {
                        row[5] = f32::NAN;
                    }
                }
            }
        }
        assert!(rows.next().is_none(), "an output that no sequence owns");
        Ok(())
    }
}

/// The letters' tokenizer.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let make = || {
        let mut vocabulary: serde_json::Map<String, serde_json::Value> = ('a'..='p')
            .enumerate()
            .map(|(id, c)| (c.to_string(), json!(id)))
            .collect();
        vocabulary.insert("<|im_end|>".into(), json!(VOCABULARY - 1));
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false,
        });
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{
                "id": VOCABULARY - 1, "content": "<|im_end|>", "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false, "special": true,
            }],
            "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [],
            },
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, file.to_string()).unwrap();
        Arc::new(Tokenizer::from_file(&path).unwrap())
    };
    TOKENIZER.get_or_init(make).clone()
}

/// Generation `number`; 0 is the base.
pub(crate) fn generation(number: u32) -> Arc<Generation> {
    let one = Tensor::zeros((1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
    let site = LoraSite {
        layer: 0,
        projection: Projection::Q,
    };
    let pair = LoraPair {
        a: one.clone(),
        b: one,
        scale: f64::from(number),
    };
    Arc::new(Generation {
        id: GenerationId(format!("{number:012x}")),
        base_hash: "0".repeat(64),
        policy_revision: None,
        adapter: (number > 0).then(|| StagedAdapter {
            weights: Arc::new(LoraWeights::from(BTreeMap::from([(site, pair)]))),
            staged: Staged::new(f64::from(number)),
        }),
    })
}

/// `length` letters that depend on `seed`.
pub(crate) fn prompt(seed: u64, length: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..length).map(|_| random.random_range(0..16)).collect()
}

/// A sampled request on the base.
pub(crate) fn request(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingParams {
            temperature: 1.0,
            seed,
            max_tokens,
            ..SamplingParams::default()
        },
        generation: generation(0),
    }
}

/// What came of a request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) ids: Vec<u32>,
    /// Prompt tokens found in the cache, once it has finished.
    pub(crate) cached: Option<usize>,
    pub(crate) failed: Option<String>,
}

impl Answer {
    pub(crate) fn take(&mut self, event: GenerateEvent) {
        match event {
            GenerateEvent::Token { id, .. } => self.ids.push(id),
            GenerateEvent::Finished {
                cached_tokens,
                completion_tokens,
                ..
            } => {
                assert_eq!(completion_tokens, self.ids.len());
                self.cached = Some(cached_tokens);
            }
            GenerateEvent::Failed(reason) => self.failed = Some(reason),
        }
    }

    /// Reads what has come so far.
    pub(crate) fn update(&mut self, stream: &mut GenerateStream) {
        while let Ok(event) = stream.events.try_recv() {
            self.take(event);
        }
    }
}

/// An engine that tests step by hand.
pub(crate) struct Bench {
    pub(crate) runner: Runner,
    steps: Arc<Mutex<Vec<Vec<Part>>>>,
}

impl Bench {
    pub(super) fn new(blocks: usize, max_running: usize, step_tokens: usize) -> Self {
        Self::failing_at(None, blocks, max_running, step_tokens)
    }

    /// Answers repeat themselves after `period` tokens, mostly, and drafts have at most `draft` tokens.
    pub(super) fn repeating(period: usize, draft: usize, blocks: usize, running: usize) -> Self {
        let mut model = FakeModel::new(blocks);
        model.period = Some(period);
        let mut bench = Self::with(model, blocks, running, 64);
        bench.runner = bench.runner.drafting(draft);
        bench
    }

    pub(crate) fn failing_at(
        step: Option<usize>,
        blocks: usize,
        max_running: usize,
        step_tokens: usize,
    ) -> Self {
        let mut model = FakeModel::new(blocks);
        model.fails_at = step;
        Self::with(model, blocks, max_running, step_tokens)
    }

    fn with(model: FakeModel, blocks: usize, max_running: usize, step_tokens: usize) -> Self {
        let steps = model.steps.clone();
        let pool = BlockPool::new(blocks, BLOCK);
        let scheduler = Scheduler::new(pool, max_running, step_tokens);
        let runner = Runner::new(scheduler, Box::new(model), tokenizer(), Arc::default());
        Self { runner, steps }
    }

    pub(crate) fn submit(&mut self, request: GenerateRequest) -> GenerateStream {
        let (sender, events) = unbounded_channel();
        let sequence = Sequence::new(request, &tokenizer(), sender);
        self.runner.scheduler.waiting.push_back(sequence);
        GenerateStream::new(events)
    }

    /// Runs one step and checks what must always hold. Returns its parts, empty if nothing ran.
    pub(crate) fn step(&mut self) -> Vec<Part> {
        let ran = self.runner.schedule();
        self.check();
        if !ran {
            return Vec::new();
        }
        self.runner.execute();
        self.check();
        self.steps.lock().unwrap().last().unwrap().clone()
    }

    fn check(&self) {
        let scheduler = &self.runner.scheduler;
        scheduler
            .pool
            .check(scheduler.running.iter().map(|s| &s.table));
        assert!(scheduler.waiting.iter().all(|s| s.computed == 0));
    }

    /// Steps until no sequence is left.
    pub(crate) fn run(&mut self) {
        for _ in 0..20_000 {
            if self.runner.scheduler.is_idle() {
                assert_eq!(self.runner.scheduler.pool.usage(), 0.0);
                return;
            }
            self.step();
        }
        panic!("the engine does not get on");
    }

    /// Submits all at once and runs them to their ends.
    pub(crate) fn answers(&mut self, requests: &[GenerateRequest]) -> Vec<Answer> {
        let mut streams: Vec<_> = requests.iter().map(|r| self.submit(r.clone())).collect();
        self.run();
        let read = |stream: &mut GenerateStream| {
            let mut answer = Answer::default();
            answer.update(stream);
            answer
        };
        streams.iter_mut().map(read).collect()
    }

    /// How many steps ran so far.
    pub(crate) fn steps(&self) -> usize {
        self.steps.lock().unwrap().len()
    }

    /// Rows of all steps so far.
    pub(crate) fn rows(&self) -> usize {
        let steps = self.steps.lock().unwrap();
        steps.iter().flatten().map(|part| part.1).sum()
    }
}

/// The tokens that each request gets from an engine of its own.
pub(crate) fn alone(requests: &[GenerateRequest]) -> Vec<Vec<u32>> {
    let run = |request: &GenerateRequest| {
        let mut bench = Bench::new(256, 1, 512);
        bench.answers(std::slice::from_ref(request)).remove(0).ids
    };
    requests.iter().map(run).collect()
}

/// The tokens of finished answers.
pub(crate) fn ids(answers: &[Answer]) -> Vec<Vec<u32>> {
    assert!(answers.iter().all(|a| a.cached.is_some()), "{answers:?}");
    answers.iter().map(|a| a.ids.clone()).collect()
}
