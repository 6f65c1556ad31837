//! One realignment, stage by stage: triage → impact → train → gate → publish → swap.
//!
//! Every stage's output is stored under the hash of its inputs (verdicts, scores, checkpoints,
//! generation), so a realignment that was killed finds its work again.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::context::Context;
use super::inputs::checkpoints;
use super::manifest::Origin;
use super::stop::StopFlag;
use super::work::Work;
use crate::state::{GenerationRow, GenerationStatus, Report};
use crate::telemetry::{Event, Outcome, Stage};
use realign_align::oracle::{Matchers, RuleOracle};
use realign_align::pipeline::{Inputs, Learner};
use realign_align::policy::PolicySet;
use realign_align::train::Curve;
use realign_align::triage::{Triage, triage_cached};
use realign_core::clock::unix_seconds;
use realign_engine::adapter::generation::{Generation, GenerationId};

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

/// A realignment that succeeded or had nothing to do.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) generation: String,
}

/// A realignment that did not.
pub(crate) enum Stop {
    /// The job's flag said so.
    Asked,
    /// The gate refused the candidate.
    Rejected { generation: String, reason: String },
    /// A stage failed.
    Failed(String),
}

/// What comes back to the control loop.
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) result: Result<Done, Stop>,
}

pub(super) fn failed(error: impl std::fmt::Display) -> Stop {
    Stop::Failed(error.to_string())
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
    let preferences = &context.config.paths.preferences;
    if job.inputs.dataset.pairs.is_empty() && !job.policies.is_empty() {
        // No data is no evidence of compliance: what serves keeps serving.
        let what = format!(
            "{}: no preference pairs; add *.jsonl files or set paths.preferences",
            preferences.display()
        );
        return Err(Stop::Failed(what));
    }
    let run = Realignment {
        context,
        job,
        work: &work,
        oracle: RuleOracle::new(&job.policies).with_matchers(job.matchers.clone()),
    };
    let triage = run.triage();
    if let Some(open) = triage.first_failure() {
        // Verdicts that were had are kept, so the next attempt begins where this one stopped.
        let (count, rule, why) = (triage.undecided, &open.rule, &open.why);
        return Err(Stop::Failed(format!(
            "{count} pairs could not be triaged; rule {}:{rule}: {why}",
            open.policy
        )));
    }
    if let Some(known) = run.known_result()? {
        return run.reuse(known);
    }
    if triage.counts.conflicts() == 0 {
        return run.without_conflict();
    }
    let pairs = run.select(&triage)?;
    let learner = Learner::new(&context.loaded);
    let trained = run.learn(&learner, &pairs)?;
    work.enter(Stage::Gate);
    let candidate = run.stage(trained.weights)?;
    let done = run.gate_and_swap(learner, &triage, (&candidate, &trained.curve));
    if done.is_err() {
        context.engine.release(&candidate.id);
    }
    done
}

/// A job while it runs.
pub(super) struct Realignment<'a> {
    pub(super) context: &'a Context,
    pub(super) job: &'a Job,
    pub(super) work: &'a Work<'a>,
    pub(super) oracle: RuleOracle,
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
        let report = json!({ "invert": counts.invert, "punish": counts.punish, "retain": counts.retain, "gap_ratio": triage.gap_ratio });
        self.context.log(
            self.context
                .db
                .put_report(&self.job.id, Report::Triage, &report),
        );
        let id = self.job.id.clone();
        self.context.emit(Event::Triaged {
            id,
            invert: counts.invert,
            punish: counts.punish,
            retain: counts.retain,
        });
        triage
    }

    /// What the same inputs led to before.
    fn known_result(&self) -> Result<Option<GenerationRow>, Stop> {
        self.context
            .db
            .generation_by_inputs(&self.job.inputs.hash)
            .map_err(failed)
    }

    fn reuse(&self, known: GenerationRow) -> Result<Done, Stop> {
        if known.status == GenerationStatus::Rejected {
            let reason =
                "the same base, data, policies and recipe were refused by the gate before".into();
            return Err(Stop::Rejected {
                generation: known.id,
                reason,
            });
        }
        let generation = self
            .context
            .load_generation(&GenerationId(known.id))
            .map_err(failed)?;
        if let Some(report) = self
            .context
            .store
            .manifest(&generation.id)
            .ok()
            .map(|m| m.gate)
        {
            self.context.log(
                self.context
                    .db
                    .put_report(&self.job.id, Report::Gate, &report),
            );
        }
        self.work.enter(Stage::Swap);
        self.swap(Arc::new(generation))
    }

    fn gate_and_swap(
        &self,
        learner: Learner,
        triage: &Triage,
        (candidate, curve): (&Arc<Generation>, &Curve),
    ) -> Result<Done, Stop> {
        let gate_report = self.gate(&learner, triage, candidate)?;
        drop(learner);
        self.work.enter(Stage::Publish);
        self.publish(candidate, triage, gate_report, curve)?;
        self.work.enter(Stage::Swap);
        self.swap(candidate.clone())
    }

    /// The base model complies with the set as far as the data can tell: it serves.
    fn without_conflict(&self) -> Result<Done, Stop> {
        let base = self.context.registry.base().clone();
        self.work.enter(Stage::Swap);
        let done = self.swap(base)?;
        Ok(Done {
            outcome: Outcome::NoConflict,
            ..done
        })
    }

    pub(super) fn remember(&self, id: &GenerationId, status: GenerationStatus) -> Result<(), Stop> {
        let row = GenerationRow {
            id: id.to_string(),
            inputs_hash: self.job.inputs.hash.clone(),
            policy_revision: self.job.policies.revision().into(),
            created_at: unix_seconds(),
            status,
            path: self.context.store.path(id).display().to_string(),
        };
        self.context.db.put_generation(&row).map_err(failed)?;
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
        triage: &Triage,
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
            triage: triage.counts,
        };
        let store = &self.context.store;
        origin
            .publish(store, adapter, curve, gate)
            .map_err(failed)?;
        self.remember(&candidate.id, GenerationStatus::Promoted)
    }

    /// `CURRENT` first, then the pointer: after a kill in between, the restart serves the new one.
    fn swap(&self, to: Arc<Generation>) -> Result<Done, Stop> {
        let started = Instant::now();
        self.make_ready(&to)?;
        let stored = match to.adapter {
            Some(_) => self.context.store.set_current(&to.id),
            None => self.context.store.set_current_base(&to.base_hash),
        };
        let publish = stored.map_err(|e| e.to_string()).and_then(|()| {
            self.context
                .registry
                .swap(to.clone(), None)
                .map_err(|e| e.to_string())
        });
        let swapped = publish.map_err(|error| {
            self.context.emit(Event::SwapFailed {
                to: to.id.to_string(),
                error: error.clone(),
            });
            Stop::Failed(error)
        })?;
        self.context.engine.serve(&to.id);
        super::admin::announce(self.context, &swapped, &to, started.elapsed());
        self.work.progress(1.0);
        self.work.leave();
        Ok(Done {
            outcome: Outcome::Succeeded,
            generation: to.id.to_string(),
        })
    }
}
