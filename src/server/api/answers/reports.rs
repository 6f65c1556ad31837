//! The types of reports that are stored as JSON: with realignments, in manifests, and in memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use realign_align::exam::Report as ExamReport;
use realign_align::exam::{Bounds, Check, PolicyOutcome, Refusal};
use realign_align::policy::Gate;

/// Preference pairs by category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PairCounts {
    /// The preference is inverted.
    pub invert: usize,
    /// Both responses violate.
    pub punish: usize,
    /// The preference is kept.
    pub(crate) retain: usize,
}

/// The triage of a realignment.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TriageReport {
    /// Pairs by category.
    #[serde(flatten)]
    pub(crate) counts: PairCounts,
    /// Fraction of pairs in conflict with the policies, 0 to 1.
    pub(crate) gap_ratio: f64,
    /// What of the data is not used; absent in reports of older versions.
    pub(crate) skipped: Option<SkippedReport>,
    /// Verdicts by kind of matcher, and what judges cost.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub(crate) judges: Option<serde_json::Value>,
    /// What the server gathered for rules that have few pairs; absent if no rule needed any.
    pub(crate) gathered: Option<realign_align::gather::Report>,
}

/// What of the preference data is not used.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SkippedReport {
    /// Lines that are no pairs.
    pub(crate) lines: usize,
    /// Pairs that occur more than once, without the first.
    pub(crate) duplicates: usize,
    /// Pairs to train on that are too long or have an empty response.
    pub(crate) pairs: usize,
    /// The first of the lines and pairs, with the reasons.
    pub(crate) shown: Vec<SkippedItem>,
}

/// A line or pair that is not used.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SkippedItem {
    /// File and line, or the pair's id.
    pub(crate) what: String,
    /// The reason.
    pub(crate) reason: String,
}

/// The effect that `dryrun` policies would have.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DryrunReport {
    /// Counts with the enforced policies only.
    pub(crate) enforced: PairCounts,
    /// Counts with all policies.
    pub(crate) with_dryrun: PairCounts,
    /// Fraction of pairs in conflict with all policies, 0 to 1.
    pub(crate) gap_ratio: f64,
    /// Pairs that could not be judged.
    pub(crate) undecided: usize,
}

/// The newest training step.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LossReport {
    /// The step, from 1.
    pub(crate) step: usize,
    /// Total number of steps.
    pub(crate) steps: usize,
    /// The step's losses.
    #[serde(flatten)]
    pub(crate) parts: LossParts,
    /// Gradient norm before clipping.
    pub(crate) gradient_norm: Option<f64>,
    /// Learning rate of the step.
    pub(crate) learning_rate: Option<f64>,
    /// Number of tokens in the step.
    pub(crate) tokens: usize,
    /// Wall time of the step, in seconds.
    pub(crate) seconds: f64,
}

/// The parts of the training loss; `null` for values that are not finite.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LossParts {
    /// The weighted sum that is minimised.
    pub(crate) total: Option<f64>,
    /// Preference loss on INVERT pairs.
    pub invert: Option<f64>,
    /// Negative preference loss on PUNISH pairs.
    pub punish: Option<f64>,
    /// KL divergence from the base model on RETAIN pairs.
    pub(crate) kl: Option<f64>,
    /// Negative log-likelihood of the preferred responses.
    pub sft: Option<f64>,
}

/// The gate's measurements of a candidate, and its verdict.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GateReport {
    /// Whether the candidate may serve.
    pub(crate) verdict: GateVerdict,
    /// The reason, in one sentence.
    pub(crate) reason: String,
    /// Every check that failed, with the answers that decided; absent in reports of older versions.
    #[serde(default)]
    pub(crate) refusals: Vec<Refusal>,
    /// How each policy is complied with, before and after; absent in reports of older versions.
    #[serde(default)]
    pub(crate) policies: Vec<PolicyOutcome>,
    /// What a promoted candidate does not do yet, in a sentence.
    #[serde(default)]
    pub(crate) open: Option<String>,
    /// The measurements.
    pub(crate) measured: GateMeasured,
    /// Relative rise of perplexity over the base model; `null` if it is not finite.
    pub(crate) perplexity_rise: Option<f64>,
    /// The bounds that the candidate had to meet.
    pub(crate) bounds: Gate,
    /// The exam's bounds; absent in reports of older versions.
    #[serde(default)]
    pub(crate) exam_bounds: Option<Bounds>,
    /// The exams of what served and of the candidate; absent in reports of older versions.
    #[serde(default)]
    pub(crate) exam: Option<ExamReports>,
    /// The generation that was current.
    pub(crate) compared_with: String,
    /// The candidate's generation id.
    pub(crate) candidate: String,
    /// A few of the candidate's answers to held-out prompts.
    pub(crate) answers: Vec<GateAnswer>,
}

/// The exams that a gate compared.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ExamReports {
    /// What served.
    pub(crate) before: ExamReport,
    /// The candidate.
    pub(crate) after: ExamReport,
}

/// Whether a candidate may serve.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(crate) enum GateVerdict {
    /// It is promoted.
    Promote,
    /// It is rejected: `got` violates `bound`.
    Reject {
        /// The failed check.
        #[schemars(with = "Check")]
        check: String,
        /// The measured value; `null` if it is not finite.
        got: Option<f64>,
        /// The bound.
        bound: f64,
    },
}

/// The gate's measurements.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GateMeasured {
    /// Number of held-out prompts that both generations answered.
    pub(crate) prompts: usize,
    /// Fraction of compliant answers of the current generation, 0 to 1.
    pub(crate) agreement_before: f64,
    /// Fraction of compliant answers of the candidate, 0 to 1.
    pub(crate) agreement_after: f64,
    /// Perplexity of the base model on neutral text.
    pub(crate) perplexity_base: Option<f64>,
    /// Perplexity of the candidate on the same text.
    pub(crate) perplexity_after: Option<f64>,
    /// Mean KL(base ‖ candidate) per token of that text, in nats.
    pub(crate) kl_to_base: Option<f64>,
}

/// The candidate's answer to a held-out prompt.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GateAnswer {
    /// The prompt.
    pub(crate) prompt: String,
    /// The candidate's answer.
    pub(crate) answer: String,
    /// Whether the answer complies with the policies.
    pub(crate) complies: bool,
}
