//! The range of every number in `[train]`: one table for the checks, their messages, the example
//! configuration and docs/training.md.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use Bound::{Excluded, Included, Unbounded};

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The setting's key below `train.`.
    pub key: &'static str,
    /// The smallest value.
    pub least: Bound<f64>,
    /// The largest value.
    pub most: Bound<f64>,
}

impl Range {
    const fn new(key: &'static str, least: Bound<f64>, most: Bound<f64>) -> Self {
        Self { key, least, most }
    }

    /// Whether a finite value is inside.
    pub fn contains(&self, value: f64) -> bool {
        value.is_finite() && (self.least, self.most).contains(&value)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.least, self.most) {
            (Included(least), Included(most)) => write!(f, "from {least} to {most}"),
            (Included(least), Excluded(most)) => write!(f, "{least} or more and below {most}"),
            (Included(least), Unbounded) => write!(f, "{least} or more"),
            (Excluded(least), Included(most)) => write!(f, "above {least}, at most {most}"),
            (Excluded(least), Excluded(most)) => write!(f, "above {least} and below {most}"),
            (Excluded(least), Unbounded) => write!(f, "above {least}"),
            (Unbounded, Included(most)) => write!(f, "at most {most}"),
            (Unbounded, Excluded(most)) => write!(f, "below {most}"),
            (Unbounded, Unbounded) => write!(f, "any number"),
        }
    }
}

/// Declares the constants and the table of them all.
macro_rules! ranges {
    ($($(#[$doc:meta])* $name:ident: $key:literal, $least:expr, $most:expr;)+) => {
        $($(#[$doc])* pub const $name: Range = Range::new($key, $least, $most);)+

        /// Every range, in the order of the example configuration.
        pub const ALL: &[Range] = &[$($name),+];
    };
}

ranges! {
    /// Rank of the adapter.
    RANK: "rank", Included(1.0), Included(512.0);
    /// LoRA's alpha.
    ALPHA: "alpha", Excluded(0.0), Unbounded;
    /// Share of the adapter's inputs that training drops.
    DROPOUT: "dropout", Included(0.0), Excluded(1.0);
    /// Share of the layers that are adapted.
    LAYER_SHARE: "layer_share", Excluded(0.0), Included(1.0);
    /// Peak learning rate.
    LEARNING_RATE: "learning_rate", Excluded(0.0), Included(1.0);
    /// Each of the optimiser's two decays.
    BETAS: "betas", Included(0.0), Excluded(1.0);
    /// What AdamW adds to the denominator.
    EPSILON: "epsilon", Excluded(0.0), Unbounded;
    /// Decoupled weight decay.
    WEIGHT_DECAY: "weight_decay", Included(0.0), Unbounded;
    /// Share of the steps that warm up.
    WARMUP_RATIO: "warmup_ratio", Included(0.0), Included(1.0);
    /// Passes over the pairs.
    EPOCHS: "epochs", Included(1.0), Included(100.0);
    /// Pairs in a batch.
    BATCH_PAIRS: "batch_pairs", Included(1.0), Included(1024.0);
    /// Batches whose gradients one step averages.
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
    /// Divisor of impact scores.
    GAMMA: "gamma", Excluded(0.0), Unbounded;
    /// Pairs in the gold batch.
    GOLD_PAIRS: "gold_pairs", Included(3.0), Included(4096.0);
    /// Most tokens of a pair.
    MAX_PAIR_TOKENS: "max_pair_tokens", Included(8.0), Included(32768.0);
    /// Share of the time that learning gets while requests run.
    SHARE: "share", Included(0.05), Included(0.9);
    /// Tokens of a corrective response.
    CORRECTIVE_MAX_TOKENS: "corrective.max_tokens", Included(1.0), Included(8192.0);
    /// Attempts at a corrective response.
    CORRECTIVE_ATTEMPTS: "corrective.attempts", Included(1.0), Included(16.0);
    /// Corrective requests at once.
    CORRECTIVE_CONCURRENCY: "corrective.concurrency", Included(1.0), Included(64.0);
}
