//! Everything worth reporting to an operator, as one closed enum.
//!
//! Each event produces a log line, metric updates and, for realignments, a message on the admin
//! event stream, so the three cannot disagree.

use std::collections::BTreeSet;
use std::time::Duration;

use realign_align::exam::Report;
use serde::{Serialize, Serializer};

pub use realign_core::{
    AlignmentState, Eviction, LeaseCounts, ListenerRole, LossPart, Outcome, Refusal, Stage,
    Trigger, UnknownLabel,
};

pub use super::answers::{Judged, RequestFinished, RuleCount, RuleLabels};

/// An active policy and its revision (content hash).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PolicyRevision {
    /// The policy's id.
    pub(crate) policy: String,
    /// Hash of its content.
    pub(crate) revision: String,
}

/// The gate's measurements and decision.
#[derive(Clone, Debug, Serialize)]
pub struct GateMeasured {
    /// Policy agreement of the current generation, 0 to 1.
    pub(crate) agreement_current: f64,
    /// Policy agreement of the candidate, 0 to 1.
    pub(crate) agreement_candidate: f64,
    /// Capability checks: name and change, candidate minus current.
    pub(crate) capability: Vec<(&'static str, f64)>,
    /// Whether the candidate was promoted.
    pub(crate) promoted: bool,
    /// One sentence: which check was decisive and by how much.
    pub(crate) reason: String,
}

/// Whose exam it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExamRole {
    /// What serves, or serves next without a gate.
    Current,
    /// A candidate, before the gate.
    Candidate,
}

impl ExamRole {
    /// The label in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ExamRole::Current => "current",
            ExamRole::Candidate => "candidate",
        }
    }
}

/// What an exam measured.
#[derive(Clone, Debug, Serialize)]
pub struct Examined {
    /// Whose exam it was.
    pub(crate) role: ExamRole,
    /// The generation.
    pub(crate) generation: String,
    /// Policy, rule and the share of answers that comply, 0 to 1.
    pub(crate) compliance: Vec<(String, String, f64)>,
    /// Share of control answers that are diverted, 0 to 1.
    pub(crate) diverted: Option<f64>,
    /// Wall time, in seconds.
    pub(crate) took_seconds: f64,
}

impl Examined {
    pub(crate) fn new(role: ExamRole, report: &Report) -> Self {
        let measured = report.rules.iter().filter_map(|rule| {
            let ratio = rule.compliance.ratio?;
            Some((rule.policy.clone(), rule.rule.clone(), ratio))
        });
        Self {
            role,
            generation: report.generation.clone(),
            compliance: measured.collect(),
            diverted: report.controls.all.ratio,
            took_seconds: report.took_seconds,
        }
    }
}

/// This server's part in the store that servers share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoreSnapshot {
    /// Whether the store answered when it was last asked.
    pub(crate) up: bool,
    /// The epoch that `CURRENT` names; 0 if none was seen.
    pub(crate) epoch: u64,
    /// The epoch that serves; 0 if none does.
    pub(crate) serving: u64,
    /// Whether this server may publish.
    pub(crate) holds: bool,
    /// For how long it has failed to serve what `CURRENT` names.
    pub(crate) skew: Duration,
    /// How far what it computed last with a generation of the store is from what was published, in nats.
    pub(crate) distance: Option<f32>,
    /// Whether it does not serve what `CURRENT` names for that.
    pub(crate) differs: bool,
}

/// The targets of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetSnapshot {
    /// The stage of the rollout under way.
    pub(crate) stage: Option<&'static str>,
    /// Every target, and the newest epoch that it answers by; 0 is none.
    pub(crate) targets: Vec<(String, u64)>,
    /// The share of the requests that get the generation of a canary.
    pub(crate) share: f64,
    /// For each signal how far the evidence against it has come.
    pub(crate) evidence: Vec<(&'static str, f64)>,
    /// Whether an operator paused rollouts.
    pub(crate) is_paused: bool,
    /// Whether what should serve was given up.
    pub(crate) is_refused: bool,
    /// Generations that requests may name. Others have no series any more.
    pub(crate) generations: BTreeSet<String>,
}

/// An answer that passed through a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetAnswer {
    /// The generation that gave it.
    pub(crate) generation: String,
    /// `ok`, `failed` or `left`.
    pub(crate) outcome: &'static str,
    /// Time to its first byte.
    pub(crate) first_byte: Option<Duration>,
}

