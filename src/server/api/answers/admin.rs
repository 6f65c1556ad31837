//! What operator routes answer. The web page and `realign adapters` read these fields by name.

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
    /// What a candidate must reach: the strictest bounds of all policies.
    pub gate: Gate,
    /// Its policies.
    pub policies: Vec<PolicySummary>,
    /// Why the policy directory as it is now was refused; `null` if it is active.
    pub last_error: Option<String>,
    /// How the rules did on their examples.
    pub trust: Vec<RuleTrust>,
    /// What `dryrun` policies say about the preference data; `null` if there are none.
    pub dryrun: Option<Stored<DryrunReport>>,
}

/// An active policy.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PolicySummary {
    /// Unique among the policies of a set.
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
    /// Unique in its policy.
    pub id: String,
    /// How much a violation matters.
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
    /// The stage it is in, or ended in.
    #[schemars(schema_with = "schemas::stage")]
    pub stage: Stage,
    /// How it ended; `null` while it runs or after an interruption.
    #[schemars(schema_with = "schemas::outcome_or_null")]
    pub outcome: Option<Outcome>,
    /// Done share, 0 to 1.
    pub progress: f64,
    /// When it began.
    pub created_at: u64,
    /// When anything changed last.
    pub updated_at: u64,
    /// When it ended.
    pub finished_at: Option<u64>,
    /// Preference pairs by category, once they are triaged.
    pub triage: Option<Stored<TriageReport>>,
    /// The losses of the newest training step.
    pub losses: Option<Stored<LossReport>>,
    /// The gate's measurements and verdict.
    pub gate: Option<Stored<GateReport>>,
    /// What went wrong.
    pub error: Option<String>,
    /// The generation it led to.
    pub generation: Option<String>,
    /// `running`, or the outcome.
    #[schemars(schema_with = "schemas::status")]
    pub status: &'static str,
    /// Stages and losses of a realignment asked for by its id; `null` if it ran before this process
    /// or too long ago. Listings leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Timeline>")]
    pub timeline: Option<Option<Timeline>>,
}

/// The realignment that was started.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Started {
    /// As its own route shows it.
    Whole(Box<Realignment>),
    /// Only its id, where the state database cannot be read.
    Id {
        /// Its id.
        id: String,
    },
}

/// A realignment that was told to stop.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cancelling {
    /// Its id.
    pub id: String,
    /// It ends at its next step.
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
    /// The generation that serves.
    pub current: String,
    /// What a rollback returns to.
    pub previous: Option<String>,
    /// The base model first, then by age.
    pub generations: Vec<GenerationSummary>,
}

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Role {
    /// It serves.
    Current,
    /// It served before.
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
        /// False.
        base: bool,
        /// Why.
        error: String,
    },
    /// The base model.
    Base {
        /// Generation id.
        id: String,
        /// Whether it serves.
        role: Role,
        /// True.
        base: bool,
    },
}

/// A trained or imported adapter.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AdapterSummary {
    /// Generation id.
    pub id: String,
    /// Whether it serves.
    pub role: Role,
    /// False: it is an adapter of the base model.
    pub base: bool,
    /// The policy set that it was trained for; `null` for an imported one.
    pub policy_revision: Option<String>,
    /// When it was published, in Unix seconds.
    pub created_at: u64,
    /// The generation that served when it was trained.
    pub parent: Option<String>,
    /// Preference pairs by category.
    pub triage: PairCounts,
    /// The gate's measurements and verdict; `null` for an imported one.
    #[schemars(with = "Option<GateReport>")]
    pub gate: Stored<GateReport>,
}

/// A swap of generations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Swap {
    /// Served until now.
    pub from: String,
    /// Serves now.
    pub to: String,
}

/// What is logged.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LogLevel {
    /// The filter in force: levels, by module where they differ.
    pub filter: String,
}

/// Everything that the operators' page shows.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Overview {
    /// Unix seconds.
    pub now: u64,
    /// The process.
    pub server: ServerSummary,
    /// What serves.
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
    /// Every active rule with the judged answers that violate it.
    pub violations: Vec<RuleCount>,
}

/// The process.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ServerSummary {
    /// The version of realign.
    pub version: &'static str,
    /// The served name.
    pub model: String,
    /// Unix seconds.
    pub started_at: u64,
    /// False while loading and draining.
    pub ready: bool,
    /// Whether live answers are judged.
    pub judges: bool,
}

/// What serves.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Serving {
    /// Generation id.
    pub generation: String,
    /// The policy set it was trained for; `null` for the base model.
    pub policy_revision: Option<String>,
    /// Whether it fits the active policies.
    pub aligned: bool,
    /// For how long it has not; 0 while it does.
    pub gap_open_seconds: f64,
}

/// The engine's load.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EngineLoad {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences waiting.
    pub waiting: usize,
    /// Share of KV blocks that running sequences hold, 0 to 1.
    pub kv_cache_usage: f64,
}

/// Requests and judgements over time.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TrafficSummary {
    /// Length of a slot, in seconds.
    pub slot_seconds: u64,
    /// Oldest first; those in which nothing happened are left out.
    pub slots: Vec<Slot>,
}
