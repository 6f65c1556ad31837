//! Why a rule cannot be used.

use super::features::FeatureError;
use super::judge::JudgeError;
use super::probe::ProbeError;

/// Why a rule's probes and judges cannot be prepared, or the rule cannot be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No model is loaded whose hidden states a probe could read.
    #[error("a probe reads the base model's hidden states, and no model is loaded")]
    NoModel,
    /// A probe cannot be fitted.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A judge did not answer.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// Hidden states cannot be read.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// An example is undecided for no recorded reason.
    #[error("it cannot be measured")]
    Undecided,
}