/// What became of an answer that a gateway's judge was to look at.
#[derive(Clone, Debug, PartialEq)]
pub enum FleetJudged {
    /// It was judged.
    Verdict {
        /// The generation that gave it.
        generation: String,
        /// Whether it violates no policy.
        complies: bool,
    },
    /// It was not: `queue_full`, `too_long`, `unreadable` or `judge`.
    Dropped(&'static str),
}

/// The engine's current load, and totals since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineSnapshot {
    /// Sequences in the running batch.
    pub(crate) running: usize,
    /// Sequences waiting to run.
    pub(crate) waiting: usize,
    /// Fraction of KV blocks held by running sequences, 0 to 1.
    pub(crate) kv_cache_usage: f64,
    /// Total number of prompt tokens looked up in the prefix cache.
    pub(crate) prefix_queries: u64,
    /// Total number of prompt tokens found there.
    pub(crate) prefix_hits: u64,
    /// Total number of sequences preempted in favour of older ones.
    pub(crate) preemptions: u64,
    /// Total number of tokens that were drafted.
    pub(crate) drafted: u64,
    /// Total number of drafted tokens that were drawn.
    pub(crate) accepted: u64,
    /// Total number of sequences and embeddings that came to values that are not finite.
    pub(crate) nonfinite: u64,
}

/// Everything that is logged and counted. `id` is always the realignment's id.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A policy set was read, tested and activated.
    PolicyReloaded {
        /// Revision of the whole set.
        revision: String,
        /// Its policies.
        policies: Vec<PolicyRevision>,
    },
    /// A policy set on disk was refused; the last good one stays active.
    PolicyReloadFailed {
        /// What is wrong, with file and line.
        error: String,
    },
    /// A realignment began.
    RealignmentStarted {
        /// The realignment's id.
        id: String,
        /// Revision of the policy set it realigns to.
        policy_revision: String,
    },
    /// A stage began.
    StageEntered {
        /// The realignment's id.
        id: String,
        /// The stage.
        stage: Stage,
    },
    /// A stage completed.
    StageFinished {
        /// The realignment's id.
        id: String,
        /// The stage.
        stage: Stage,
        /// Wall time.
        #[serde(rename = "took_seconds", serialize_with = "seconds")]
        took: Duration,
    },
    /// The realignment as a whole advanced.
    Progress {
        /// The realignment's id.
        id: String,
        /// The stage it is in.
        stage: Stage,
        /// Completed fraction of all stages, 0 to 1.
        ratio: f64,
    },
    /// The preference data was read.
    DataRead {
        /// Distinct pairs.
        pairs: usize,
        /// Rows that are no pairs.
        refused: usize,
        /// Files and folders next to the data that are not read.
        not_read: usize,
    },
    /// Triage assigned every preference pair to a category.
    Triaged {
        /// The realignment's id.
        id: String,
        /// Pairs whose preference is inverted.
        invert: usize,
        /// Pairs whose responses both violate.
        punish: usize,
        /// Pairs that do not conflict with the policy.
        retain: usize,
    },
    /// A training step was taken.
    TrainLoss {
        /// The realignment's id.
        id: String,
        /// The step, from 1.
        step: usize,
        /// Total number of steps.
        steps: usize,
        /// The step's losses, by part.
        parts: Vec<(LossPart, f64)>,
    },
    /// The gate reached a verdict.
    Gated {
        /// The realignment's id.
        id: String,
        /// Its measurements.
        #[serde(flatten)]
        measured: GateMeasured,
    },
    /// A realignment ended.
    RealignmentFinished {
        /// The realignment's id.
        id: String,
        /// How it ended.
        outcome: Outcome,
        /// What started it; `None` if that was not recorded.
        trigger: Option<Trigger>,
        /// The generation promoted or rejected, if training got that far.
        generation: Option<String>,
        /// One sentence for an operator: the error, the failed check, or what superseded it.
        detail: Option<String>,
        /// Wall time.
        #[serde(rename = "took_seconds", serialize_with = "seconds")]
        took: Duration,
    },
    /// Another generation serves from now on.
    SwapPublished {
        /// The generation that served until now.
        from: String,
        /// The generation that serves from now on.
        to: String,
        /// The policy revision `to` was trained for; `None` for the base model.
        policy_revision: Option<String>,
        /// Time from the staged adapter to the completed swap.
        #[serde(rename = "took_seconds", serialize_with = "seconds")]
        took: Duration,
    },
    /// A swap failed; the current generation keeps serving.
    SwapFailed {
        /// The generation that should have served.
        to: String,
        /// The reason.
        error: String,
    },
    /// A generation is neither current nor previous any more.
    GenerationRetired {
        /// The generation's id.
        generation: String,
    },
    /// What exceeds the limits of `[retention]` was removed.
    Collected {
        /// What went, by kind.
        removed: Vec<(&'static str, u64)>,
        /// Bytes of the adapters that are there now.
        adapters_bytes: u64,
    },
    /// A generation sat the exam.
    Examined(Examined),
    /// An HTTP request ended.
    #[serde(skip)]
    RequestFinished(RequestFinished),
    /// A request was refused.
    #[serde(skip)]
    RequestRefused {
        /// The reason.
        reason: Refusal,
    },
    /// A connection that waited for a request was ended.
    #[serde(skip)]
    ConnectionEvicted {
        /// Whose listener it came through.
        listener: ListenerRole,
        /// The reason.
        reason: Eviction,
    },
    /// A finished answer violates the JSON schema that the client asked for.
    #[serde(skip)]
    SchemaViolated {
        /// The choice, from 0.
        choice: usize,
        /// What it violates, and where.
        found: String,
    },
    /// An answer to a client was judged.
    #[serde(skip)]
    ComplianceJudged(Judged),
    /// Rules that an answer to a client violates, which was spared the judges and has no verdict.
    #[serde(skip)]
    ViolationsFound(Vec<RuleLabels>),
    /// An answer to a client was not judged because the queue was full.
    #[serde(skip)]
    ComplianceDropped,
    /// A snapshot of the engine's load.
    #[serde(skip)]
    EngineStats(EngineSnapshot),
    /// A snapshot of the registry's leases.
    #[serde(skip)]
    Leases(LeaseCounts),
    /// A snapshot of this server's part in the store that servers share.
    #[serde(skip)]
    StoreSeen(StoreSnapshot),
    /// A gateway's targets, as metrics were asked for.
    #[serde(skip)]
    FleetSeen(FleetSnapshot),
    /// An answer passed through a gateway.
    #[serde(skip)]
    FleetAnswered(FleetAnswer),
    /// A gateway's judge looked at an answer, or could not.
    #[serde(skip)]
    FleetJudged(FleetJudged),
}

