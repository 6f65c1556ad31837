//! The range of every field.

use super::{Recipe, RecipeError};

impl Recipe {
    /// Checks every field's range; run it before anything expensive.
    pub fn check(&self) -> Result<(), RecipeError> {
        let failed = [self.adapter_rules(), self.step_rules(), self.loss_rules()]
            .into_iter()
            .flatten()
            .find(|(_, holds, _)| !holds);
        match failed {
            Some((field, _, allowed)) => Err(RecipeError {
                field,
                what: format!("must be {allowed}"),
            }),
            None => self.projections().map(drop),
        }
    }

    fn adapter_rules(&self) -> Vec<Rule> {
        vec![
            ("rank", (1..=512).contains(&self.rank), "1 to 512"),
            ("alpha", positive(self.alpha), "a number above 0"),
            ("targets", !self.targets.is_empty(), "at least one module"),
            (
                "layer_share",
                self.layer_share > 0.0 && self.layer_share <= 1.0,
                "above 0, at most 1",
            ),
            (
                "dropout",
                (0.0..1.0).contains(&self.dropout),
                "0 or more and below 1",
            ),
            (
                "gold_pairs",
                (3..=4096).contains(&self.gold_pairs),
                "3 to 4096",
            ),
            (
                "max_pair_tokens",
                (8..=32768).contains(&self.max_tokens),
                "8 to 32768",
            ),
        ]
    }

    fn step_rules(&self) -> Vec<Rule> {
        let share = |v: f64| (0.0..1.0).contains(&v);
        vec![
            (
                "learning_rate",
                positive(self.learning_rate) && self.learning_rate <= 1.0,
                "above 0, at most 1",
            ),
            (
                "betas",
                self.betas.into_iter().all(share),
                "two numbers, each 0 or more and below 1",
            ),
            ("epsilon", positive(self.epsilon), "a number above 0"),
            ("weight_decay", not_negative(self.weight_decay), "0 or more"),
            (
                "warmup_ratio",
                (0.0..=1.0).contains(&self.warmup_ratio),
                "0 to 1",
            ),
            ("epochs", (1..=100).contains(&self.epochs), "1 to 100"),
            (
                "batch_pairs",
                (1..=1024).contains(&self.pairs_per_step),
                "1 to 1024",
            ),
            (
                "accumulation",
                (1..=1024).contains(&self.accumulation),
                "1 to 1024",
            ),
            (
                "stop_gradient_norm",
                not_negative(self.stop_gradient_norm),
                "0 or more",
            ),
            ("clip_norm", positive(self.clip_norm), "a number above 0"),
            (
                "max_loss_ratio",
                self.max_loss_ratio.is_finite() && self.max_loss_ratio > 1.0,
                "a number above 1",
            ),
        ]
    }

    fn loss_rules(&self) -> Vec<Rule> {
        vec![
            ("beta", positive(self.beta), "a number above 0"),
            ("alpha_kl", not_negative(self.alpha_kl), "0 or more"),
            ("alpha_sft", not_negative(self.alpha_sft), "0 or more"),
            ("gamma", positive(self.gamma), "a number above 0"),
        ]
    }
}

/// A field, whether it is in range, and what is allowed.
type Rule = (&'static str, bool, &'static str);

fn positive(v: f64) -> bool {
    v.is_finite() && v > 0.0
}

fn not_negative(v: f64) -> bool {
    v.is_finite() && v >= 0.0
}
