//! From triaged pairs to what the objective takes: tokens, the preferred response first, and the
//! reference model's view of them, computed once.

use candle_core::{Result, Tensor};
use serde::Serialize;

use super::passes::Passes;
use realign_core::Category;
use realign_model::packing::{Example, Packed, group_by_rows};
use realign_model::{Backend, Precision};

/// A pair as token ids: the prompt rendered with the chat template, each response ending with the
/// end-of-turn token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenPair {
    /// Content id of the preference pair.
    pub id: String,
    /// Where triage put it.
    pub category: Category,
    /// Prompt tokens, generation prompt included.
    pub prompt: Vec<u32>,
    /// The response the dataset prefers.
    pub chosen: Vec<u32>,
    /// The other one.
    pub rejected: Vec<u32>,
}

/// What the id of a control begins with.
pub(crate) const CONTROL: &str = "control-";

impl TokenPair {
    /// Whether it keeps the base's answer to a prompt that no rule is about.
    pub(crate) fn is_control(&self) -> bool {
        self.id.starts_with(CONTROL)
    }

    /// Prompt, then (preferred, dispreferred) as the *new* policy sees them: swapped for INVERT.
    pub fn preference(&self) -> Example {
        let responses = match self.category {
            Category::Invert => vec![self.rejected.clone(), self.chosen.clone()],
            Category::Punish | Category::Retain => vec![self.chosen.clone(), self.rejected.clone()],
        };
        Example::new(self.prompt.clone(), responses)
    }
}

/// A pair ready for the objective.
#[derive(Clone, Debug)]
pub struct TrainExample {
    /// Content id of the preference pair.
    pub id: String,
    /// Which loss applies.
    pub category: Category,
    /// INVERT: (preferred, dispreferred); PUNISH: both responses; RETAIN: the chosen one alone.
    pub example: Example,
    /// Impact weight; 1 for RETAIN.
    pub weight: f64,
    /// log π_ref of each response, summed over its tokens; the second is 0 for RETAIN.
    pub reference: [f64; 2],
    /// RETAIN only: the reference's final hidden states that predict the response,
    /// (response tokens, hidden). Its logits come from these when needed: 85 times smaller.
    pub reference_hidden: Option<Tensor>,
}

impl TrainExample {
    /// A pair at weight 1 that no reference has measured.
    pub fn unmeasured(pair: &TokenPair) -> Self {
        let mut example = pair.preference();
        if pair.category == Category::Retain {
            example.responses.truncate(1);
        }
        Self {
            id: pair.id.clone(),
            category: pair.category,
            example,
            weight: 1.0,
            reference: [0.0; 2],
            reference_hidden: None,
        }
    }
}

/// A pair that cannot be trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Content id of the pair.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// What `prepare` made of the pairs.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Ready pairs, in the order given.
    pub pairs: Vec<TokenPair>,
    /// The others, with reasons.
    pub skipped: Vec<Skipped>,
}

/// Keeps the pairs that fit: truncating would drop the end-of-turn token or empty a response, so
/// a pair that is too long is left out and counted instead.
pub fn prepare(pairs: impl IntoIterator<Item = TokenPair>, max_tokens: usize) -> Prepared {
    let mut prepared = Prepared::default();
    for pair in pairs {
        let longest = pair.prompt.len() + pair.chosen.len().max(pair.rejected.len());
        let reason = if pair.prompt.is_empty() || pair.chosen.len() < 2 || pair.rejected.len() < 2 {
            Some("the prompt or a response is empty".to_string())
        } else if longest > max_tokens {
            Some(format!(
                "{longest} tokens, the recipe's max_tokens is {max_tokens}"
            ))
        } else {
            None
        };
        match reason {
            Some(reason) => prepared.skipped.push(Skipped {
                id: pair.id,
                reason,
            }),
            None => prepared.pairs.push(pair),
        }
    }
    prepared
}

