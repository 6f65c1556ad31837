//! Impact scores ⟨g_J, g_k⟩, by directional derivative and, as its slow twin, by per-pair gradients.

use candle_core::Result;

use super::gold::GoldBatch;
use crate::model::packing::{Example, Packed, group_by_rows, remember_states};
use crate::model::{LoraWeights, Model, Ops};
use crate::train::run::ROW_BUDGET;
use crate::train::{Gradients, Objective, TrainExample, TrainableLora};
use crate::triage::Category;

/// Raw scores of the conflicting pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Index into the examples given, ascending.
    pub index: Vec<usize>,
    /// ⟨g_J, g_k⟩ of each.
    pub score: Vec<f64>,
}

/// The model and the adapter at which gradients are taken.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// f32 weights.
    pub model: &'a Model,
    /// Form of the operations.
    pub ops: Ops,
    /// θ: usually a fresh adapter (B = 0), where the model equals the reference.
    pub adapter: &'a LoraWeights,
    /// The losses' constants.
    pub objective: Objective,
}

/// Step of the central difference, as a length in parameter space. At this length the response
/// log-probabilities of the default model move by about half a unit: far above f32's noise of
/// 2e-4 and, by test against per-pair gradients, well inside the linear range.
const STEP_LENGTH: f64 = 6e-3;

