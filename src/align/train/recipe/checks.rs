//! Checks every number of a recipe against its range.

use super::{Recipe, RecipeError};
use realign_core::ranges::{self, Range};

impl Recipe {
    /// Checks every field's range; run it before anything expensive.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), RecipeError> {
        let numbers = self
            .adapter_numbers()
            .into_iter()
            .chain(self.step_numbers())
            .chain(self.loss_numbers());
        for (range, value) in numbers {
            RecipeError::unless_inside(range, value)?;
        }
        if self.targets.is_empty() {
            return Err(RecipeError::Value {
                field: "targets",
                value: "empty".into(),
                allowed: "name at least one module, such as q_proj".into(),
            });
        }
        self.projections().map(drop)
    }

    fn adapter_numbers(&self) -> [(Range, f64); 6] {
        [
            (ranges::RANK, self.rank as f64),
            (ranges::ALPHA, self.alpha),
            (ranges::LAYER_SHARE, self.layer_share),
            (ranges::DROPOUT, self.dropout),
            (ranges::GOLD_PAIRS, self.gold_pairs as f64),
            (ranges::MAX_PAIR_TOKENS, self.max_tokens as f64),
        ]
    }

    fn step_numbers(&self) -> [(Range, f64); 14] {
        [
            (ranges::LEARNING_RATE, self.learning_rate),
            (ranges::BETAS, self.betas[0]),
            (ranges::BETAS, self.betas[1]),
            (ranges::EPSILON, self.epsilon),
            (ranges::WEIGHT_DECAY, self.weight_decay),
            (ranges::WARMUP_RATIO, self.warmup_ratio),
            (ranges::EPOCHS, self.epochs as f64),
            (ranges::ROUNDS, self.rounds as f64),
            (ranges::MIN_STEPS, self.min_steps as f64),
            (ranges::BATCH_PAIRS, self.pairs_per_step as f64),
            (ranges::ACCUMULATION, self.accumulation as f64),
            (ranges::STOP_GRADIENT_NORM, self.stop_gradient_norm),
            (ranges::CLIP_NORM, self.clip_norm),
            (ranges::MAX_LOSS_RATIO, self.max_loss_ratio),
        ]
    }

    fn loss_numbers(&self) -> [(Range, f64); 5] {
        [
            (ranges::BETA, self.beta),
            (ranges::ALPHA_KL, self.alpha_kl),
            (ranges::ALPHA_SFT, self.alpha_sft),
            (ranges::ALPHA_OPENING, self.alpha_opening),
            (ranges::GAMMA, self.gamma),
        ]
    }
}
