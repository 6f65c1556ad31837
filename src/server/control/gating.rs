//! The gate of a realignment: what serves and the candidate sit the same exam.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::exam::Watch;
use super::realign::{Asked, Realignment, Stop, failed};
use super::work::EXAMINED;
use crate::state::{GenerationStatus, Report as Kind};
use crate::telemetry::Event;
use crate::telemetry::event::{ExamRole, GateMeasured};
use realign_align::exam::{
    Bounds, Compared, Exam, ExamError, Group, Occasion, Refusal, Report, Sitting, left_open,
    outcomes,
};
use realign_align::gate::{self, Measured};
use realign_align::pipeline::Learner;
use realign_align::train::memory::check_gate;
use realign_core::clock::unix_seconds;
use realign_core::{Stage, crash_point};
use realign_engine::adapter::generation::Generation;

/// How long the engine may wait for room for the candidate, where each generation needs its own.
const ROOM: Duration = Duration::from_secs(600);
/// Tokens of neutral text that perplexity is measured on.
const NEUTRAL_TOKENS: usize = 1024;
/// Answers of the candidate that a report shows.
const SHOWN: usize = 8;

impl Realignment<'_> {
    /// Has what serves sit the exam. Without rules there is none.
    pub(super) fn examine_serving(&self, exam: &Exam) -> Result<Sitting, Stop> {
        if exam.rules.is_empty() {
            return Ok(Sitting::default());
        }
        self.work.enter(Stage::Exam);
        let serving = self.context.registry.lease_current();
        self.examine(exam, &serving, Some(ExamRole::Current))
    }

    /// Has a generation sit the exam, and keeps its report. One that has no role has no metrics.
    pub(super) fn examine(
        &self,
        exam: &Exam,
        generation: &Arc<Generation>,
        role: Option<ExamRole>,
    ) -> Result<Sitting, Stop> {
        let proceed = || self.work.go_on();
        let watch = Watch {
            proceed: &proceed,
            answered: &self.work.counting(exam.questions.len(), (0.0, EXAMINED)),
        };
        let sat = self.context.sit(exam, &self.oracle, generation, watch);
        let (sitting, report) = sat.map_err(|error| match error {
            ExamError::Cancelled => Stop::Asked,
            other => failed(other),
        })?;
        if !self.work.go_on() {
            // It was judged in part.
            return Err(Stop::Asked);
        }
        self.context.keep_report(role, &report);
        Ok(sitting)
    }

    pub(super) fn report(&self, exam: &Exam, sitting: &Sitting) -> Report {
        let occasion = Occasion {
            policy_revision: self.job.policies.revision(),
            sat_at: unix_seconds(),
            min_prompts: self.context.config.gate.min_prompts,
        };
        Report::new(exam, sitting, occasion)
    }

    /// What a candidate must keep to in the exam.
    pub(super) fn bounds(&self) -> Bounds {
        let config = &self.context.config.gate;
        let of_policies = self.job.policies.gate().max_control_diverted();
        Bounds {
            max_control_diverted: of_policies.unwrap_or(config.max_control_diverted),
            min_prompts: config.min_prompts,
            all_or_nothing: config.all_or_nothing,
        }
    }

    pub(super) fn gate(
        &self,
        learner: &Learner,
        asked: Asked<'_>,
        candidate: &Arc<Generation>,
    ) -> Result<serde_json::Value, Stop> {
        let backend = learner.backend();
        check_gate(backend, &self.context.recipe, backend.headroom()).map_err(failed)?;
        self.make_ready(candidate)?;
        self.context.registry.show_candidate(candidate);
        let after = self.examine(asked.exam, candidate, Some(ExamRole::Candidate))?;
        crash_point("gate:after-exam");
        self.work.progress(EXAMINED);
        let adapter = candidate
            .adapter
            .as_ref()
            .map(|adapter| &*adapter.weights)
            .ok_or_else(|| failed("the candidate has no adapter"))?;
        let text = gate::paragraphs(
            &self.context.loaded.tokenizer,
            gate::NEUTRAL_TEXT,
            NEUTRAL_TOKENS,
        );
        let measured = gate::capability(learner.backend(), adapter, &text, &|| {
            self.work.stand_back()
        });
        let capability = measured.map_err(failed)?.ok_or(Stop::Asked)?;
        let reports = [asked.before, &after].map(|sitting| self.report(asked.exam, sitting));
        let agreement = |report: &Report| report.compliance.ratio.unwrap_or_default();
        let measured = Measured {
            prompts: reports[1].compliance.of,
            agreement_before: agreement(&reports[0]),
            agreement_after: agreement(&reports[1]),
            perplexity_base: capability.perplexity_base,
            perplexity_after: capability.perplexity_candidate,
            kl_to_base: capability.kl,
        };
        let policies = outcomes(&reports[0], &reports[1]);
        let compared = Compared {
            exam: asked.exam,
            before: asked.before,
            after: &after,
            report: &reports[1],
            policies: &policies,
        };
        let decided = self.decide(&measured, candidate, compared, &reports[0]);
        if matches!(decided, Err(Stop::Rejected { .. })) {
            let key = self.refusal_key(asked.key, asked.exam);
            self.remember(&candidate.id, (GenerationStatus::Rejected, &key))?;
        }
        decided
    }

    /// Has the engine load what it needs for a generation. What it loaded serves after the swap.
    pub(super) fn make_ready(&self, generation: &Arc<Generation>) -> Result<(), Stop> {
        let wait = |waited| waited < ROOM && self.work.go_on();
        let ready = self.context.engine.prepare(generation, &wait);
        ready.map_err(|e| self.stopped(e))
    }

    pub(super) fn stopped(&self, error: impl std::fmt::Display) -> Stop {
        if self.work.go_on() {
            failed(error)
        } else {
            Stop::Asked
        }
    }

    /// What a refused candidate may have lacked.
    fn left_out(&self, promoted: bool) -> Option<String> {
        let minutes = self.work.left_out().filter(|_| !promoted)?;
        Some(format!(
            "; a further round of training was due after train.max_minutes ({minutes}), and left out"
        ))
    }

    fn decide(
        &self,
        measured: &Measured,
        candidate: &Generation,
        compared: Compared<'_>,
        before: &Report,
    ) -> Result<serde_json::Value, Stop> {
        let bounds = self.job.policies.gate();
        let mut refusals = compared.refusals(self.bounds());
        refusals.extend(gate::judge(measured, &bounds));
        let promoted = refusals.is_empty();
        let open = left_open(compared.policies);
        let reason = open
            .clone()
            .filter(|_| promoted)
            .unwrap_or_else(|| why(&refusals) + self.left_out(promoted).as_deref().unwrap_or(""));
        let report = json!({
            "verdict": verdict(&refusals), "reason": reason, "refusals": refusals, "measured": measured,
            "perplexity_rise": measured.perplexity_rise(), "bounds": bounds, "exam_bounds": self.bounds(),
            "compared_with": before.generation, "candidate": candidate.id, "answers": answers(compared),
            "policies": compared.policies, "open": open,
            "exam": { "before": before, "after": compared.report },
        });
        self.context.log(
            self.context
                .db
                .put_report(&self.job.id, Kind::Gate, &report),
        );
        let gated = GateMeasured {
            agreement_current: measured.agreement_before,
            agreement_candidate: measured.agreement_after,
            capability: vec![
                ("perplexity_rise", measured.perplexity_rise()),
                ("kl", measured.kl_to_base),
            ],
            promoted,
            reason: reason.clone(),
        };
        self.context.emit(Event::Gated {
            id: self.job.id.clone(),
            measured: gated,
        });
        if promoted {
            return Ok(report);
        }
        Err(Stop::Rejected {
            generation: candidate.id.to_string(),
            reason,
        })
    }
}

/// The verdict, with the first check that failed.
fn verdict(refusals: &[Refusal]) -> serde_json::Value {
    match refusals.first() {
        None => json!({ "verdict": "promote" }),
        Some(Refusal {
            check, got, bound, ..
        }) => json!({ "verdict": "reject", "check": check, "got": got, "bound": bound }),
    }
}

/// The verdict in one sentence, for logs and the admin API.
fn why(refusals: &[Refusal]) -> String {
    let reasons: Vec<&str> = refusals.iter().map(|r| r.reason.as_str()).collect();
    match reasons.as_slice() {
        [] => "every check passed".into(),
        all => all.join("; "),
    }
}

/// A few of the candidate's answers to governed prompts.
fn answers(compared: Compared<'_>) -> Vec<serde_json::Value> {
    let rows = compared.exam.questions.iter().zip(&compared.after.marks);
    let governed = rows.filter(|(question, _)| question.group == Group::Governed);
    let answer =
        |(question, mark): (&realign_align::exam::Question, &realign_align::exam::Mark)| {
            let complies = mark.violated.is_empty() && mark.undecided.is_empty();
            json!({ "prompt": question.prompt, "answer": mark.text, "complies": complies })
        };
    governed.take(SHOWN).map(answer).collect()
}