impl At<'_> {
    /// Mean gradient of the gold pairs' preference loss; `reference` are their log π_ref.
    pub fn gold_gradient(
        &self,
        pairs: &[(&Example, [f64; 2])],
        mut proceed: impl FnMut() -> bool,
    ) -> Result<Option<Gradients>> {
        let lora = TrainableLora::from_weights(self.adapter)?;
        let layouts: Vec<Example> = pairs.iter().map(|(e, _)| (*e).clone()).collect();
        let mut sum: Option<Gradients> = None;
        for group in group_by_rows(&layouts, ROW_BUDGET) {
            if !proceed() {
                return Ok(None);
            }
            let loss =
                self.objective
                    .gold_loss(self.model, self.ops, &lora.weights(), &pairs[group])?;
            let part = lora.gradients(&(loss / pairs.len() as f64)?.backward()?)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&part)?,
                None => part,
            });
        }
        Ok(sum)
    }

    /// Computes the layers below the adapter once per example; `false` if `proceed` says stop.
    fn remember(
        &self,
        examples: &mut [Example],
        proceed: &mut impl FnMut() -> bool,
    ) -> Result<bool> {
        let lowest = self
            .adapter
            .sites
            .keys()
            .map(|site| site.layer)
            .min()
            .unwrap_or(0);
        for group in group_by_rows(examples, ROW_BUDGET) {
            if !proceed() {
                return Ok(false);
            }
            remember_states(self.model, self.ops, &mut examples[group], lowest)?;
        }
        Ok(true)
    }

    /// log π_ref of both responses of each example.
    fn reference(
        &self,
        examples: &[Example],
        proceed: &mut impl FnMut() -> bool,
    ) -> Result<Option<Vec<[f64; 2]>>> {
        self.logprobs(examples, None, proceed)
    }

    fn logprobs(
        &self,
        examples: &[Example],
        adapter: Option<&LoraWeights>,
        proceed: &mut impl FnMut() -> bool,
    ) -> Result<Option<Vec<[f64; 2]>>> {
        let mut all = Vec::with_capacity(examples.len());
        for group in group_by_rows(examples, ROW_BUDGET) {
            if !proceed() {
                return Ok(None);
            }
            let values =
                Packed::new(&examples[group]).response_logprobs(self.model, self.ops, adapter)?;
            all.extend(
                values
                    .into_iter()
                    .map(|v| [v[0], v.get(1).copied().unwrap_or(0.0)]),
            );
        }
        Ok(Some(all))
    }

    /// d log π_θ(y)/dε of both responses along `direction`, by a central difference.
    fn derivative(
        &self,
        examples: &[Example],
        direction: &Gradients,
        proceed: &mut impl FnMut() -> bool,
    ) -> Result<Option<Vec<[f64; 2]>>> {
        let norm = direction.norm()?;
        if norm == 0.0 {
            return Ok(Some(vec![[0.0; 2]; examples.len()]));
        }
        let step = STEP_LENGTH / norm;
        let ahead = self.logprobs(
            examples,
            Some(&direction.perturb(self.adapter, step)?),
            proceed,
        )?;
        let behind = self.logprobs(
            examples,
            Some(&direction.perturb(self.adapter, -step)?),
            proceed,
        )?;
        let (Some(ahead), Some(behind)) = (ahead, behind) else {
            return Ok(None);
        };
        let slope = |(a, b): ([f64; 2], [f64; 2])| [0, 1].map(|r| (a[r] - b[r]) / (2.0 * step));
        Ok(Some(ahead.into_iter().zip(behind).map(slope).collect()))
    }

    /// ⟨direction, ∇ℓ⟩ of one example from the derivative of its log-probabilities and its
    /// log-ratios to the reference at θ (zero for a fresh adapter).
    fn chain(&self, example: &TrainExample, slope: [f64; 2], ratio: [f64; 2]) -> f64 {
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

/// Scores every conflicting example with forward passes only. `fresh` says that the adapter's B
/// is zero, which makes every log-ratio 0 and saves a pass. `proceed` is asked before each batch
/// and told which of how many it is; `None` comes back if it says no.
pub fn directional(
    at: At,
    examples: &[TrainExample],
    gold: &GoldBatch,
    fresh: bool,
    mut proceed: impl FnMut() -> bool,
) -> Result<Option<Scored>> {
    let mut folds = Vec::with_capacity(2);
    for fold in &gold.folds {
        let mut gold_examples: Vec<Example> = fold.iter().map(|g| g.example.clone()).collect();
        if !at.remember(&mut gold_examples, &mut proceed)? {
            return Ok(None);
        }
        let Some(reference) = at.reference(&gold_examples, &mut proceed)? else {
            return Ok(None);
        };
        let pairs: Vec<(&Example, [f64; 2])> = gold_examples.iter().zip(reference).collect();
        match at.gold_gradient(&pairs, &mut proceed)? {
            Some(gradient) => folds.push(gradient),
            None if fold.is_empty() => {}
            None => return Ok(None),
        }
    }
    let conflicts: Vec<usize> = (0..examples.len())
        .filter(|&i| examples[i].category.is_conflict())
        .collect();
    let mut scored: Vec<(usize, f64)> = Vec::with_capacity(conflicts.len());
    for (seen_by, direction) in directions(folds)? {
        let group: Vec<usize> = conflicts
            .iter()
            .copied()
            .filter(|&i| gold.fold_of(i) == seen_by)
            .collect();
        let layouts: Vec<Example> = group.iter().map(|&i| examples[i].example.clone()).collect();
        let Some(slopes) = at.derivative(&layouts, &direction, &mut proceed)? else {
            return Ok(None);
        };
        let ratios = match fresh {
            true => vec![[0.0; 2]; group.len()],
            false => match at.logprobs(&layouts, Some(at.adapter), &mut proceed)? {
                Some(now) => now
                    .iter()
                    .zip(&group)
                    .map(|(l, &i)| [0, 1].map(|r| l[r] - examples[i].reference[r]))
                    .collect(),
                None => return Ok(None),
            },
        };
        scored.extend(
            group
                .iter()
                .zip(slopes)
                .zip(ratios)
                .map(|((&i, s), r)| (i, at.chain(&examples[i], s, r))),
        );
    }
    scored.sort_by_key(|(i, _)| *i);
    let (index, score) = scored.into_iter().unzip();
    Ok(Some(Scored { index, score }))
}

/// Which gradient each group of pairs is scored against: pairs outside the gold batch against
/// both folds' mean, pairs inside against the fold they are not in.
fn directions(folds: Vec<Gradients>) -> Result<Vec<(Option<usize>, Gradients)>> {
    match <[Gradients; 2]>::try_from(folds) {
        Ok([first, second]) => {
            let half = |g: &Gradients| -> Result<Gradients> {
                let pair = |(site, (a, b)): (&_, &(candle_core::Tensor, candle_core::Tensor))| {
                    Ok((*site, ((a * 0.5)?, (b * 0.5)?)))
                };
                Ok(Gradients {
                    sites: g.sites.iter().map(pair).collect::<Result<_>>()?,
                })
            };
            let both = half(&first)?.add(&half(&second)?)?;
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
    let lora = TrainableLora::from_weights(at.adapter)?;
    let unweighted = Objective {
        alpha_sft: 0.0,
        ..at.objective
    };
    let mut scored = Scored {
        index: vec![],
        score: vec![],
    };
    for (i, example) in examples
        .iter()
        .enumerate()
        .filter(|(_, e)| e.category.is_conflict())
    {
        let example = TrainExample {
            weight: 1.0,
            ..example.clone()
        };
        let (loss, _) = unweighted.loss(at.model, at.ops, &lora.weights(), &[&example])?;
        scored.index.push(i);
        scored
            .score
            .push(lora.gradients(&loss.backward()?)?.dot(direction)?);
    }
    Ok(scored)
}

/// As [`directional`] for one given direction and no folds: what the slow twin computes, fast.
pub fn directional_along(
    at: At,
    examples: &[TrainExample],
    direction: &Gradients,
) -> Result<Scored> {
    let index: Vec<usize> = (0..examples.len())
        .filter(|&i| examples[i].category.is_conflict())
        .collect();
    let layouts: Vec<Example> = index.iter().map(|&i| examples[i].example.clone()).collect();
    let mut always = || true;
    let slopes = at
        .derivative(&layouts, direction, &mut always)?
        .unwrap_or_default();
    let now = at
        .logprobs(&layouts, Some(at.adapter), &mut always)?
        .unwrap_or_default();
    let ratio = |(l, &i): (&[f64; 2], &usize)| [0, 1].map(|r| l[r] - examples[i].reference[r]);
    let ratios: Vec<[f64; 2]> = now.iter().zip(&index).map(ratio).collect();
    let score = index
        .iter()
        .zip(slopes)
        .zip(ratios)
        .map(|((&i, s), r)| at.chain(&examples[i], s, r))
        .collect();
    Ok(Scored { index, score })
}
