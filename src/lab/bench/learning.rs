//! How fast scoring and training run: fixed pairs of made-up tokens, the steps of a realignment.

use std::time::Instant;

use serde_json::{Value, json};

use super::BenchError;
use realign_align::impact::score::{At, directional_along, per_pair};
use realign_align::pipeline::{self, Learner, Run};
use realign_align::train::examples::{Reference, TokenPair, with_reference};
use realign_align::train::passes::Passes;
use realign_align::train::run::ROW_BUDGET;
use realign_align::train::{self, Objective, Recipe, StepReport, TrainExample, WeightScale, fresh};
use realign_core::Category;
use realign_model::{Backend, Precision};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LearningCase {
    /// Losses and gradients of one pair at a time: 128 prompt tokens, two responses of 128
    Pair,
    /// The same, four pairs at a time
    Four,
    /// 96 short pairs from reference to adapter: reference, impact, one epoch
    Mini,
    /// Impact scores of 192 pairs with 64 gold pairs, against one gradient per pair
    Impact,
}

/// Rank 16 on q and v of every layer, as the peer's script has it.
fn recipe() -> Recipe {
    Recipe {
        rank: 16,
        alpha: 32.0,
        targets: vec!["q_proj".into(), "v_proj".into()],
        layer_share: 1.0,
        gold_pairs: 64,
        weight_scale: WeightScale::Uniform,
        ..Recipe::default()
    }
}

fn tokens(seed: usize, length: usize) -> Vec<u32> {
    (0..length)
        .map(|i| (3 + (seed * 131 + i * 17) % 40_000) as u32)
        .collect()
}

/// Short pairs of varying lengths, a third of each category; the peer's script makes the same.
fn short_pair(i: usize) -> TokenPair {
    TokenPair {
        id: i.to_string(),
        category: Category::ALL[i % 3],
        prompt: tokens(i, 50 + i * 7 % 31),
        chosen: tokens(i + 1000, 45 + i * 11 % 37),
        rejected: tokens(i + 2000, 45 + i * 5 % 37),
    }
}

fn long_pair(i: usize) -> TokenPair {
    TokenPair {
        id: i.to_string(),
        category: Category::Invert,
        prompt: tokens(i, 128),
        chosen: tokens(i + 1000, 128),
        rejected: tokens(i + 2000, 128),
    }
}

/// Tokens of the pairs where each response carries its own prompt, as peers compute them.
fn unshared(pairs: &[TokenPair]) -> usize {
    let of = |p: &TokenPair| 2 * p.prompt.len() + p.chosen.len() + p.rejected.len();
    pairs.iter().map(of).sum()
}

struct Silent;

impl train::Observer for Silent {
    fn proceed(&self) -> bool {
        true
    }

    fn on_step(&self, _: &StepReport) {}
}

impl pipeline::Observer for Silent {}

/// Runs a case and reports seconds, and tokens per second where each response counts its prompt.
///
/// # Errors
/// If the model cannot be trained.
pub fn run(learner: &Learner, case: LearningCase, repetitions: usize) -> Result<Value, BenchError> {
    let backend = learner.backend();
    let figures = match case {
        LearningCase::Pair => steps(backend, 1, repetitions),
        LearningCase::Four => steps(backend, 4, repetitions),
        LearningCase::Mini => mini(learner),
        LearningCase::Impact => scoring(backend),
    };
    Ok(figures?)
}

fn examples(
    backend: &dyn Backend,
    pairs: &[TokenPair],
    conflicts: bool,
) -> candle_core::Result<Vec<TrainExample>> {
    let at = Reference {
        backend,
        lowest_layer: 0,
        precision: Precision::Mixed,
        conflicts,
    };
    Ok(with_reference(at, pairs, ROW_BUDGET, |_| true)?.unwrap_or_default())
}

