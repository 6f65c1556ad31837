//! The shape of a policy file, as serde reads it and as the published JSON Schema describes it.
//!
//! Only types and key names are checked here; `parse` turns it into a [`super::Policy`]. The doc
//! comments appear in the schema, which editors show to the author of a policy.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;

use super::model::{Enforcement, ExampleVerdict, LengthUnit, Severity};
use super::thinking::Thinking;

/// The only `apiVersion` this version reads.
pub(super) const API_VERSION: &str = "realign/v1";

/// Parsed first, ignoring other keys, so that a file of another version is rejected for its version.
#[derive(Deserialize)]
pub(super) struct RawHeader {
    #[serde(rename = "apiVersion")]
    pub(crate) api_version: Option<Spanned<String>>,
}

/// A realign policy: rules that say which responses violate it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub(super) struct RawPolicy {
    /// Version of this file format: `realign/v1`.
    #[serde(rename = "apiVersion")]
    #[schemars(with = "String", extend("const" = "realign/v1"))]
    #[expect(
        dead_code,
        reason = "checked through RawHeader before the rest is read"
    )]
    pub(crate) api_version: String,
    /// Name of the policy, unique among all policy files.
    #[schemars(with = "String", extend("pattern" = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?(/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?)*$"))]
    pub id: Spanned<String>,
    /// The operator's own version, e.g. a date. It is part of the policy revision.
    #[schemars(with = "String")]
    pub version: Spanned<String>,
    /// What the policy is for, in words.
    #[serde(default)]
    pub description: String,
    /// `enforce` trains and gates on the policy; `dryrun` only triages and reports.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Whether the rules judge what a model thinks before it answers (between `<think>` and
    /// `</think>` at the beginning of a response). `ignore` leaves it out; with `judge` it is part of
    /// the response, tags included.
    #[serde(default)]
    pub thinking: Thinking,
    /// The rules; a response complies with the policy if it violates none of them.
    #[schemars(with = "Vec<RawRule>", length(min = 1))]
    pub rules: Spanned<Vec<Spanned<RawRule>>>,
    /// What a trained adapter must reach before it may serve.
    #[serde(default)]
    pub(crate) gate: RawGate,
    /// Prompts that the policy is about, for the exam: a list, or the name of a file beside the
    /// policy (`.txt`, a prompt a line, or `.jsonl` of objects with `prompt`).
    #[schemars(with = "Option<RawPrompts>")]
    pub(crate) prompts: Option<Spanned<RawPrompts>>,
    /// Prompts whose answers the policy must not change, for the exam: a list or a file, as
    /// `prompts`.
    #[schemars(with = "Option<RawPrompts>")]
    pub(crate) controls: Option<Spanned<RawPrompts>>,
    /// Accept examples that comply with their own rule and violate another rule of the set.
    #[serde(default)]
    pub(crate) allow_contradictions: bool,
}

/// Prompts as a list, or the name of a file that holds them.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a list of prompts or the name of a file"
)]
#[schemars(rename = "Prompts")]
pub(super) enum RawPrompts {
    /// A list of prompts.
    List(Vec<String>),
    /// A file in the policy's directory.
    File(String),
}

/// A response violates the rule if `when` holds (or is absent), `violates` holds, and no exception holds.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rule")]
pub(super) struct RawRule {
    /// Name of the rule, unique in its policy.
    #[schemars(with = "String", extend("pattern" = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?(/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?)*$"))]
    pub id: Spanned<String>,
    /// How much a violation matters.
    #[serde(default)]
    pub severity: Severity,
    /// What the rule asks for, in words.
    #[serde(default)]
    pub description: String,
    /// The rule applies only where this holds; without it the rule always applies.
    #[schemars(with = "Option<RawCondition>")]
    pub(crate) when: Option<Spanned<RawCondition>>,
    /// What makes a response a violation.
    #[schemars(with = "RawCondition")]
    pub(crate) violates: Spanned<RawCondition>,
    /// A response for which any of these holds does not violate the rule.
    #[serde(default)]
    #[schemars(with = "Vec<RawCondition>")]
    pub(crate) exceptions: Vec<Spanned<RawCondition>>,
    /// The rule's own tests: a policy whose examples fail does not activate.
    #[serde(default)]
    #[schemars(with = "Vec<RawExample>")]
    pub examples: Vec<Spanned<RawExample>>,
    /// How well the rule must do on its examples (cross-validated where it is fitted on them)
    /// before it activates. Without it, a rule of text and labels must get every example right,
    /// and one with a probe or a judge seven in ten.
    #[schemars(with = "Option<RawMinimum>")]
    pub(crate) minimum: Option<Spanned<RawMinimum>>,
}

