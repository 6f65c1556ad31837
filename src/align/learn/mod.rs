//! From triaged pairs to an adapter: render → reference → impact → train.
//!
//! What the control loop, `realign score`, `realign train` and `realign eval trace` share. It
//! keeps nothing and decides nothing; `proceed` is asked before every batch of a pass.

mod render;

use candle_core::Result as TensorResult;

pub use render::{LearnError, thin};

use crate::impact::{self, ImpactError, Weights, score::At};
use crate::train::examples::{Reference, TokenPair, with_reference};
use crate::train::run::ROW_BUDGET;
use crate::train::{Recipe, TrainExample};
use realign_model::packing::group_by_rows;
use realign_model::{Backend, LoadedModel, LoraWeights};

/// What learning needs besides the pairs.
#[derive(Clone, Copy, Debug)]
pub struct Learner<'a> {
    /// Tokenizer, chat template and the served weights.
    pub loaded: &'a LoadedModel,
    /// How to train.
    pub recipe: &'a Recipe,
}

/// Raw scores: index of a conflicting example, and its inner product with the gold gradient.
pub type RawScores = Vec<(usize, f64)>;

impl Learner<'_> {
    fn backend(&self) -> &dyn Backend {
        &*self.loaded.backend
    }

    /// Passes that one run over all pairs takes; scoring takes about three times as many.
    pub fn passes(pairs: &[TokenPair]) -> usize {
        let layouts: Vec<_> = pairs.iter().map(TokenPair::preference).collect();
        group_by_rows(&layouts, ROW_BUDGET).len()
    }

    /// Reference log-probabilities of all pairs, at weight 1; without `conflicts`, of RETAIN pairs
    /// alone, for [`Learner::score`] to bring the others. `None` if `proceed` says stop.
    pub fn reference(
        &self,
        pairs: &[TokenPair],
        conflicts: bool,
        mut proceed: impl FnMut() -> bool,
    ) -> TensorResult<Option<Vec<TrainExample>>> {
        let at = Reference {
            backend: self.backend(),
            lowest_layer: self.recipe.lowest_layer(self.loaded.spec().layers),
            precision: self.recipe.precision.into(),
            conflicts,
        };
        with_reference(at, pairs, ROW_BUDGET, |_| proceed())
    }

    /// The adapter that training starts from.
    pub fn fresh(&self) -> TensorResult<LoraWeights> {
        crate::train::fresh(self.backend(), self.recipe)?.snapshot()
    }

    /// Raw impact scores of the conflicting examples, which then have their reference
    /// log-probabilities too. `None` if `proceed` says stop.
    pub fn score(
        &self,
        pairs: &[TokenPair],
        examples: &mut [TrainExample],
        proceed: impl FnMut() -> bool,
    ) -> TensorResult<Option<RawScores>> {
        let adapter = self.fresh()?;
        let at = At {
            backend: self.backend(),
            adapter: &adapter,
            objective: self.recipe.into(),
            precision: self.recipe.precision.into(),
        };
        let gold = impact::gold_batch(pairs, self.recipe.gold_pairs, self.recipe.seed);
        let scored = impact::directional(at, examples, &gold, true, proceed)?;
        Ok(scored.map(|s| {
            s.complete(examples);
            s.index.into_iter().zip(s.score).collect()
        }))
    }

    /// Turns raw scores into the examples' weights.
    pub fn weigh(
        &self,
        examples: &mut [TrainExample],
        raw: &[(usize, f64)],
    ) -> Result<Weights, ImpactError> {
        let scores: Vec<f64> = raw.iter().map(|(_, score)| *score).collect();
        let weights = impact::weigh(&scores, self.recipe.gamma, self.recipe.weight_scale)?;
        for ((index, _), weight) in raw.iter().zip(&weights.values) {
            examples[*index].weight = *weight;
        }
        Ok(weights)
    }
}
