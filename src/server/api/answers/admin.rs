//! Answers of the operator routes. The web page and `realign adapters` read these fields by name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Stored;
use super::reports::{DryrunReport, GateReport, LossReport, PairCounts, TriageReport};
use crate::telemetry::timeline::Timeline;
use crate::telemetry::traffic::Slot;
use crate::telemetry::{Outcome, RuleCount, Stage, schemas};
use realign_align::oracle::RuleTrust;
use realign_align::policy::{Enforcement, Gate, Severity};

/// The active policy set.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Policies {
    /// Hash of the whole set.
    pub revision: String,
    /// The bounds that a candidate must meet: the strictest of all policies.
    pub gate: Gate,
    /// The policies of the set.
    pub policies: Vec<PolicySummary>,
    /// Why the current content of the policy directory was refused; `null` if it is active.
    pub last_error: Option<String>,
    /// How the rules performed on their examples.
    pub trust: Vec<RuleTrust>,
    /// Effect of `dryrun` policies on the triage of preference data; `null` if there are none.
    pub dryrun: Option<Stored<DryrunReport>>,
}

/// An active policy.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PolicySummary {
    /// Policy id, unique in the set.
    pub id: String,
    /// The operator's own version string.
    pub version: String,
    /// What the policy is for.
    pub description: String,
    /// Whether it trains or only reports.
    pub enforcement: Enforcement,
    /// Its rules, in file order.
    pub rules: Vec<RuleSummary>,
}

/// A rule of an active policy.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RuleSummary {
    /// Rule id, unique in its policy.
    pub id: String,
    /// Severity of a violation.
    pub severity: Severity,
    /// What the rule is for.
    pub description: String,
}

/// Recent realignments, newest first.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Realignments {
    /// At most a hundred.
    pub realignments: Vec<Realignment>,
}

/// A realignment. Times are Unix seconds.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Realignment {
    /// Its id.
    pub id: String,
    /// Hash of base model, data, policy set, recipe and seed.
    pub inputs_hash: String,
    /// Revision of the policy set.
    pub policy_revision: String,
    /// The current or last stage.
    #[schemars(schema_with = "schemas::stage")]
    pub stage: Stage,
    /// How it ended; `null` while it runs or after an interruption.
    #[schemars(schema_with = "schemas::outcome_or_null")]
    pub outcome: Option<Outcome>,
    /// Completed fraction, 0 to 1.
    pub progress: f64,
    /// When it began.
    pub created_at: u64,
    /// When it was last updated.
    pub updated_at: u64,
    /// When it ended.
    pub finished_at: Option<u64>,
    /// Preference pairs by category, once they are triaged.
    pub triage: Option<Stored<TriageReport>>,
    /// The losses of the newest training step.
    pub losses: Option<Stored<LossReport>>,
    /// The gate's measurements and verdict.
    pub gate: Option<Stored<GateReport>>,
    /// One sentence for an operator if it did not succeed.
    pub error: Option<String>,
    /// The resulting generation.
    pub generation: Option<String>,
    /// `running`, or the outcome.
    #[schemars(schema_with = "schemas::status")]
    pub status: &'static str,
    /// Stages and losses, if the realignment was requested by its id; `null` if it ran before this
    /// process started or too long ago. Omitted in listings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Timeline>")]
    pub timeline: Option<Option<Timeline>>,
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
    pub id: String,
    /// It stops at its next step.
    #[schemars(extend("const" = "cancelling"))]
    pub status: &'static str,
}

impl Cancelling {
    /// The answer for this realignment.
    pub fn new(id: &str) -> Self {
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
    pub current: String,
    /// The generation that a rollback returns to.
    pub previous: Option<String>,
    /// The base model first, then by age.
    pub generations: Vec<GenerationSummary>,
}

/// The role of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Role {
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
pub enum GenerationSummary {
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
pub struct AdapterSummary {
    /// Generation id.
    pub id: String,
    /// Its role.
    pub role: Role,
    /// Always false.
    pub base: bool,
    /// The policy set it was trained for; `null` for an imported adapter.
    pub policy_revision: Option<String>,
    /// When it was published, in Unix seconds.
    pub created_at: u64,
    /// The generation that was current when it was trained.
    pub parent: Option<String>,
    /// Preference pairs by category.
    pub triage: PairCounts,
    /// The gate's measurements and verdict; `null` for an imported adapter.
    #[schemars(with = "Option<GateReport>")]
    pub gate: Stored<GateReport>,
}

/// A swap of generations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Swap {
    /// The generation that served until now.
    pub from: String,
    /// The generation that serves from now on.
    pub to: String,
}

/// The log filter.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LogLevel {
    /// The current filter: a level, and levels by module where they differ.
    pub filter: String,
}

/// Everything that the operators' page shows.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Overview {
    /// Time of the answer, in Unix seconds.
    pub now: u64,
    /// The process.
    pub server: ServerSummary,
    /// The current generation.
    pub serving: Serving,
    /// The engine's load.
    pub engine: EngineLoad,
    /// The active policy set.
    pub policies: Policies,
    /// The newest realignment, with its timeline.
    pub realignment: Option<Realignment>,
    /// The newest realignments.
    pub realignments: Vec<Realignment>,
    /// All generations.
    pub generations: Generations,
    /// Requests and judgements over time.
    pub traffic: TrafficSummary,
    /// Every active rule with the number of judged answers that violate it.
    pub violations: Vec<RuleCount>,
}

/// The process.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ServerSummary {
    /// The version of realign.
    pub version: &'static str,
    /// The served name.
    pub model: String,
    /// When the server started, in Unix seconds.
    pub started_at: u64,
    /// False while loading and draining.
    pub ready: bool,
    /// Whether live answers are judged.
    pub judges: bool,
}

/// The current generation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Serving {
    /// Generation id.
    pub generation: String,
    /// The policy set it was trained for; `null` for the base model.
    pub policy_revision: Option<String>,
    /// Whether it is aligned to the active policies.
    pub aligned: bool,
    /// For how long it has not been aligned, in seconds; 0 while it is.
    pub gap_open_seconds: f64,
}

/// The engine's load.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EngineLoad {
    /// Sequences in the running batch.
    pub running: usize,
    /// Sequences waiting to run.
    pub waiting: usize,
    /// Fraction of KV blocks held by running sequences, 0 to 1.
    pub kv_cache_usage: f64,
}

/// Requests and judgements over time.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TrafficSummary {
    /// Length of a slot, in seconds.
    pub slot_seconds: u64,
    /// Oldest first; slots without events are omitted.
    pub slots: Vec<Slot>,
}
