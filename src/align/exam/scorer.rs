//! Log-probabilities of given texts on the served weights, adapter included: the executor's
//! prompt pass, whole prompts shared by their continuations.

use candle_core::{Result, bail};
use rayon::prelude::*;

use realign_model::{
    AdapterSpan, BLOCK_TOKENS, Backend, Executor, ExecutorOptions, KvType, Outputs, PagedSequence,
    Staged, Step,
};

/// A prompt and what may follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Context tokens; at least one.
    pub prompt: Vec<u32>,
    /// Continuations to score; each has at least one token.
    pub continuations: Vec<Vec<u32>>,
}

/// Rows of one forward pass.
const BATCH_ROWS: usize = 512;
/// Bytes of logits that may exist at once.
const LOGIT_BYTES: usize = 96 << 20;
/// Tokens that the cache holds: more than a batch, since prompts and their continuations round up
/// to whole blocks.
const CACHE_TOKENS: usize = 4096;

/// What a scorer takes: rows of a pass, blocks of its cache, bytes of logits.
pub(crate) fn sizes(vocab: usize) -> (usize, usize, usize) {
    let logits = LOGIT_BYTES.min(4 * BATCH_ROWS * vocab);
    (BATCH_ROWS, CACHE_TOKENS.div_ceil(BLOCK_TOKENS), logits)
}

/// Scores continuations with an executor and a cache of its own.
pub struct Scorer {
    executor: Box<dyn Executor>,
    logits: Vec<f32>,
}

impl Scorer {
    /// A scorer with `threads` threads.
    ///
    /// # Errors
    /// If memory or threads are unavailable.
    pub fn new(backend: &dyn Backend, threads: usize) -> Result<Self> {
        let sizes = ExecutorOptions {
            blocks: CACHE_TOKENS.div_ceil(BLOCK_TOKENS),
            threads,
            record: false,
            kv: KvType::F32,
        };
        Ok(Self {
            executor: backend.executor(sizes)?,
            logits: Vec::new(),
        })
    }

    /// log p of every token of every continuation, question by question.
    ///
    /// # Errors
    /// If a question is empty or does not fit the cache.
    pub fn score(
        &mut self,
        questions: &[Question],
        adapter: Option<&Staged>,
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let most_outputs = (LOGIT_BYTES / 4 / self.executor.vocab_size().max(1)).max(1);
        let mut scored = Vec::with_capacity(questions.len());
        let mut start = 0;
        while start < questions.len() {
            let (mut rows, mut outputs) = (0, 0);
            let fits = questions[start..].iter().take_while(|q| {
                let (more_rows, more_outputs) = size(q);
                rows += more_rows;
                outputs += more_outputs;
                rows <= BATCH_ROWS && outputs <= most_outputs
            });
            let end = start + fits.count().max(1);
            scored.extend(self.batch(&questions[start..end], adapter)?);
            start = end;
        }
        Ok(scored)
    }

    fn batch(
        &mut self,
        questions: &[Question],
        adapter: Option<&Staged>,
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        if let Some(empty) = questions
            .iter()
            .find(|q| q.prompt.is_empty() || q.continuations.iter().any(Vec::is_empty))
        {
            bail!("a question without tokens cannot be scored: {empty:?}");
        }
        let layout = Layout::new(questions);
        if layout.blocks as usize * BLOCK_TOKENS > CACHE_TOKENS {
            bail!("a question of more than {CACHE_TOKENS} tokens cannot be scored");
        }
        layout.prompts.run(&mut *self.executor, adapter, &mut [])?;
        let vocabulary = self.executor.vocab_size();
        self.logits
            .resize(layout.continuations.outputs.len() * vocabulary, 0.0);
        layout
            .continuations
            .run(&mut *self.executor, adapter, &mut self.logits)?;
        let values: Vec<f64> = self
            .logits
            .par_chunks(vocabulary)
            .zip(&layout.targets)
            .map(|(row, target)| log_probability(row, *target as usize))
            .collect();
        let mut values = values.into_iter();
        let of = |q: &Question| {
            let continuations = q.continuations.iter();
            continuations
                .map(|c| values.by_ref().take(c.len()).collect())
                .collect()
        };
        Ok(questions.iter().map(of).collect())
    }
}

/// Tokens of a prompt that its continuations share: whole blocks, and never its last token, whose
/// row predicts each continuation's first.
fn shared(question: &Question) -> usize {
    question.prompt.len().saturating_sub(1) / BLOCK_TOKENS * BLOCK_TOKENS
}

/// Rows and outputs of a question's second pass.
fn size(question: &Question) -> (usize, usize) {
    let own = question.prompt.len() - shared(question);
    let continuations = question.continuations.iter();
    let rows = continuations
        .clone()
        .map(|c| own + c.len().saturating_sub(1));
    (
        shared(question) + rows.sum::<usize>(),
        continuations.map(Vec::len).sum(),
    )
}

