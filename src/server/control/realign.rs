//! One realignment, stage by stage: triage → exam → gather → impact → train → gate → publish → swap.
//!
//! Every stage's output is stored under the hash of its inputs (verdicts, scores, checkpoints,
//! generation), so a realignment that was killed finds its work again.

use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::context::Context;
use super::inputs::checkpoints;
use super::manifest::Origin;
use super::pointer::{Change, ChangeError};
use super::stop::StopFlag;
use super::work::Work;
use crate::state::{Act, GenerationRow, GenerationStatus, Report};
use crate::telemetry::{Event, Outcome, Stage};
use realign_align::exam::{Exam, Sitting, Standing};
use realign_align::gather::Gathered;
use realign_align::oracle::{Matchers, RuleOracle};
use realign_align::pipeline::{Inputs, Learner, training_key};
use realign_align::policy::PolicySet;
use realign_align::train::Curve;
use realign_align::triage::{Triage, triage_cached};
use realign_core::clock::unix_seconds;
use realign_core::crash_point;
use realign_engine::adapter::AdapterError;
use realign_engine::adapter::generation::{Generation, GenerationId};

/// What is said where the exam finds violations and the data no conflict.
const NOTHING_TO_LEARN: &str = "no preference pair conflicts with the policies, so there is nothing \
    to learn from, although what serves violates them: add pairs whose responses violate and comply";

/// What to realign to.
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) policies: Arc<PolicySet>,
    /// The policies' probes and judges.
    pub(crate) matchers: Arc<Matchers>,
    pub(crate) inputs: Inputs,
    /// Tells whether to stop.
    pub(crate) flag: Arc<StopFlag>,
}

impl Job {
    /// What judges for it, until it is told to stop.
    fn oracle(&self) -> RuleOracle {
        let flag = self.flag.clone();
        RuleOracle::new(&self.policies)
            .with_matchers(self.matchers.clone())
            .proceeding_while(move || flag.get().is_none())
    }
}

/// A realignment that succeeded or had nothing to do.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) generation: String,
    /// What an operator should know about it.
    pub(crate) detail: Option<String>,
}

/// A realignment that did not.
pub(crate) enum Stop {
    /// The job's flag said so.
    Asked,
    /// The gate refused the candidate.
    Rejected { generation: String, reason: String },
    /// A stage failed.
    Failed(String),
    /// A stage failed for a reason that may pass: a judge that does not answer, a full disk.
    Hindered(String),
}

/// What comes back to the control loop.
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) result: Result<Done, Stop>,
}

pub(super) fn failed(error: impl std::fmt::Display) -> Stop {
    Stop::Failed(error.to_string())
}

pub(super) fn hindered(error: impl std::fmt::Display) -> Stop {
    Stop::Hindered(error.to_string())
}

/// Runs a job to its end. A panic inside is a failure like any other: the server goes on.
pub(crate) fn run(context: &Context, job: Job) -> Ended {
    let id = job.id.clone();
    let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| realign(context, &job)));
    let result = attempt.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Stop::Failed(format!(
            "internal error: {}",
            text.unwrap_or("no message")
        )))
    });
    Ended { id, result }
}

fn realign(context: &Context, job: &Job) -> Result<Done, Stop> {
    let work = Work::new(context, job);
    work.enter(Stage::Triage);
    let mut run = Realignment {
        context,
        job,
        work: &work,
        oracle: job.oracle(),
        gathered: Gathered::default(),
        further: Vec::new(),
    };
    let triage = run.triage();
    crash_point("triage:after-verdicts");
    if !work.go_on() {
        return Err(Stop::Asked);
    }
    if let Some(open) = triage.first_failure() {
        // Verdicts that were had are kept, so the next attempt begins where this one stopped.
        let (count, rule, why) = (triage.undecided, &open.rule, &open.why);
        return Err(Stop::Hindered(format!(
            "{count} pairs could not be triaged; rule {}:{rule}: {why}",
            open.policy
        )));
    }
    let exam = run.assemble_exam(&triage)?;
    let before = run.examine_serving(&exam)?;
    if let Some(known) = run.known_result(&job.inputs.hash)
        && let Some(done) = run.reuse(&exam, &known)?
    {
        return Ok(done);
    }
    run.gathered = run.gather(&exam, &before, &triage)?;
    run.report_triage(&triage, &[]);
    if triage.counts.conflicts() == 0 && run.gathered.pairs.is_empty() {
        return run.nothing_to_learn(&exam, &before);
    }
    run.further = run.further(&exam);
    let pairs = run.select(&triage)?;
    let key = training_key(&context.loaded.base_hash, &context.recipe, &pairs);
    for known in [&key, &run.refusal_key(&key, &exam)] {
        if let Some(known) = run.known_result(known)
            && let Some(done) = run.reuse(&exam, &known)?
        {
            return Ok(done);
        }
    }
    let learner = Learner::new(&context.loaded).on(context.config.train.remote());
    let trained = run.learn(&learner, &pairs)?;
    work.enter(Stage::Gate);
    let candidate = run.stage(trained.weights)?;
    let asked = Asked {
        exam: &exam,
        before: &before,
        triage: &triage,
        key: &key,
    };
    let done = run.gate_and_swap(learner, asked, (&candidate, &trained.curve));
    if done.is_err() {
        context.engine.release(&candidate.id);
    }
    done
}

