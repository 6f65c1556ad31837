//! Impact scores ⟨g_J, g_k⟩, by directional derivative and, as its slow twin, by per-pair gradients.

use candle_core::Result;

use super::gold::{GoldBatch, GoldPair};
use crate::train::passes::{Passes, PerResponse};
use crate::train::run::ROW_BUDGET;
use crate::train::{Gradients, Objective, TrainExample, TrainableLora};
use realign_core::Category;
use realign_model::packing::{Example, group_by_rows};
use realign_model::{Backend, LoraWeights, Precision};

/// Raw scores of the conflicting pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Index into the examples given, ascending.
    pub index: Vec<usize>,
    /// ⟨g_J, g_k⟩ of each.
    pub score: Vec<f64>,
    /// log π_θ of each one's responses: at a fresh adapter, the reference's. Empty where the
    /// method does not come by them.
    pub(crate) logprobs: Vec<PerResponse>,
}

impl Scored {
    /// Writes the log-probabilities of a fresh adapter into the examples that were scored, as
    /// their reference.
    pub(crate) fn complete(&self, examples: &mut [TrainExample]) {
        for (index, logprobs) in self.index.iter().zip(&self.logprobs) {
            examples[*index].reference = *logprobs;
        }
    }
}

/// The model and the adapter at which gradients are taken.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The model.
    pub backend: &'a dyn Backend,
    /// θ: usually a fresh adapter (B = 0), where the model equals the reference.
    pub adapter: &'a LoraWeights,
    /// The losses' constants.
    pub objective: Objective,
    /// Arithmetic of gradients and tangents.
    pub precision: Precision,
}

impl At<'_> {
    fn passes(&self) -> Result<Passes> {
        Passes::new(self.backend, self.precision)
    }

    /// Mean gradient of the gold pairs' preference loss. Each comes with its log π_ref, or with
    /// `None` where θ is the reference itself and every margin 0.
    pub fn gold_gradient(
        &self,
        passes: &mut Passes,
        pairs: &[(&Example, Option<PerResponse>)],
        mut proceed: impl FnMut() -> bool,
    ) -> Result<Option<Gradients>> {
        let layouts: Vec<Example> = pairs.iter().map(|(e, _)| (*e).clone()).collect();
        let mut sum: Option<Gradients> = None;
        for group in group_by_rows(&layouts, ROW_BUDGET) {
            if !proceed() {
                return Ok(None);
            }
            let part = passes.gold(&self.objective, self.adapter, &pairs[group])?;
            sum = Some(match sum {
                Some(sum) => sum.add(&part)?,
                None => part,
            });
        }
        sum.map(|sum| sum.scaled(1.0 / pairs.len() as f64))
            .transpose()
    }

    /// The gold gradient of one fold; the fold's own log π_ref are needed only where the adapter
    /// is not fresh: a fresh one gives every margin as 0.
    fn fold_gradient(
        &self,
        passes: &mut Passes,
        fold: &[GoldPair],
        fresh: bool,
        proceed: &mut impl FnMut() -> bool,
    ) -> Result<Option<Gradients>> {
        let mut examples: Vec<Example> = fold.iter().map(|g| g.example.clone()).collect();
        let lowest = self.adapter.sites.keys().map(|site| site.layer).min();
        let mut reference = Vec::with_capacity(examples.len());
        for group in group_by_rows(&examples, ROW_BUDGET) {
            if !proceed() {
                return Ok(None);
            }
            let examples = &mut examples[group];
            passes.remember(examples, lowest.unwrap_or(0))?;
            reference.extend(match fresh {
                true => vec![None; examples.len()],
                false => {
                    let known = passes.logprobs(examples, None)?;
                    known.into_iter().map(Some).collect()
                }
            });
        }
        let pairs: Vec<_> = examples.iter().zip(reference).collect();
        self.gold_gradient(passes, &pairs, proceed)
    }

    /// ⟨direction, ∇ℓ⟩ of some examples, and their log-probabilities.
    fn along(
        &self,
        passes: &mut Passes,
        group: &[&TrainExample],
        direction: &Gradients,
        fresh: bool,
        proceed: &mut impl FnMut() -> bool,
    ) -> Result<Option<Vec<(f64, PerResponse)>>> {
        let layouts: Vec<Example> = group.iter().map(|e| e.example.clone()).collect();
        let mut scores = Vec::with_capacity(group.len());
        for part in group_by_rows(&layouts, ROW_BUDGET) {
            if !proceed() {
                return Ok(None);
            }
            let both = passes.slopes(&layouts[part.clone()], self.adapter, direction)?;
            for (example, [value, slope]) in group[part].iter().zip(both) {
                let ratio = match fresh {
                    true => [0.0; 2],
                    false => [0, 1].map(|r| value[r] - example.reference[r]),
                };
                scores.push((self.chain(example, slope, ratio), value));
            }
        }
        Ok(Some(scores))
    }

    /// ⟨direction, ∇ℓ⟩ of one example from the derivative of its log-probabilities and its
    /// log-ratios to the reference at θ (zero for a fresh adapter).
    fn chain(&self, example: &TrainExample, slope: PerResponse, ratio: PerResponse) -> f64 {
        match example.category {
            Category::Invert => {
                self.objective.preference_slope(ratio[0] - ratio[1]) * (slope[0] - slope[1])
            }
            Category::Punish => (0..2)
                .map(|r| self.objective.npo_slope(ratio[r]) * slope[r])
                .sum(),
            Category::Retain => 0.0,
        }
    }
}

