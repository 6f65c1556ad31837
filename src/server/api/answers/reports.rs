//! The forms of reports that are stored as JSON: with realignments, in manifests, in memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use realign_align::policy::Gate;

/// Preference pairs by category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairCounts {
    /// The policies turn the preference around.
    pub invert: usize,
    /// Both responses violate.
    pub punish: usize,
    /// The preference stands.
    pub retain: usize,
}

/// The triage of a realignment.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TriageReport {
    /// Pairs by category.
    #[serde(flatten)]
    pub counts: PairCounts,
    /// Share of pairs in conflict with the policies, 0 to 1.
    pub gap_ratio: f64,
}

/// What `dryrun` policies would add.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DryrunReport {
    /// By the enforced policies.
    pub enforced: PairCounts,
    /// By all policies.
    pub with_dryrun: PairCounts,
    /// Share of pairs in conflict with all policies, 0 to 1.
    pub gap_ratio: f64,
    /// Pairs that could not be judged.
    pub undecided: usize,
}

/// The newest training step.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LossReport {
    /// From 1.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Its losses.
    #[serde(flatten)]
    pub parts: LossParts,
    /// Norm of the gradient before clipping.
    pub gradient_norm: Option<f64>,
    /// The step's learning rate.
    pub learning_rate: Option<f64>,
    /// Tokens of the step.
    pub tokens: usize,
    /// Its wall time.
    pub seconds: f64,
}

/// The parts of the training loss; `null` for what is not finite.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LossParts {
    /// The weighted sum that is minimised.
    pub total: Option<f64>,
    /// Preference loss on INVERT pairs.
    pub invert: Option<f64>,
    /// Negative preference loss on PUNISH pairs.
    pub punish: Option<f64>,
    /// KL divergence from the base model on RETAIN pairs.
    pub kl: Option<f64>,
    /// Negative log-likelihood of the preferred responses.
    pub sft: Option<f64>,
}

/// What the gate measured of a candidate, and its verdict.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GateReport {
    /// Whether the candidate may serve.
    pub verdict: GateVerdict,
    /// One sentence for people.
    pub reason: String,
    /// The measurements.
    pub measured: GateMeasured,
    /// Relative rise of perplexity over the base model; `null` if it is not finite.
    pub perplexity_rise: Option<f64>,
    /// What the candidate had to reach.
    pub bounds: Gate,
    /// The generation that served.
    pub compared_with: String,
    /// The candidate's generation id.
    pub candidate: String,
    /// A few held-out answers of the candidate.
    pub answers: Vec<GateAnswer>,
}

/// Whether a candidate may serve.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum GateVerdict {
    /// It may.
    Promote,
    /// It may not: `got` is on the wrong side of `bound`.
    Reject {
        /// Which check failed.
        #[schemars(extend("enum" = ["policy_agreement", "perplexity_rise", "kl", "finite"]))]
        check: String,
        /// The measured value; `null` if it is not finite.
        got: Option<f64>,
        /// The bound.
        bound: f64,
    },
}

/// The gate's measurements.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GateMeasured {
    /// Held-out prompts that both generations answered.
    pub prompts: usize,
    /// Share of compliant answers of the generation that served.
    pub agreement_before: f64,
    /// Share of compliant answers of the candidate.
    pub agreement_after: f64,
    /// Perplexity of the base model on neutral text.
    pub perplexity_base: Option<f64>,
    /// Perplexity of the candidate on the same text.
    pub perplexity_after: Option<f64>,
    /// Mean KL(base ‖ candidate) per token of that text, in nats.
    pub kl_to_base: Option<f64>,
}

/// A held-out answer of the candidate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GateAnswer {
    /// What was asked.
    pub prompt: String,
    /// What it answered.
    pub answer: String,
    /// Whether that complies with the policies.
    pub complies: bool,
}