/// One forward pass.
#[derive(Debug, Default)]
struct Pass {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<PagedSequence>,
    outputs: Vec<u32>,
}

impl Pass {
    fn push(&mut self, tokens: impl Iterator<Item = u32>, cached: usize, blocks: Vec<u32>) {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        let rows = self.tokens.len() - start;
        self.positions
            .extend((cached..cached + rows).map(|p| p as u32));
        self.sequences.push(PagedSequence {
            start,
            rows,
            cached,
            blocks: blocks.into(),
        });
    }

    fn run(
        &self,
        executor: &mut dyn Executor,
        adapter: Option<&Staged>,
        logits: &mut [f32],
    ) -> Result<()> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let adapters: Vec<AdapterSpan> = adapter
            .map(|adapter| AdapterSpan {
                rows: 0..self.tokens.len(),
                adapter: adapter.clone(),
            })
            .into_iter()
            .collect();
        let step = Step {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &self.sequences,
            adapters: &adapters,
            outputs: &self.outputs,
        };
        let mut outputs = Outputs {
            draws: &vec![None; self.outputs.len()],
            logits,
            tokens: &mut Vec::new(),
        };
        executor.forward(&step, &mut outputs)
    }
}

/// Shared parts of the prompts first, then every continuation behind the rest of its prompt.
#[derive(Debug, Default)]
struct Layout {
    prompts: Pass,
    continuations: Pass,
    targets: Vec<u32>,
    blocks: u32,
}

impl Layout {
    fn new(questions: &[Question]) -> Self {
        let mut layout = Layout::default();
        for question in questions {
            layout.push(question);
        }
        layout
    }

    fn take(&mut self, tokens: usize) -> Vec<u32> {
        let first = self.blocks;
        self.blocks += tokens.div_ceil(BLOCK_TOKENS) as u32;
        (first..self.blocks).collect()
    }

    fn push(&mut self, question: &Question) {
        let shared = shared(question);
        let (before, rest) = question.prompt.split_at(shared);
        let common = self.take(shared);
        if shared > 0 {
            self.prompts.push(before.iter().copied(), 0, common.clone());
        }
        for continuation in &question.continuations {
            let fed = &continuation[..continuation.len() - 1];
            let mut blocks = common.clone();
            blocks.extend(self.take(rest.len() + fed.len()));
            let first = self.continuations.tokens.len() + rest.len() - 1;
            let outputs = first..first + continuation.len();
            self.continuations
                .outputs
                .extend(outputs.map(|row| row as u32));
            self.targets.extend(continuation);
            let tokens = rest.iter().chain(fed).copied();
            self.continuations.push(tokens, shared, blocks);
        }
    }
}

/// log softmax at one place, summed in f64.
fn log_probability(logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from((logit - largest).exp()))
        .sum();
    f64::from(logits[target] - largest) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_cpu::CpuBackend;
    use realign_model::ModelSource;
    use realign_model::packing::{Example, Packed};

    /// The executor against the model that training differentiates, both in f32, over prompts that
    /// share no block, one and several.
    #[test]
    fn scores_are_those_of_the_training_model() {
        let files = ModelSource::parse(&realign_model::test_support::path(
            "tests/golden/families/llama",
        ))
        .unwrap();
        let files = files.fetch().unwrap();
        let plain = realign_reference::load(&files).unwrap();
        let packed = CpuBackend::new(realign_cpu::load(&files).unwrap());
        let token = |n: usize| (n * 37 % 250) as u32;
        let question = |length: usize| Question {
            prompt: (0..length).map(token).collect(),
            continuations: vec![vec![5, 9, 11], vec![7], (20..45).map(token).collect()],
        };
        let questions: Vec<Question> = [1, 15, 16, 17, 18, 40, 70].map(question).to_vec();
        let mut scorer = Scorer::new(&packed, 2).unwrap();
        let scored = scorer.score(&questions, None).unwrap();
        for (question, scored) in questions.iter().zip(&scored) {
            let example = Example::new(question.prompt.clone(), question.continuations.clone());
            let expected = plain.response_logprobs(&Packed::new([&example]), None);
            let expected = expected.unwrap();
            for (got, expected) in scored.iter().zip(&expected[0]) {
                let got: f64 = got.iter().sum();
                assert!((got - expected).abs() < 2e-3, "{got} against {expected}");
            }
        }
    }

    #[test]
    fn empty_questions_are_refused() {
        let files = ModelSource::parse(&realign_model::test_support::path(
            "tests/golden/families/llama",
        ))
        .unwrap();
        let model = realign_cpu::load(&files.fetch().unwrap()).unwrap();
        let mut scorer = Scorer::new(&CpuBackend::new(model), 1).unwrap();
        let question = Question {
            prompt: vec![],
            continuations: vec![vec![1]],
        };
        assert!(scorer.score(&[question], None).is_err());
    }
}