/// What a candidate is measured by.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) exam: &'a Exam,
    /// How what serves did.
    pub(super) before: &'a Sitting,
    pub(super) triage: &'a Triage,
    /// What training was a function of.
    pub(super) key: &'a str,
}

/// A job while it runs.
pub(super) struct Realignment<'a> {
    pub(super) context: &'a Context,
    pub(super) job: &'a Job,
    pub(super) work: &'a Work<'a>,
    pub(super) oracle: RuleOracle,
    /// The pairs that the server made itself.
    pub(super) gathered: Gathered,
    /// Governed prompts that candidates are asked between rounds besides those that are trained on.
    pub(super) further: Vec<String>,
}

impl Realignment<'_> {
    fn triage(&self) -> Triage {
        let (triage, judged) = triage_cached(
            &self.job.inputs.dataset.pairs,
            &self.oracle,
            self.context.db.as_ref(),
        );
        let counts = triage.counts;
        tracing::info!(
            id = self.job.id,
            judged = judged.judged,
            cached = judged.cached,
            undecided = triage.undecided,
            reached = %json!(self.oracle.usage()),
            "triage"
        );
        self.warn(counts);
        self.report_triage(&triage, &[]);
        let id = self.job.id.clone();
        self.context.emit(Event::Triaged {
            id,
            invert: counts.invert,
            punish: counts.punish,
            retain: counts.retain,
        });
        triage
    }

    /// What a key led to before: a generation, or one that was refused.
    fn known_result(&self, key: &str) -> Option<GenerationRow> {
        let known = self.context.db.generation_by_inputs(key);
        self.context.log(known).flatten()
    }

    /// What a refusal depends on: what was trained, what was asked, and the bounds.
    pub(super) fn refusal_key(&self, training: &str, exam: &Exam) -> String {
        let bounds = json!([self.bounds(), self.job.policies.gate()]);
        let mut hash = Sha256::new();
        for part in [training, &exam.hash, &bounds.to_string()] {
            hash.update(part);
        }
        hex::encode(hash.finalize())
    }

    /// Serves what the same inputs led to before. `None` if its files are gone or damaged: then it is
    /// trained again.
    fn reuse(&self, exam: &Exam, known: &GenerationRow) -> Result<Option<Done>, Stop> {
        if known.status == GenerationStatus::Rejected {
            let reason = "the same base, data, policies and recipe were refused by the same gate \
                before; change one of them, the exam's prompts or the gate's bounds"
                .into();
            return Err(Stop::Rejected {
                generation: known.id.clone(),
                reason,
            });
        }
        let id = GenerationId(known.id.clone());
        let mut generation = match self.context.load_generation(&id) {
            Ok(generation) => generation,
            Err(error) => {
                tracing::warn!(%error, generation = %id, "a known generation cannot be used: training it again");
                return Ok(None);
            }
        };
        generation.policy_revision = Some(self.job.policies.revision().into());
        let manifest = self.context.store.manifest(&generation.id);
        if let Some(report) = manifest.ok().map(|m| m.gate) {
            self.context.log(
                self.context
                    .db
                    .put_report(&self.job.id, Report::Gate, &report),
            );
        }
        let generation = Arc::new(generation);
        self.make_ready(&generation)?;
        self.examine(exam, &generation, None)?;
        self.remember(&generation.id, (known.status, &self.job.inputs.hash))?;
        self.work.enter(Stage::Swap);
        self.swap(generation).map(Some)
    }

    fn gate_and_swap(
        &self,
        learner: Learner,
        asked: Asked<'_>,
        (candidate, curve): (&Arc<Generation>, &Curve),
    ) -> Result<Done, Stop> {
        let gate_report = self.gate(&learner, asked, candidate)?;
        drop(learner);
        self.work.enter(Stage::Publish);
        // A candidate that does not do yet what some policy asks may serve for the others.
        let open = gate_report["open"].as_str().map(str::to_owned);
        self.publish(candidate, asked, gate_report, curve)?;
        self.work.enter(Stage::Swap);
        let done = self.swap(candidate.clone())?;
        let detail = done.detail.or(open);
        Ok(Done { detail, ..done })
    }

    /// No pair conflicts, so there is nothing to learn from. What serves stays, unless it was trained
    /// for other policies and the base does what these ask: then it is undone.
    pub(super) fn without_conflict(&self, exam: &Exam, before: &Sitting) -> Result<Done, Stop> {
        let registry = &self.context.registry;
        let (serving, base) = (registry.lease_current(), registry.base().clone());
        let revision = self.job.policies.revision();
        let is_own = serving.policy_revision.as_deref() == Some(revision);
        let undo = serving.adapter.is_some() && !is_own && self.may_return(exam, before, &base)?;
        let stays = !undo && !exam.rules.is_empty();
        let done = if stays {
            Done {
                outcome: Outcome::NoConflict,
                generation: serving.id.to_string(),
                detail: None,
            }
        } else {
            self.work.enter(Stage::Swap);
            self.swap(base)?
        };
        let violates = stays && self.report(exam, before).standing() == Standing::Misses;
        Ok(Done {
            outcome: Outcome::NoConflict,
            detail: violates.then(|| format!("{NOTHING_TO_LEARN}{}", self.nothing_gathered())),
            ..done
        })
    }

    /// Whether the base does what the policies ask, or no less than what serves where that cannot be
    /// told.
    fn may_return(
        &self,
        exam: &Exam,
        before: &Sitting,
        base: &Arc<Generation>,
    ) -> Result<bool, Stop> {
        let sitting = self.examine(exam, base, None)?;
        Ok(match self.report(exam, &sitting).standing() {
            Standing::Meets => true,
            Standing::Misses => false,
            Standing::Unknown => self.report(exam, before).standing() != Standing::Meets,
        })
    }

    /// Records what these inputs led to.
    pub(super) fn remember(
        &self,
        id: &GenerationId,
        (status, key): (GenerationStatus, &str),
    ) -> Result<(), Stop> {
        let row = GenerationRow {
            id: id.to_string(),
            inputs_hash: key.to_owned(),
            policy_revision: self.job.policies.revision().into(),
            created_at: unix_seconds(),
            status,
            path: self.context.store.path(id).display().to_string(),
        };
        self.context.db.put_generation(&row).map_err(hindered)?;
        let checkpoints = checkpoints(&self.context.config, &self.job.inputs);
        // The result is known from here on: the run's checkpoints are of no more use.
        if let Err(error) = std::fs::remove_dir_all(checkpoints) {
            tracing::debug!(%error, "no checkpoints to remove");
        }
        Ok(())
    }

    fn publish(
        &self,
        candidate: &Generation,
        asked: Asked<'_>,
        gate: serde_json::Value,
        curve: &Curve,
    ) -> Result<(), Stop> {
        let adapter = candidate
            .adapter
            .as_ref()
            .map(|adapter| &*adapter.weights)
            .ok_or_else(|| failed("the candidate has no adapter"))?;
        let origin = Origin {
            parent: Some(self.context.registry.lease_current().id.clone()),
            loaded: &self.context.loaded,
            inputs: &self.job.inputs,
            recipe: &self.context.recipe,
            triage: asked.triage.counts,
            gathered: self.gathered.report.as_ref(),
            trained_by: self.context.config.train.trained_by(),
        };
        let store = &self.context.store;
        origin
            .publish(store, adapter, curve, gate)
            .map_err(|error| match error {
                AdapterError::Io { .. } | AdapterError::Lock(_) => hindered(error),
                other => failed(other),
            })?;
        for key in [asked.key, &self.job.inputs.hash] {
            self.remember(&candidate.id, (GenerationStatus::Promoted, key))?;
        }
        Ok(())
    }

    /// Makes a generation serve. One that an operator's pin keeps from serving stays published.
    fn swap(&self, to: Arc<Generation>) -> Result<Done, Stop> {
        self.make_ready(&to)?;
        let generation = to.id.to_string();
        let change = Change {
            to,
            act: Act::Realign,
            reason: &self.job.id,
            expected: None,
        };
        let (outcome, detail) = match self.context.change_serving(change) {
            Ok(_) => (Outcome::Succeeded, None),
            Err(error @ ChangeError::Pinned(_)) => (
                Outcome::Superseded,
                Some(format!("generation {generation} is ready, but {error}")),
            ),
            // The disk or the database: the result is published, and the next attempt finds it.
            Err(error) => return Err(hindered(error)),
        };
        self.work.progress(1.0);
        self.work.leave();
        Ok(Done {
            outcome,
            generation,
            detail,
        })
    }
}
