//! What is counted of memory before anything is loaded or trained. Pure.

use std::fmt;

use super::learning::Recompute;

/// Weights that a device keeps as a file has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Bytes of all of them.
    pub bytes: usize,
    /// Elements of the largest matrix of integers; 0 if there is none.
    pub largest: usize,
}

/// What a server is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Weights, where they are not 16 bits each.
    pub stored: Option<Stored>,
    /// Keys and values, in bytes.
    pub kv_bytes: usize,
    /// Rows of the largest step: prompt tokens of one step and running sequences.
    pub step_rows: usize,
    /// Most rows whose logits one step computes.
    pub outputs: usize,
    /// Rows of a pass that reads hidden states for probes; 0 for none.
    pub hidden_rows: usize,
    /// Generations that stay loaded.
    pub generations: usize,
    /// Training beside serving; `None` for a server that only serves.
    pub training: Option<Training>,
}

/// What a realignment holds while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Training {
    /// LoRA rank.
    pub rank: usize,
    /// Adapted layers, from the top.
    pub layers: usize,
    /// Adapted projections of each.
    pub projections: usize,
    /// Rows of one forward and backward pass.
    pub rows: usize,
    /// Most rows that see each other in them: a prompt and both its responses.
    pub longest: usize,
    /// Whether a layer's intermediate results are computed again for its gradients.
    pub recompute: bool,
}

/// Bytes by what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// (what, bytes), in the order in which they are allocated.
    pub parts: Vec<(&'static str, usize)>,
}

/// A plan that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model needs {} MiB on the device, {} MiB are free: {plan}; lower engine.kv_cache_mb, \
     engine.prefill_budget_tokens or train.rank, or take a smaller model",
    .plan.total() >> 20,
    .free >> 20
)]
pub struct TooLarge {
    /// What was planned.
    pub(crate) plan: Plan,
    /// Bytes that are free.
    pub(crate) free: usize,
}

impl Plan {
    /// The plan that fits, and whether it computes intermediate results again: under
    /// [`Recompute::Auto`] only where keeping them does not fit. `plan` makes either.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn fitting(
        choice: Recompute,
        free: usize,
        plan: impl Fn(bool) -> Self,
    ) -> Result<(Self, bool), TooLarge> {
        let recompute = match choice {
            Recompute::Auto => plan(false).total() > free,
            Recompute::On => true,
            Recompute::Off => false,
        };
        Ok((plan(recompute).check(free)?, recompute))
    }

    /// All parts.
    pub fn total(&self) -> usize {
        self.parts
            .iter()
            .fold(0, |sum: usize, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Checks the plan against what a device has left.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn check(self, free: usize) -> Result<Self, TooLarge> {
        match self.total() <= free {
            true => Ok(self),
            false => Err(TooLarge { plan: self, free }),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, bytes)) in self.parts.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{what} {} MiB", bytes >> 20)?;
        }
        Ok(())
    }
}

impl Budget {
    /// The same, with a layer's intermediate results computed again for its gradients or not.
    #[must_use]
    pub fn recomputing(self, recompute: bool) -> Self {
        let training = self.training.map(|t| Training { recompute, ..t });
        Self { training, ..self }
    }
}

/// Bytes that training takes in a backend's own form of the weights, besides what every form takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LearningBytes {
    /// A copy of the weights; none where training reads those that serve.
    pub weights: usize,
    /// What the layers of one pass leave for their gradients, and what computes them.
    pub activations: usize,
    /// Logits of the response tokens that are measured at once, the reference's with them.
    pub logits: usize,
}
