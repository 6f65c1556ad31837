//! What `realign eval oracle` measures: how well rules, a probe and their cascade detect the
//! violations that people labelled.
//!
//! Prompts are split into folds; a probe that judges a response never saw its prompt. Layer,
//! penalty, calibration and threshold are chosen inside the other folds.

mod cascade;
mod error;
mod features;
mod judge;
mod methods;
mod report;

use std::sync::Arc;

use realign_align::policy::{JudgeSpec, Labelled, PolicySet};
use realign_core::Category;

pub use error::OracleEvalError;
pub use features::FeatureTable;
pub use methods::{MethodVerdicts, compare};
pub use report::{EvalReport, MethodReport};

/// Probabilities closer than this to the threshold count as unsure and would go to a judge.
const UNSURE: f64 = 0.15;

/// Distinct responses with human labels, and the pairs they form.
#[derive(Clone, Debug, Default)]
pub struct LabelledPairs {
    /// Distinct (prompt, response), in reading order.
    pub responses: Vec<Labelled>,
    /// Indices into `responses` of each pair's chosen and rejected response.
    pub pairs: Vec<[usize; 2]>,
}

impl LabelledPairs {
    /// The category of a pair by verdicts per response, `true` for a violation.
    pub(crate) fn category(&self, pair: [usize; 2], violates: &dyn Fn(usize) -> bool) -> Category {
        Category::of(!violates(pair[0]), !violates(pair[1]))
    }

    /// The category of a pair by its labels.
    fn true_category(&self, pair: [usize; 2]) -> Category {
        self.category(pair, &|i| self.responses[i].violates)
    }
}

/// A split of the responses for cross-validation. Responses to one prompt belong to one fold.
#[derive(Clone, Debug)]
pub struct Folds {
    /// The fold of each response, below `count`.
    pub of_response: Vec<usize>,
    /// Number of folds.
    pub count: usize,
}

/// Everything that the methods are measured on, besides the responses' features.
#[derive(Debug)]
pub struct OracleEval<'a> {
    /// The labelled responses and pairs.
    pub data: &'a LabelledPairs,
    /// How they are split.
    pub folds: &'a Folds,
    /// Further labelled responses to fit the probe on.
    pub extra: &'a [Labelled],
    /// Text rules; empty if only the probe is measured.
    pub rules: &'a PolicySet,
    /// A judge to ask about every response, if one is to be measured.
    pub judge: Option<&'a Arc<JudgeSpec>>,
}
