//! Hidden states of the base model, pooled: what probes read.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use realign_model::vector::all_finite;
use realign_model::{
    BLOCK_TOKENS, ChatMessage, Executor, ExecutorOptions, KvType, LoadedModel, PagedSequence,
    Precision, Step,
};

use super::features::{FeatureError, FeatureSource};
use crate::policy::Exchange;

/// Rows of one forward pass: enough to keep the cores busy, 47 MB of cache on the default model.
pub const BATCH_ROWS: usize = 1024;
/// Blocks of the cache of a pass: its rows, and what is left of each sequence's last block.
const BATCH_BLOCKS: usize = BATCH_ROWS.div_ceil(BLOCK_TOKENS) + BATCH_ROWS / 8;
/// Most tokens of a prompt that are read, from its end: what is asked stands last.
const PROMPT_TOKENS: usize = 192;
/// Most tokens of a response that are read, from its start. What a response is shows early, and
/// time grows with every token.
const RESPONSE_TOKENS: usize = 160;

/// The base model as a source of features, on the model's device.
pub struct HiddenStates {
    loaded: LoadedModel,
    layers: Vec<usize>,
    /// Tokens that the chat template puts before and after what a user writes.
    frame: [usize; 2],
    /// It has a small cache and buffers of its own, apart from serving's.
    executor: Mutex<Box<dyn Executor>>,
}

impl std::fmt::Debug for HiddenStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HiddenStates")
            .field("base", &self.loaded.base_hash)
            .finish_non_exhaustive()
    }
}

/// One exchange as token ids.
struct Rendered {
    tokens: Vec<u32>,
    /// What the user wrote, the template's words apart; never empty.
    asked: Range<usize>,
    /// The response, without the end of its turn where there is more; never empty.
    answered: Range<usize>,
}

impl HiddenStates {
    /// Reads the base model's hidden states with `threads` threads.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn new(loaded: LoadedModel, threads: usize) -> Result<Self, FeatureError> {
        // Steps are large and each of another shape: none is worth recording.
        let sizes = ExecutorOptions {
            blocks: BATCH_BLOCKS,
            threads,
            record: false,
            kv: KvType::F32,
            precision: Precision::Exact,
        };
        let executor = loaded.backend.executor(sizes);
        let executor = executor.map_err(|error| FeatureError(error.to_string()))?;
        Ok(Self {
            layers: chosen_layers(loaded.spec().layers),
            frame: frame(&loaded)?,
            executor: Mutex::new(executor),
            loaded,
        })
    }

    /// Shows the residual stream where it enters each layer, (rows, hidden).
    fn residuals(
        &self,
        step: &Step,
        layers: &[usize],
        mut show: impl FnMut(usize, &[f32]),
    ) -> candle_core::Result<()> {
        // A panic elsewhere leaves buffers that the next pass overwrites.
        let mut executor = self.executor.lock().unwrap_or_else(PoisonError::into_inner);
        executor.residuals(step, layers, &mut show)
    }

    fn render(&self, exchange: &Exchange<'_>) -> Result<Rendered, FeatureError> {
        let mut tokens = prompt_tokens(&self.loaded, exchange.prompt)?;
        let cut = tokens.len().saturating_sub(PROMPT_TOKENS);
        tokens.drain(..cut);
        let prompt = tokens.len();
        let [before, after] = self.frame;
        let inside = before.saturating_sub(cut)..prompt.saturating_sub(after);
        let (chat, tokenizer) = (&self.loaded.chat, &self.loaded.tokenizer);
        let mut response = chat
            .encode_response(tokenizer, exchange.response)
            .map_err(|error| FeatureError(error.to_string()))?;
        response.truncate(RESPONSE_TOKENS);
        let ends = response.len() > 1 && response.last() == Some(&chat.end_of_turn_id());
        tokens.extend(response);
        if prompt == 0 || tokens.len() == prompt {
            return Err(FeatureError(
                "an exchange without tokens has no hidden states".into(),
            ));
        }
        Ok(Rendered {
            asked: if inside.is_empty() { 0..prompt } else { inside },
            answered: prompt..tokens.len() - usize::from(ends),
            tokens,
        })
    }

    /// One forward pass over exchanges that fit in it.
    fn pass(&self, batch: &[Rendered]) -> Result<Vec<Vec<Vec<f32>>>, FeatureError> {
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut sequences = Vec::new();
        let mut block = 0u32;
        for rendered in batch {
            let rows = rendered.tokens.len();
            let blocks = rows.div_ceil(BLOCK_TOKENS) as u32;
            sequences.push(PagedSequence {
                start: tokens.len(),
                rows,
                cached: 0,
                blocks: (block..block + blocks).collect(),
            });
            block += blocks;
            tokens.extend_from_slice(&rendered.tokens);
            positions.extend(0..rows as u32);
        }
        let step = Step {
            tokens: &tokens,
            positions: &positions,
            sequences: &sequences,
            adapters: &[],
            outputs: &[],
        };
        let width = self.loaded.spec().hidden_size;
        let mut out = vec![vec![Vec::new(); self.layers.len()]; batch.len()];
        let pooled = self.residuals(&step, &self.layers, |layer, x| {
            for (i, (rendered, sequence)) in batch.iter().zip(&sequences).enumerate() {
                let rows = &x[sequence.start * width..(sequence.start + sequence.rows) * width];
                if let Some(slot) = self.layers.iter().position(|l| *l == layer) {
                    out[i][slot] = pool(rows, width, rendered);
                }
            }
        });
        pooled.map_err(|error| FeatureError(error.to_string()))?;
        // No threshold is reached by NaN: a broken model would make everything comply.
        if !out.iter().flatten().all(|pooled| all_finite(pooled)) {
            let why = "the base model's hidden states are not finite numbers (NaN or infinity)";
            return Err(FeatureError(why.into()));
        }
        Ok(out)
    }
}