fn steps(backend: &dyn Backend, at_once: usize, repetitions: usize) -> candle_core::Result<Value> {
    let recipe = recipe();
    let pairs: Vec<TokenPair> = (0..at_once).map(long_pair).collect();
    let examples = examples(backend, &pairs, true)?;
    let batch: Vec<&TrainExample> = examples.iter().collect();
    let lora = fresh(backend, &recipe)?;
    let mut passes = Passes::new(backend, recipe.precision.into())?;
    let objective = Objective::from(&recipe);
    passes.loss(&objective, &lora, &batch)?;
    let mut rates = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let began = Instant::now();
        for one in batch.chunks(at_once) {
            passes.loss(&objective, &lora, one)?;
        }
        rates.push(unshared(&pairs) as f64 / began.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    Ok(
        json!({ "pairs": at_once, "tokens": unshared(&pairs), "tokens_per_second": median, "all": rates }),
    )
}

fn mini(learner: &Learner) -> candle_core::Result<Value> {
    let recipe = Recipe {
        weight_scale: WeightScale::MeanOne,
        ..recipe()
    };
    let pairs: Vec<TokenPair> = (0..96).map(short_pair).collect();
    let run = Run {
        pairs: &pairs,
        recipe: &recipe,
        weights: None,
    };
    let candidate = learner.run(&run, &Silent);
    let candidate = candidate.map_err(candle_core::Error::wrap)?;
    let [reference, impact, epoch] = [
        candidate.reference_seconds,
        candidate.impact_seconds,
        candidate.train_seconds,
    ];
    Ok(json!({
        "pairs": pairs.len(), "tokens": unshared(&pairs), "reference_seconds": reference,
        "impact_seconds": impact, "epoch_seconds": epoch, "seconds": reference + impact + epoch,
    }))
}

/// Both methods on one gold gradient, whose cost is said apart and counted for both.
fn scoring(backend: &dyn Backend) -> candle_core::Result<Value> {
    let recipe = recipe();
    let pairs: Vec<TokenPair> = (0..192)
        .map(|i| TokenPair {
            category: Category::ALL[i % 2],
            ..short_pair(i)
        })
        .collect();
    let examples = examples(backend, &pairs, true)?;
    let gold: Vec<TokenPair> = (0..64).map(|i| short_pair(3 * (i + 200))).collect();
    let gold: Vec<_> = gold.iter().map(TokenPair::preference).collect();
    let gold: Vec<_> = gold.iter().map(|e| (e, None)).collect();
    let adapter = fresh(backend, &recipe)?.snapshot()?;
    let at = At {
        backend,
        adapter: &adapter,
        objective: Objective::from(&recipe),
        precision: recipe.precision.into(),
    };
    let began = Instant::now();
    let mut passes = Passes::new(backend, at.precision)?;
    let direction = at.gold_gradient(&mut passes, &gold, || true)?;
    let Some(direction) = direction else {
        candle_core::bail!("the gold batch is empty");
    };
    let gradient = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let fast = directional_along(at, &examples, &direction)?;
    let directional = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let slow = per_pair(at, &examples, &direction)?;
    let each = began.elapsed().as_secs_f64();
    Ok(json!({
        "gold": gold.len(), "conflicts": pairs.len(), "gold_gradient_seconds": gradient,
        "directional_seconds": directional, "per_pair_seconds": each,
        "rank_correlation": rank_correlation(&fast.score, &slow.score),
    }))
}

/// Spearman's rank correlation of two lists without ties.
fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut ranks = vec![0f64; values.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(rank, &i)| ranks[i] = rank as f64);
        ranks
    };
    let n = a.len() as f64;
    let squares: f64 = ranks(a)
        .iter()
        .zip(ranks(b))
        .map(|(x, y)| (x - y).powi(2))
        .sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0)).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_correlate() {
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[4.0, 5.0, 9.0]), 1.0);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[9.0, 5.0, 4.0]), -1.0);
    }
}