/// Least figures on a rule's examples, as shares from 0 to 1; at least one is given.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Minimum", extend("minProperties" = 1))]
pub(super) struct RawMinimum {
    /// Share of right verdicts.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) accuracy: Option<f64>,
    /// Of what the rule calls a violation, the share that is one.
    #[schemars(range(min = 0, max = 1))]
    pub precision: Option<f64>,
    /// Of the violations, the share that the rule finds.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) recall: Option<f64>,
}

/// A condition on a prompt and its response. If several keys are given, all of them must hold.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Condition", extend("minProperties" = 1))]
pub(super) struct RawCondition {
    /// Holds if all of these hold.
    #[schemars(with = "Option<Vec<RawCondition>>")]
    pub(crate) all: Option<Vec<Spanned<RawCondition>>>,
    /// Holds if at least one of these holds.
    #[schemars(with = "Option<Vec<RawCondition>>")]
    pub(crate) any: Option<Vec<Spanned<RawCondition>>>,
    /// Holds if this does not.
    #[schemars(with = "Option<Box<RawCondition>>")]
    pub(crate) not: Option<Box<Spanned<RawCondition>>>,
    /// A test of the prompt: the last user message.
    #[schemars(with = "Option<RawTextTest>")]
    pub prompt: Option<Spanned<RawTextTest>>,
    /// A test of the response.
    #[schemars(with = "Option<RawTextTest>")]
    pub response: Option<Spanned<RawTextTest>>,
    /// Holds if the response carries this category label, or one of these.
    #[schemars(with = "Option<OneOrMany>")]
    pub(crate) label: Option<Spanned<OneOrMany>>,
    /// Holds if a classifier over the base model's hidden states says so. It is fitted on the
    /// rule's own examples and, if given, a file of labelled responses.
    #[schemars(with = "Option<RawProbe>")]
    pub(crate) probe: Option<Spanned<RawProbe>>,
    /// Holds if a model behind an OpenAI-compatible endpoint answers yes.
    #[schemars(with = "Option<RawJudge>")]
    pub(crate) judge: Option<Spanned<RawJudge>>,
    /// Holds if the first of these stages that is sure says so; the last decides if none is.
    #[schemars(with = "Option<Vec<RawStage>>")]
    pub(crate) cascade: Option<Spanned<Vec<Spanned<RawStage>>>>,
}

/// A classifier to be fitted.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Probe")]
pub(super) struct RawProbe {
    /// Name of a file beside the policy: JSON lines of `prompt`, `response` and `verdict`.
    #[schemars(with = "Option<String>")]
    pub(crate) data: Option<Spanned<String>>,
    /// Whether it is also fitted on the rule's own examples. Default true; with false they only
    /// measure.
    #[serde(default = "yes")]
    pub(crate) use_examples: bool,
    /// Probability from which on it holds. Default: fitted by cross-validation.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1))]
    pub(crate) threshold: Option<Spanned<f64>>,
}

fn yes() -> bool {
    true
}

/// A yes/no question to a model; yes means that the condition holds.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Judge")]
pub(super) struct RawJudge {
    /// Base URL of an OpenAI-compatible endpoint, up to and including `/v1`.
    #[schemars(with = "String")]
    pub(crate) url: Spanned<String>,
    /// The model to ask for.
    pub(crate) model: String,
    /// Name of the environment variable that holds the key.
    pub(crate) key_env: Option<String>,
    /// The question; yes means that the condition holds.
    #[schemars(with = "String")]
    pub(crate) question: Spanned<String>,
    /// Jinja template of the message, over `policy`, `question`, `prompt` and `response`.
    #[schemars(with = "Option<String>")]
    pub(crate) template: Option<Spanned<String>>,
    /// Probability of yes from which on it holds. Default: fitted on the rule's examples.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1))]
    pub(crate) threshold: Option<Spanned<f64>>,
    /// Most questions under way at once, from 1 to 64. Default 4.
    #[schemars(with = "Option<usize>", range(min = 1, max = 64))]
    pub concurrency: Option<Spanned<usize>>,
    /// Price of a million prompt tokens, for the cost report.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub(crate) price_per_million_in: f64,
    /// Price of a million completion tokens, for the cost report.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub(crate) price_per_million_out: f64,
}