impl FeatureSource for HiddenStates {
    fn base(&self) -> &str {
        &self.loaded.base_hash
    }

    fn features(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Vec<Vec<f32>>>, FeatureError> {
        let rendered = exchanges
            .iter()
            .map(|e| self.render(e))
            .collect::<Result<Vec<_>, _>>()?;
        let mut out = Vec::with_capacity(exchanges.len());
        let mut start = 0;
        while start < rendered.len() {
            let mut rows = 0;
            let fits = rendered[start..].iter().take_while(|r| {
                rows += r.tokens.len();
                rows <= BATCH_ROWS
            });
            // An exchange has at most PROMPT_TOKENS + RESPONSE_TOKENS rows, so one always fits.
            let end = start + fits.count().max(1);
            out.extend(self.pass(&rendered[start..end])?);
            start = end;
        }
        Ok(out)
    }
}

/// Layers whose residual streams are read: six between a fifth of the depth and the top.
fn chosen_layers(layers: usize) -> Vec<usize> {
    let mut out: Vec<usize> = (1..=6).map(|i| (layers * (i + 1)).div_ceil(7)).collect();
    out.dedup();
    out
}

/// One vector from the rows of an exchange, (rows, width): both texts' means, side by side.
fn pool(rows: &[f32], width: usize, rendered: &Rendered) -> Vec<f32> {
    let of = |part: &Range<usize>| mean(&rows[part.start * width..part.end * width], width);
    let mut both = of(&rendered.asked);
    both.extend(of(&rendered.answered));
    both
}

/// A prompt as the model would be asked it.
fn prompt_tokens(loaded: &LoadedModel, prompt: &str) -> Result<Vec<u32>, FeatureError> {
    let tokens = loaded
        .chat
        .encode_chat(&loaded.tokenizer, &[ChatMessage::user(prompt)], true);
    tokens.map_err(|error| FeatureError(error.to_string()))
}

/// How many tokens two prompts that share no token have in common at their start and at their end.
/// They are the same for every prompt and would only water a mean down.
fn frame(loaded: &LoadedModel) -> Result<[usize; 2], FeatureError> {
    let (one, other) = (prompt_tokens(loaded, "Q")?, prompt_tokens(loaded, "7")?);
    let same = |(a, b): &(&u32, &u32)| a == b;
    Ok([
        one.iter().zip(&other).take_while(same).count(),
        one.iter()
            .rev()
            .zip(other.iter().rev())
            .take_while(same)
            .count(),
    ])
}

fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; width];
    let mut unit = vec![0.0f32; width];
    for row in rows.chunks_exact(width) {
        unit.copy_from_slice(row);
        normalise(&mut unit);
        sum.iter_mut().zip(&unit).for_each(|(s, v)| *s += v);
    }
    let count = (rows.len() / width).max(1) as f32;
    sum.iter_mut().for_each(|s| *s /= count);
    sum
}

/// Scales a row to mean square 1, as the layer that reads it does: a few tokens of enormous norm
/// would otherwise be all that a mean shows.
fn normalise(row: &mut [f32]) {
    let square = row.iter().map(|v| v * v).sum::<f32>() / row.len().max(1) as f32;
    let scale = (square + 1e-6).sqrt().recip();
    row.iter_mut().for_each(|v| *v *= scale);
}