/// Scores every conflicting example without a gradient of its own. `fresh` says that the adapter's
/// B is zero, which makes every log-ratio 0. `proceed` is asked before each batch; `None` comes
/// back if it says no.
pub fn directional(
    at: At,
    examples: &[TrainExample],
    gold: &GoldBatch,
    fresh: bool,
    mut proceed: impl FnMut() -> bool,
) -> Result<Option<Scored>> {
    let mut passes = at.passes()?;
    let mut folds = Vec::with_capacity(2);
    for fold in gold.folds.iter().filter(|fold| !fold.is_empty()) {
        match at.fold_gradient(&mut passes, fold, fresh, &mut proceed)? {
            Some(gradient) => folds.push(gradient),
            None => return Ok(None),
        }
    }
    let mut scored: Vec<(usize, (f64, PerResponse))> = Vec::new();
    for (seen_by, direction) in directions(folds)? {
        let index: Vec<usize> = (0..examples.len())
            .filter(|&i| examples[i].category.is_conflict() && gold.fold_of(i) == seen_by)
            .collect();
        let group: Vec<&TrainExample> = index.iter().map(|&i| &examples[i]).collect();
        match at.along(&mut passes, &group, &direction, fresh, &mut proceed)? {
            Some(scores) => scored.extend(index.into_iter().zip(scores)),
            None => return Ok(None),
        }
    }
    scored.sort_by_key(|(i, _)| *i);
    let (index, both): (Vec<usize>, Vec<_>) = scored.into_iter().unzip();
    let (score, logprobs) = both.into_iter().unzip();
    Ok(Some(Scored {
        index,
        score,
        logprobs,
    }))
}

/// Which gradient each group of pairs is scored against: pairs outside the gold batch against
/// both folds' mean, pairs inside against the fold they are not in.
fn directions(folds: Vec<Gradients>) -> Result<Vec<(Option<usize>, Gradients)>> {
    match <[Gradients; 2]>::try_from(folds) {
        Ok([first, second]) => {
            let both = first.scaled(0.5)?.add(&second.scaled(0.5)?)?;
            Ok(vec![(None, both), (Some(0), second), (Some(1), first)])
        }
        // One fold means one gold pair: it can only be scored against itself.
        Err(rest) => Ok(rest
            .into_iter()
            .flat_map(|g| [(None, g.clone()), (Some(0), g)])
            .collect()),
    }
}

/// The slow twin: one backward pass per pair, against one gradient for the whole gold batch.
pub fn per_pair(at: At, examples: &[TrainExample], direction: &Gradients) -> Result<Scored> {
    let mut passes = at.passes()?;
    let lora = TrainableLora::from_weights(at.adapter)?;
    let unweighted = Objective {
        alpha_sft: 0.0,
        ..at.objective
    };
    let mut scored = Scored {
        index: vec![],
        score: vec![],
        logprobs: vec![],
    };
    for (i, example) in conflicts(examples) {
        let example = TrainExample {
            weight: 1.0,
            ..example.clone()
        };
        let (gradients, _) = passes.loss(&unweighted, &lora, &[&example])?;
        scored.index.push(i);
        scored.score.push(gradients.dot(direction)?);
    }
    Ok(scored)
}

/// As [`directional`] for one given direction and no folds: what the slow twin computes, fast.
pub fn directional_along(
    at: At,
    examples: &[TrainExample],
    direction: &Gradients,
) -> Result<Scored> {
    let (index, group): (Vec<usize>, Vec<&TrainExample>) = conflicts(examples).unzip();
    let mut passes = at.passes()?;
    let both = at.along(&mut passes, &group, direction, false, &mut || true)?;
    let (score, logprobs) = both.unwrap_or_default().into_iter().unzip();
    Ok(Scored {
        index,
        score,
        logprobs,
    })
}

fn conflicts(examples: &[TrainExample]) -> impl Iterator<Item = (usize, &TrainExample)> {
    examples
        .iter()
        .enumerate()
        .filter(|(_, e)| e.category.is_conflict())
}