/// Runs the reference model (no adapter) over all pairs, at most `row_budget` rows at a time, and
/// remembers the residual stream that enters `lowest_layer`, the first one an adapter may touch.
/// Without `conflicts` only RETAIN pairs get beyond that layer here.
/// `proceed` is asked before each batch; `None` comes back if it says no.
pub fn with_reference(
    at: Reference,
    pairs: &[TokenPair],
    row_budget: usize,
    mut proceed: impl FnMut(usize) -> bool,
) -> Result<Option<Vec<TrainExample>>> {
    let Reference {
        backend,
        lowest_layer,
        precision,
        conflicts,
    } = at;
    let mut passes = Passes::new(backend, precision)?;
    let mut examples: Vec<TrainExample> = pairs.iter().map(TrainExample::unmeasured).collect();
    let layouts: Vec<Example> = examples.iter().map(|e| e.example.clone()).collect();
    for group in group_by_rows(&layouts, row_budget) {
        if !proceed(group.start) {
            return Ok(None);
        }
        let batch = &mut examples[group];
        let mut layouts: Vec<Example> = batch.iter().map(|e| e.example.clone()).collect();
        passes.remember(&mut layouts, lowest_layer)?;
        for (example, layout) in batch.iter_mut().zip(layouts) {
            example.example = layout;
        }
        let mut batch: Vec<&mut TrainExample> = batch
            .iter_mut()
            .filter(|e| conflicts || !e.category.is_conflict())
            .collect();
        if batch.is_empty() {
            continue;
        }
        let packed = Packed::new(batch.iter().map(|e| &e.example));
        let (hidden, logprobs) = passes.reference(&packed, None)?;
        for (i, example) in batch.iter_mut().enumerate() {
            for response in 0..example.example.responses.len().min(2) {
                let tokens = &logprobs[packed.span(i, response)];
                example.reference[response] = tokens.iter().map(|&v| f64::from(v)).sum();
            }
            if example.category == Category::Retain {
                let span = packed.span(i, 0);
                example.reference_hidden =
                    Some(hidden.narrow(0, span.start, span.len())?.copy()?.detach());
            }
        }
    }
    Ok(Some(examples))
}

/// What [`with_reference`] runs on.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// The model.
    pub backend: &'a dyn Backend,
    /// First layer that an adapter may touch.
    pub lowest_layer: usize,
    /// Arithmetic of the passes: training's, or log-ratios would begin beside 0.
    pub precision: Precision,
    /// Whether conflicting pairs are measured. Scoring them does that on the way, see
    /// [`Scored::logprobs`](crate::impact::Scored).
    pub conflicts: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(category: Category, chosen: usize) -> TokenPair {
        TokenPair {
            id: "p".into(),
            category,
            prompt: vec![1, 2],
            chosen: vec![7; chosen],
            rejected: vec![8, 8, 8],
        }
    }

    #[test]
    fn the_preferred_response_comes_first() {
        assert_eq!(
            pair(Category::Invert, 2).preference().responses,
            [vec![8, 8, 8], vec![7, 7]]
        );
        assert_eq!(
            pair(Category::Punish, 2).preference().responses,
            [vec![7, 7], vec![8, 8, 8]]
        );
        assert_eq!(
            TrainExample::unmeasured(&pair(Category::Retain, 2))
                .example
                .responses,
            [vec![7, 7]]
        );
    }

    #[test]
    fn pairs_that_do_not_fit_are_reported_not_truncated() {
        let prepared = prepare(
            [
                pair(Category::Retain, 1),
                pair(Category::Retain, 4),
                pair(Category::Retain, 9),
            ],
            8,
        );
        assert_eq!(prepared.pairs.len(), 1);
        assert_eq!(prepared.skipped.len(), 2);
        assert!(
            prepared.skipped[1].reason.contains("11 tokens"),
            "{:?}",
            prepared.skipped
        );
    }
}
