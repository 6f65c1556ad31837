//! The range of every number in `[train]`: one table for the checks, their messages, the example
//! configuration and docs/training.md.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use Bound::{Excluded, Included, Unbounded};

/// The values that a numeric setting accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The setting's key, relative to `[train]`.
    pub key: &'static str,
    /// Lower bound.
    pub(crate) min: Bound<f64>,
    /// Upper bound.
    pub(crate) max: Bound<f64>,
}

impl Range {
    const fn new(key: &'static str, min: Bound<f64>, max: Bound<f64>) -> Self {
        Self { key, min, max }
    }

    /// Whether `value` is finite and within the bounds.
    pub fn contains(&self, value: f64) -> bool {
        value.is_finite() && (self.min, self.max).contains(&value)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.min, self.max) {
            (Included(min), Included(max)) => write!(f, "from {min} to {max}"),
            (Included(min), Excluded(max)) => write!(f, "{min} or more and below {max}"),
            (Included(min), Unbounded) => write!(f, "{min} or more"),
            (Excluded(min), Included(max)) => write!(f, "above {min}, at most {max}"),
            (Excluded(min), Excluded(max)) => write!(f, "above {min} and below {max}"),
            (Excluded(min), Unbounded) => write!(f, "above {min}"),
            (Unbounded, Included(max)) => write!(f, "at most {max}"),
            (Unbounded, Excluded(max)) => write!(f, "below {max}"),
            (Unbounded, Unbounded) => write!(f, "any number"),
        }
    }
}

/// Declares one constant per range, and the table [`ALL`].
macro_rules! ranges {
    ($($(#[$doc:meta])* $name:ident: $key:literal, $min:expr, $max:expr;)+) => {
        $($(#[$doc])* pub const $name: Range = Range::new($key, $min, $max);)+

        /// Every range, in the order of the example configuration.
        pub const ALL: &[Range] = &[$($name),+];
    };
}

ranges! {
    /// Rank of the adapter.
    RANK: "rank", Included(1.0), Included(512.0);
    /// LoRA's alpha, trained here or elsewhere.
    ALPHA: "alpha", Excluded(0.0), Included(1e6);
    /// Dropout probability on the adapter's inputs.
    DROPOUT: "dropout", Included(0.0), Excluded(1.0);
    /// Fraction of the layers that are adapted.
    LAYER_SHARE: "layer_share", Excluded(0.0), Included(1.0);
    /// Peak learning rate.
    LEARNING_RATE: "learning_rate", Excluded(0.0), Included(1.0);
    /// Each of the optimiser's two decay rates.
    BETAS: "betas", Included(0.0), Excluded(1.0);
    /// AdamW's epsilon, added to the denominator.
    EPSILON: "epsilon", Excluded(0.0), Unbounded;
    /// Decoupled weight decay.
    WEIGHT_DECAY: "weight_decay", Included(0.0), Unbounded;
    /// Fraction of the steps used for warm-up.
    WARMUP_RATIO: "warmup_ratio", Included(0.0), Included(1.0);
    /// Passes over the pairs.
    EPOCHS: "epochs", Included(1.0), Included(100.0);
    /// Rounds of training.
    ROUNDS: "rounds", Included(1.0), Included(16.0);
    /// Least optimiser steps.
    MIN_STEPS: "min_steps", Included(0.0), Included(10_000.0);
    /// Pairs in a batch.
    BATCH_PAIRS: "batch_pairs", Included(1.0), Included(1024.0);
    /// Batches whose gradients are averaged in one optimiser step.
    ACCUMULATION: "accumulation", Included(1.0), Included(1024.0);
    /// Gradient norm at which training ends.
    STOP_GRADIENT_NORM: "stop_gradient_norm", Included(0.0), Unbounded;
    /// Gradient norm above which gradients are scaled down.
    CLIP_NORM: "clip_norm", Excluded(0.0), Unbounded;
    /// Rise of the smoothed loss that ends a run as diverged.
    MAX_LOSS_RATIO: "max_loss_ratio", Excluded(1.0), Unbounded;
    /// β of the preference loss.
    BETA: "beta", Excluded(0.0), Unbounded;
    /// Weight of the KL term.
    ALPHA_KL: "alpha_kl", Included(0.0), Unbounded;
    /// Weight of the likelihood term.
    ALPHA_SFT: "alpha_sft", Included(0.0), Unbounded;
    /// Additional weight of a response's first tokens.
    ALPHA_OPENING: "alpha_opening", Included(0.0), Unbounded;
    /// Divisor of impact scores.
    GAMMA: "gamma", Excluded(0.0), Unbounded;
    /// Pairs in the gold batch.
    GOLD_PAIRS: "gold_pairs", Included(3.0), Included(4096.0);
    /// Maximum number of tokens in a pair.
    MAX_PAIR_TOKENS: "max_pair_tokens", Included(8.0), Included(32768.0);
    /// Fraction of compute time given to training while requests are running.
    SHARE: "share", Included(0.05), Included(0.9);
    /// Niceness of the learning threads; the scheduler's range for lower priorities.
    NICE: "nice", Included(0.0), Included(19.0);
    /// Maximum number of tokens in a corrective response.
    CORRECTIVE_MAX_TOKENS: "corrective.max_tokens", Included(1.0), Included(8192.0);
    /// Attempts at a corrective response.
    CORRECTIVE_ATTEMPTS: "corrective.attempts", Included(1.0), Included(16.0);
    /// Concurrent requests for corrective responses.
    CORRECTIVE_CONCURRENCY: "corrective.concurrency", Included(1.0), Included(64.0);
}