/// One stage of a cascade: exactly one of `yes_if`, `no_if`, `probe` and `judge`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Stage", extend("minProperties" = 1))]
pub(super) struct RawStage {
    /// Where this holds, the cascade holds; otherwise the next stage is asked.
    #[schemars(with = "Option<RawCondition>")]
    pub(crate) yes_if: Option<Spanned<RawCondition>>,
    /// Where this holds, the cascade does not hold; otherwise the next stage is asked.
    #[schemars(with = "Option<RawCondition>")]
    pub(crate) no_if: Option<Spanned<RawCondition>>,
    /// A classifier, asked where nothing before was sure.
    #[schemars(with = "Option<RawProbe>")]
    pub(crate) probe: Option<Spanned<RawProbe>>,
    /// A judge, asked where nothing before was sure.
    #[schemars(with = "Option<RawJudge>")]
    pub(crate) judge: Option<Spanned<RawJudge>>,
    /// With `probe` or `judge`: between these two probabilities the next stage is asked.
    #[schemars(with = "Option<[f64; 2]>")]
    pub(crate) unsure: Option<Spanned<[f64; 2]>>,
}

/// A test of one text. If several keys are given, all of them must hold.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TextTest", extend("minProperties" = 1))]
pub(super) struct RawTextTest {
    /// Holds if all of these hold.
    #[schemars(with = "Option<Vec<RawTextTest>>")]
    pub(crate) all: Option<Vec<Spanned<RawTextTest>>>,
    /// Holds if at least one of these holds.
    #[schemars(with = "Option<Vec<RawTextTest>>")]
    pub(crate) any: Option<Vec<Spanned<RawTextTest>>>,
    /// Holds if this does not.
    #[schemars(with = "Option<Box<RawTextTest>>")]
    pub(crate) not: Option<Box<Spanned<RawTextTest>>>,
    /// Holds if at least one of these regular expressions is found anywhere in the text.
    #[schemars(with = "Option<Vec<String>>")]
    pub(crate) any_regex: Option<Spanned<Vec<Spanned<String>>>>,
    /// Holds if each of these regular expressions is found somewhere in the text.
    #[schemars(with = "Option<Vec<String>>")]
    pub(crate) all_regex: Option<Spanned<Vec<Spanned<String>>>>,
    /// Holds if at least one of these phrases is found, as whole words, whatever the case,
    /// the amount of white space, and the kind of apostrophe.
    #[schemars(with = "Option<Vec<String>>")]
    pub(crate) any_phrase: Option<Spanned<Vec<Spanned<String>>>>,
    /// Holds if the text's length lies in this range.
    #[schemars(with = "Option<RawLength>")]
    pub(crate) length: Option<Spanned<RawLength>>,
    /// Not allowed inside a text test; parsed only to give a clear error.
    #[schemars(skip)]
    pub(crate) probe: Option<Spanned<IgnoredAny>>,
    /// Not allowed inside a text test; parsed only to give a clear error.
    #[schemars(skip)]
    pub(crate) judge: Option<Spanned<IgnoredAny>>,
}

/// A range of lengths, both ends included; at least one end is given.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Length", extend("minProperties" = 1))]
pub(super) struct RawLength {
    /// The text is at least this long.
    pub(crate) min: Option<usize>,
    /// The text is at most this long.
    pub(crate) max: Option<usize>,
    /// What is counted: `characters` (Unicode scalar values) or `words` (runs of non-space).
    #[serde(default)]
    pub(crate) unit: LengthUnit,
}

/// One label, or several.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a label or a list of labels")]
pub(super) enum OneOrMany {
    /// One label.
    One(String),
    /// Any of several labels.
    Many(Vec<String>),
}

/// One test of a rule.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Example")]
pub(super) struct RawExample {
    /// The user's message.
    pub prompt: String,
    /// The assistant's answer.
    pub response: String,
    /// What the rule must say about it.
    pub(crate) verdict: ExampleVerdict,
    /// Category labels the answer carries.
    #[serde(default)]
    pub(crate) labels: Vec<String>,
}

/// What a trained adapter must reach before it may serve.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Gate")]
pub(super) struct RawGate {
    /// Least rise of held-out policy agreement, as a share: 0.05 is five points. Default 0.05.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1))]
    pub(crate) min_policy_agreement_gain: Option<Spanned<f64>>,
    /// Largest relative rise of perplexity on held-out text: 0.10 is ten per cent. Default 0.10.
    #[schemars(with = "Option<f64>", range(min = 0))]
    pub(crate) max_perplexity_rise: Option<Spanned<f64>>,
    /// Largest KL divergence from the base model, in nats per token. Not checked by default.
    #[schemars(with = "Option<f64>", range(min = 0))]
    pub(crate) max_kl: Option<Spanned<f64>>,
    /// Share of the exam's answers that must comply with each rule. Default: `gate.min_compliance`
    /// of the configuration, 0.9.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1))]
    pub(crate) min_compliance: Option<Spanned<f64>>,
    /// Largest share of the exam's control answers that may be diverted. Default:
    /// `gate.max_control_diverted` of the configuration, 0.05.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1))]
    pub(crate) max_control_diverted: Option<Spanned<f64>>,
}
