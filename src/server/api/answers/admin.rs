//! Answers of the operator routes. The web page and `realign adapters` read these fields by name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Stored;
use super::reports::{DryrunReport, ExamReport, GateReport, LossReport, PairCounts, TriageReport};
use crate::state::{Activation, Pin};
use crate::telemetry::timeline::Timeline;
use crate::telemetry::traffic::Slot;
use crate::telemetry::{Outcome, RuleCount, Stage, schemas};
use realign_align::oracle::RuleTrust;
use realign_align::policy::{Enforcement, Gate, RuleExplanation, Severity};
use realign_core::AlignmentState;

/// The active policy set.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Policies {
    /// Hash of the whole set.
    pub(crate) revision: String,
    /// The bounds that a candidate must meet: the strictest of all policies.
    pub(crate) gate: Gate,
    /// The policies of the set.
    pub(crate) policies: Vec<PolicySummary>,
    /// Why the current content of the policy directory was refused; `null` if it is active.
    pub(crate) last_error: Option<String>,
    /// How the rules performed on their examples.
    pub(crate) trust: Vec<RuleTrust>,
    /// Effect of `dryrun` policies on the triage of preference data; `null` if there are none.
    pub(crate) dryrun: Option<Stored<DryrunReport>>,
}

/// Why the active policies decide about an answer as they do.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Explanation {
    /// Revision of the policy set.
    pub(crate) revision: String,
    /// What each rule says, `dryrun` policies included.
    pub(crate) rules: Vec<RuleExplanation>,
}

/// A policy's file with an addition.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ExtendedPolicy {
    /// Name of the file in the policy directory.
    pub(crate) file: String,
    /// The line that is added, without its indentation.
    pub(crate) line: String,
    /// The whole changed file; `null` if it is written in a form that is not changed automatically.
    pub(crate) text: Option<String>,
    /// Why there is no `text`.
    pub(crate) reason: Option<String>,
}

/// An active policy.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct PolicySummary {
    /// Policy id, unique in the set.
    pub(crate) id: String,
    /// The operator's own version string.
    pub(crate) version: String,
    /// What the policy is for.
    pub(crate) description: String,
    /// Whether it trains or only reports.
    pub(crate) enforcement: Enforcement,
    /// Its rules, in file order.
    pub(crate) rules: Vec<RuleSummary>,
}

/// A rule of an active policy.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct RuleSummary {
    /// Rule id, unique in its policy.
    pub(crate) id: String,
    /// Severity of a violation.
    pub(crate) severity: Severity,
    /// What the rule is for.
    pub(crate) description: String,
}

/// Recent realignments, newest first.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Realignments {
    /// At most a hundred.
    pub(crate) realignments: Vec<Realignment>,
}

/// A realignment. Times are Unix seconds.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Realignment {
    /// Its id.
    pub(crate) id: String,
    /// Hash of base model, data, policy set, recipe and seed.
    pub(crate) inputs_hash: String,
    /// Revision of the policy set.
    pub(crate) policy_revision: String,
    /// The current or last stage.
    #[schemars(schema_with = "schemas::stage")]
    pub(crate) stage: Stage,
    /// How it ended; `null` while it runs or after an interruption.
    #[schemars(schema_with = "schemas::outcome_or_null")]
    pub(crate) outcome: Option<Outcome>,
    /// Completed fraction, 0 to 1.
    pub(crate) progress: f64,
    /// Completed fraction of the stage, 0 to 1.
    pub(crate) stage_progress: f64,
    /// When it began.
    pub(crate) created_at: u64,
    /// When it was last updated.
    pub(crate) updated_at: u64,
    /// When it ended.
    pub(crate) finished_at: Option<u64>,
    /// Preference pairs by category, once they are triaged.
    pub(crate) triage: Option<Stored<TriageReport>>,
    /// The losses of the newest training step.
    pub(crate) losses: Option<Stored<LossReport>>,
    /// The gate's measurements and verdict.
    pub(crate) gate: Option<Stored<GateReport>>,
    /// One sentence for an operator if it did not succeed.
    pub(crate) error: Option<String>,
    /// The resulting generation.
    pub(crate) generation: Option<String>,
    /// `running`, or the outcome.
    #[schemars(schema_with = "schemas::status")]
    pub(crate) status: &'static str,
    /// Stages and losses, if the realignment was requested by its id; `null` if it ran before this
    /// process started or too long ago. Omitted in listings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Timeline>")]
    pub(crate) timeline: Option<Option<Timeline>>,
}

/// The realignment that was started.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Started {
    /// The realignment, as its own route returns it.
    Whole(Box<Realignment>),
    /// Only its id, if the state database cannot be read.
    Id {
        /// Its id.
        id: String,
    },
}

/// A realignment that is being cancelled.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cancelling {
    /// Its id.
    pub(crate) id: String,
    /// It stops at its next step.
    #[schemars(extend("const" = "cancelling"))]
    pub(crate) status: &'static str,
}

impl Cancelling {
    /// The answer for this realignment.
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            status: "cancelling",
        }
    }
}

/// The generations on disk and in memory.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Generations {
    /// The current generation.
    pub(crate) current: String,
    /// The generation that a rollback returns to.
    pub(crate) previous: Option<String>,
    /// The generation that an operator pinned.
    pub(crate) pinned: Option<String>,
    /// The base model first, then by age.
    pub(crate) generations: Vec<GenerationSummary>,
}

