//! The gate of a realignment: what serves and the candidate answer the same held-out prompts.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::realign::{Realignment, Stop, failed};
use crate::state::{GenerationStatus, Report};
use crate::telemetry::Event;
use crate::telemetry::event::GateMeasured;
use realign_align::gate::{self, Agreement, HeldOutPrompt, Measured, Verdict};
use realign_align::pipeline::Learner;
use realign_align::triage::Triage;
use realign_engine::adapter::generation::{Generation, GenerationId};

/// How long the engine may wait for room for the candidate, where each generation needs its own.
const ROOM: Duration = Duration::from_secs(600);
/// Tokens of neutral text that perplexity is measured on.
const NEUTRAL_TOKENS: usize = 1024;

impl Realignment<'_> {
    /// Held-out prompts that the policy set concerns: those of conflicting pairs, else all.
    pub(super) fn held_out(&self, triage: &Triage) -> Result<Vec<HeldOutPrompt>, Stop> {
        let dataset = &self.job.inputs.dataset.pairs;
        let holdout = &self.job.inputs.holdout;
        let conflicts: Vec<usize> = holdout
            .iter()
            .copied()
            .filter(|&i| triage.items[i].category.is_conflict())
            .collect();
        let chosen = if conflicts.is_empty() {
            holdout.clone()
        } else {
            conflicts
        };
        let limit = self.context.config.gate.max_prompts;
        let prompt = |&i: &usize| {
            Ok(HeldOutPrompt {
                text: dataset[i].prompt_text().into(),
                tokens: self.prompt(&dataset[i])?,
            })
        };
        chosen.iter().take(limit).map(prompt).collect()
    }

    pub(super) fn gate(
        &self,
        learner: &Learner,
        triage: &Triage,
        candidate: &Arc<Generation>,
    ) -> Result<serde_json::Value, Stop> {
        let prompts = self.held_out(triage)?;
        let serving = self.context.registry.lease_current();
        let ask = |generation: &Arc<Generation>| self.agreement(generation, &prompts);
        let before = ask(&serving)?;
        self.work.progress(0.3);
        self.make_ready(candidate)?;
        let after = ask(candidate)?;
        self.work.progress(0.6);
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
        let measured = Measured {
            prompts: prompts.len(),
            agreement_before: before.ratio,
            agreement_after: after.ratio,
            perplexity_base: capability.perplexity_base,
            perplexity_after: capability.perplexity_candidate,
            kl_to_base: capability.kl,
        };
        self.decide(&measured, candidate, &serving.id, &after)
    }

    /// What a generation answers to the prompts, through the serving engine, judged by the oracle.
    fn agreement(
        &self,
        generation: &Arc<Generation>,
        prompts: &[HeldOutPrompt],
    ) -> Result<Agreement, Stop> {
        let tokens: Vec<Vec<u32>> = prompts.iter().map(|p| p.tokens.clone()).collect();
        let answers = realign_engine::ask(
            &self.context.engine,
            generation,
            &tokens,
            self.context.config.gate.max_tokens,
            &|| self.work.go_on(),
        );
        let answers = answers.map_err(|e| self.stopped(e))?;
        Agreement::judge(prompts, answers, &self.oracle).map_err(|e| self.stopped(e))
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

    pub(super) fn decide(
        &self,
        measured: &Measured,
        candidate: &Generation,
        serving: &GenerationId,
        after: &gate::Agreement,
    ) -> Result<serde_json::Value, Stop> {
        let bounds = self.job.policies.gate();
        let verdict = gate::judge(measured, &bounds);
        let examples: Vec<_> = after
            .answers
            .iter()
            .take(8)
            .map(|(p, a, ok)| json!({ "prompt": p, "answer": a, "complies": ok }))
            .collect();
        let report = json!({
            "verdict": verdict, "reason": verdict.reason(), "measured": measured, "perplexity_rise": measured.perplexity_rise(),
            "bounds": bounds, "compared_with": serving, "candidate": candidate.id, "answers": examples,
        });
        self.context.log(
            self.context
                .db
                .put_report(&self.job.id, Report::Gate, &report),
        );
        let promoted = verdict == Verdict::Promote;
        let gated = GateMeasured {
            agreement_current: measured.agreement_before,
            agreement_candidate: measured.agreement_after,
            capability: vec![
                ("perplexity_rise", measured.perplexity_rise()),
                ("kl", measured.kl_to_base),
            ],
            promoted,
            reason: verdict.reason(),
        };
        self.context.emit(Event::Gated {
            id: self.job.id.clone(),
            measured: gated,
        });
        if promoted {
            return Ok(report);
        }
        self.remember(&candidate.id, GenerationStatus::Rejected)?;
        Err(Stop::Rejected {
            generation: candidate.id.to_string(),
            reason: verdict.reason(),
        })
    }
}