impl Event {
    /// The id of the realignment that the event belongs to, if any.
    pub(crate) fn realignment_id(&self) -> Option<&str> {
        match self {
            Event::RealignmentStarted { id, .. }
            | Event::StageEntered { id, .. }
            | Event::StageFinished { id, .. }
            | Event::Progress { id, .. }
            | Event::Triaged { id, .. }
            | Event::TrainLoss { id, .. }
            | Event::Gated { id, .. }
            | Event::RealignmentFinished { id, .. } => Some(id),
            Event::PolicyReloaded { .. }
            | Event::PolicyReloadFailed { .. }
            | Event::SwapPublished { .. }
            | Event::SwapFailed { .. }
            | Event::GenerationRetired { .. }
            | Event::Collected { .. }
            | Event::DataRead { .. }
            | Event::Examined(_)
            | Event::ViolationsFound(_)
            | Event::RequestFinished(_)
            | Event::RequestRefused { .. }
            | Event::ConnectionEvicted { .. }
            | Event::SchemaViolated { .. }
            | Event::ComplianceJudged(_)
            | Event::ComplianceDropped
            | Event::EngineStats(_)
            | Event::Leases(_)
            | Event::StoreSeen(_)
            | Event::FleetSeen(_)
            | Event::FleetAnswered(_)
            | Event::FleetJudged(_) => None,
        }
    }

    /// Whether it is emitted for every request or scrape and therefore not sent to subscribers.
    pub(crate) fn is_frequent(&self) -> bool {
        matches!(
            self,
            Event::RequestFinished(_)
                | Event::RequestRefused { .. }
                | Event::ConnectionEvicted { .. }
                | Event::SchemaViolated { .. }
                | Event::ComplianceJudged(_)
                | Event::ViolationsFound(_)
                | Event::ComplianceDropped
                | Event::EngineStats(_)
                | Event::Leases(_)
                | Event::StoreSeen(_)
                | Event::FleetSeen(_)
                | Event::FleetAnswered(_)
                | Event::FleetJudged(_)
        )
    }
}

fn seconds<S: Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}