/// The role of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Role {
    /// It is serving.
    Current,
    /// It served before the current one.
    Previous,
    /// It can be activated.
    Stored,
    /// Its directory cannot be read.
    Unreadable,
}

/// A generation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum GenerationSummary {
    /// A trained or imported adapter.
    Adapter(Box<AdapterSummary>),
    /// An adapter whose manifest cannot be read.
    Unreadable {
        /// Generation id.
        id: String,
        /// `unreadable`.
        role: Role,
        /// Always false.
        base: bool,
        /// Why the manifest cannot be read.
        error: String,
    },
    /// The base model.
    Base {
        /// Generation id.
        id: String,
        /// Its role.
        role: Role,
        /// Always true.
        base: bool,
    },
}

/// A trained or imported adapter.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct AdapterSummary {
    /// Generation id.
    pub(crate) id: String,
    /// Its role.
    pub(crate) role: Role,
    /// Always false.
    pub(crate) base: bool,
    /// The policy set it was trained for; `null` for an imported adapter.
    pub(crate) policy_revision: Option<String>,
    /// When it was published, in Unix seconds.
    pub(crate) created_at: u64,
    /// The generation that was current when it was trained.
    pub(crate) parent: Option<String>,
    /// Preference pairs by category.
    pub(crate) triage: PairCounts,
    /// The gate's measurements and verdict; `null` for an imported adapter.
    #[schemars(with = "Option<GateReport>")]
    pub(crate) gate: Stored<GateReport>,
}

/// A swap of generations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Swap {
    /// The generation that served until now.
    pub(crate) from: String,
    /// The generation that serves from now on.
    pub(crate) to: String,
}

/// The log filter.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct LogLevel {
    /// The current filter: a level, and levels by module where they differ.
    pub(crate) filter: String,
}

/// Everything that the operators' page shows.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Overview {
    /// Time of the answer, in Unix seconds.
    pub(crate) now: u64,
    /// The process.
    pub(crate) server: ServerSummary,
    /// The current generation.
    pub(crate) serving: Serving,
    /// The engine's load.
    pub(crate) engine: EngineLoad,
    /// The active policy set.
    pub(crate) policies: Policies,
    /// The newest realignment, with its timeline.
    pub(crate) realignment: Option<Realignment>,
    /// The newest realignments.
    pub(crate) realignments: Vec<Realignment>,
    /// All generations.
    pub(crate) generations: Generations,
    /// The generation that sits its exam and may serve next; `null` while none does.
    pub(crate) candidate: Option<String>,
    /// Requests and judgements over time.
    pub(crate) traffic: TrafficSummary,
    /// Every active rule with the number of judged answers that violate it.
    pub(crate) violations: Vec<RuleCount>,
}

/// The process.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ServerSummary {
    /// The version of realign.
    pub(crate) version: &'static str,
    /// The served name.
    pub(crate) model: String,
    /// When the server started, in Unix seconds.
    pub(crate) started_at: u64,
    /// False while loading and draining.
    pub(crate) ready: bool,
    /// Whether live answers are judged.
    pub(crate) judges: bool,
}

/// The current generation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Serving {
    /// Generation id.
    pub(crate) generation: String,
    /// The policy set it was trained for; `null` for the base model.
    pub(crate) policy_revision: Option<String>,
    /// Whether it is measured as aligned to the active policies: `alignment.state` is `aligned`.
    pub(crate) aligned: bool,
    /// Whether it is aligned, and why not.
    pub(crate) alignment: Alignment,
    /// For how long it has not been aligned, in seconds; 0 while it is.
    pub(crate) gap_open_seconds: f64,
}

/// Whether what serves does what the active policies ask, as the exam measured it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Alignment {
    /// `aligned`, `misaligned`, `realigning` or `unknown`.
    #[schemars(schema_with = "schemas::alignment_state")]
    pub(crate) state: AlignmentState,
    /// The rules that are missed, or what is missing for a measurement; empty while aligned.
    pub(crate) reasons: Vec<String>,
    /// What an operator activated or went back to, which realignments do not replace; `null` if
    /// nothing is pinned.
    pub(crate) pinned: Option<Pin>,
}

/// What served, newest first.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct History {
    /// At most a thousand.
    pub(crate) activations: Vec<Activation>,
}

/// A released pin.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Unpinned {
    /// The generation that was pinned; `null` if none was.
    pub(crate) released: Option<String>,
}

/// What the last exams said.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ExamAnswer {
    /// Whether what serves is aligned.
    pub(crate) alignment: Alignment,
    /// Whether an exam is being sat, by itself or in a realignment.
    pub(crate) examining: bool,
    /// The exam of what serves; `null` before it sat one under the active policies.
    pub(crate) serving: Option<ExamReport>,
    /// The exam of the last candidate.
    pub(crate) candidate: Option<ExamReport>,
}

/// The engine's load.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct EngineLoad {
    /// Sequences in the running batch.
    pub(crate) running: usize,
    /// Sequences waiting to run.
    pub(crate) waiting: usize,
    /// Fraction of KV blocks held by running sequences, 0 to 1.
    pub(crate) kv_cache_usage: f64,
    /// Clients' requests whose answer is not complete.
    pub(crate) requests: usize,
    /// Open connections on all listeners.
    pub(crate) connections: usize,
}

/// Requests and judgements over time.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TrafficSummary {
    /// Length of a slot, in seconds.
    pub(crate) slot_seconds: u64,
    /// Oldest first; slots without events are omitted.
    pub(crate) slots: Vec<Slot>,
}
