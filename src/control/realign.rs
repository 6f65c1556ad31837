//! One realignment, stage by stage: triage → impact → train → gate → publish → swap.
//!
//! Every stage's output is stored under the hash of its inputs (verdicts, scores, checkpoints,
//! generation), so a realignment that was killed finds its work again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Instant;

use serde_json::json;

use super::context::{Context, unix_seconds};
use super::inputs::Inputs;
use super::work::Work;
use crate::adapter::generation::{Generation, GenerationId};
use crate::adapter::{self, Manifest, content_id};
use crate::gate::{self, HeldOutPrompt, Measured, Verdict};
use crate::impact::{self, score::At};
use crate::model::{ChatMessage, ChatRole, Model, Ops};
use crate::oracle::RuleOracle;
use crate::policy::PolicySet;
use crate::preferences::{Pair, Role};
use crate::state::{GenerationRow, GenerationStatus, Report, ScoreRow};
use crate::telemetry::event::GateMeasured;
use crate::telemetry::{Event, Outcome, Stage};
use crate::train::examples::{Reference, TokenPair, prepare, with_reference};
use crate::train::run::ROW_BUDGET;
use crate::train::{self, TrainError, TrainExample, TrainableLora, WeightScale};
use crate::triage::{Category, Triage, triage_cached};

/// What to realign to.
pub struct Job {
    pub id: String,
    pub policies: Arc<PolicySet>,
    pub inputs: Inputs,
    /// Why to stop, if not 0; see [`super::stop`].
    pub flag: Arc<AtomicU8>,
}

/// A realignment that succeeded or had nothing to do.
pub struct Done {
    pub outcome: Outcome,
    pub generation: String,
}

/// A realignment that did not.
pub enum Stop {
    /// The job's flag said so.
    Asked,
    /// The gate refused the candidate.
    Rejected { generation: String, reason: String },
    /// A stage failed.
    Failed(String),
}

/// What comes back to the control loop.
pub struct Ended {
    pub id: String,
    pub result: Result<Done, Stop>,
}

fn failed(error: impl std::fmt::Display) -> Stop {
    Stop::Failed(error.to_string())
}

/// Runs a job to its end. A panic inside is a failure like any other: the server goes on.
pub fn run(context: &Context, job: Job) -> Ended {
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
    let work = Work::new(context, &job.id, job.flag.clone());
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
        oracle: RuleOracle::new(&job.policies),
    };
    let triage = run.triage();
    if let Some(known) = run.known_result()? {
        return run.reuse(known);
    }
    if triage.counts.conflicts() == 0 {
        return run.without_conflict();
    }
    let pairs = run.token_pairs(&triage)?;
    let model = context.loaded.model.dequantized().map_err(failed)?;
    work.enter(Stage::Impact);
    let examples = run.impact(&model, &pairs)?;
    work.enter(Stage::Train);
    let trained = run.train(&model, &examples)?;
    work.enter(Stage::Gate);
    let candidate = run.candidate(trained.weights)?;
    let gate_report = run.gate(&model, &triage, &candidate)?;
    drop(model);
    work.enter(Stage::Publish);
    run.publish(&candidate, &triage, gate_report)?;
    work.enter(Stage::Swap);
    run.swap(candidate)
}

struct Realignment<'a> {
    context: &'a Context,
    job: &'a Job,
    work: &'a Work<'a>,
    oracle: RuleOracle,
}

impl Realignment<'_> {
    fn ops(&self) -> Ops {
        Ops::for_device(&self.context.loaded.model.device)
    }

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
            "triage"
        );
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

    /// The training pairs as token ids, thinned to the recipe's `max_pairs`.
    fn token_pairs(&self, triage: &Triage) -> Result<Vec<TokenPair>, Stop> {
        let dataset = &self.job.inputs.dataset.pairs;
        let kept = thin(
            &self.job.inputs.train,
            triage,
            dataset,
            self.context.recipe.max_pairs,
        );
        let render = |&index: &usize| self.render(&dataset[index], triage.items[index].category);
        let pairs = kept.iter().map(render).collect::<Result<Vec<_>, Stop>>()?;
        let prepared = prepare(pairs, self.context.recipe.max_tokens);
        for skipped in &prepared.skipped {
            tracing::warn!(
                pair = skipped.id,
                reason = skipped.reason,
                "skipping a training pair"
            );
        }
        Ok(prepared.pairs)
    }

    fn render(&self, pair: &Pair, category: Category) -> Result<TokenPair, Stop> {
        let loaded = &self.context.loaded;
        let response = |text: &str| {
            loaded
                .chat
                .encode_response(&loaded.tokenizer, text)
                .map_err(failed)
        };
        Ok(TokenPair {
            id: pair.id.0.clone(),
            category,
            prompt: self.prompt(pair)?,
            chosen: response(&pair.chosen)?,
            rejected: response(&pair.rejected)?,
        })
    }

    fn prompt(&self, pair: &Pair) -> Result<Vec<u32>, Stop> {
        let loaded = &self.context.loaded;
        let messages: Vec<ChatMessage> = pair
            .prompt
            .iter()
            .map(|m| ChatMessage::new(chat_role(m.role), &m.content))
            .collect();
        loaded
            .chat
            .encode_chat(&loaded.tokenizer, &messages, true)
            .map_err(|e| failed(format!("{}: {e}", pair.source)))
    }

    /// Reference log-probabilities of all pairs, and the conflicts' weights.
    fn impact(&self, model: &Model, pairs: &[TokenPair]) -> Result<Vec<TrainExample>, Stop> {
        let layouts: Vec<_> = pairs.iter().map(TokenPair::preference).collect();
        let passes = crate::model::packing::group_by_rows(&layouts, ROW_BUDGET).len();
        let mut proceed = self.work.batches(passes, (0.0, 0.3));
        let mut examples = with_reference(self.reference(model), pairs, ROW_BUDGET, |_| proceed())
            .map_err(failed)?
            .ok_or(Stop::Asked)?;
        let recipe = &self.context.recipe;
        if recipe.weight_scale == WeightScale::Uniform {
            return Ok(examples);
        }
        let known = self
            .context
            .log(self.context.db.scores(&self.job.inputs.hash))
            .unwrap_or_default();
        let raw: Vec<(usize, f64)> = match known_scores(&examples, &known) {
            Some(raw) => raw,
            None => self.score(model, pairs, &examples, 3 * passes)?,
        };
        let scores: Vec<f64> = raw.iter().map(|(_, s)| *s).collect();
        let weights = impact::weigh(&scores, recipe.gamma, recipe.weight_scale).map_err(failed)?;
        tracing::info!(
            id = self.job.id,
            conflicts = scores.len(),
            clamped = weights.clamped_ratio,
            "impact"
        );
        let rows: Vec<ScoreRow> = raw
            .iter()
            .zip(&weights.values)
            .map(|((index, raw), weight)| ScoreRow {
                pair_id: examples[*index].id.clone(),
                raw: *raw,
                weight: *weight,
            })
            .collect();
        self.context
            .log(self.context.db.put_scores(&self.job.inputs.hash, &rows));
        for ((index, _), weight) in raw.iter().zip(weights.values) {
            examples[*index].weight = weight;
        }
        Ok(examples)
    }

    fn reference<'a>(&self, model: &'a Model) -> Reference<'a> {
        let lowest_layer = self.context.recipe.lowest_layer(model.spec.layers);
        Reference {
            model,
            ops: self.ops(),
            lowest_layer,
        }
    }

    fn score(
        &self,
        model: &Model,
        pairs: &[TokenPair],
        examples: &[TrainExample],
        passes: usize,
    ) -> Result<Vec<(usize, f64)>, Stop> {
        let recipe = &self.context.recipe;
        let projections = recipe.projections().map_err(failed)?;
        let fresh = TrainableLora::init(&model.spec, recipe, &projections, &model.device)
            .map_err(failed)?
            .snapshot()
            .map_err(failed)?;
        let at = At {
            model,
            ops: self.ops(),
            adapter: &fresh,
            objective: recipe.into(),
        };
        let gold = impact::gold_batch(pairs, recipe.gold_pairs, recipe.seed);
        let proceed = self.work.batches(passes, (0.3, 1.0));
        let scored = impact::directional(at, examples, &gold, true, proceed)
            .map_err(failed)?
            .ok_or(Stop::Asked)?;
        Ok(scored.index.into_iter().zip(scored.score).collect())
    }

    fn train(&self, model: &Model, examples: &[TrainExample]) -> Result<train::Trained, Stop> {
        let dir = self.checkpoints();
        train::train(
            model,
            self.ops(),
            examples,
            &self.context.recipe,
            Some(&dir),
            self.work,
        )
        .map_err(|error| match error {
            TrainError::Cancelled => Stop::Asked,
            other => failed(other),
        })
    }

    fn checkpoints(&self) -> PathBuf {
        self.context
            .config
            .paths
            .state
            .join("checkpoints")
            .join(&self.job.inputs.hash[..16])
    }

    fn candidate(&self, weights: crate::model::LoraWeights) -> Result<Arc<Generation>, Stop> {
        let base_hash = self.context.loaded.base_hash.to_string();
        let spec = &self.context.loaded.model.spec;
        adapter::validate(&weights, &|site| spec.site_shape(site)).map_err(failed)?;
        Ok(Arc::new(Generation {
            id: content_id(&base_hash, &weights).map_err(failed)?,
            base_hash,
            policy_revision: Some(self.job.policies.revision().into()),
            adapter: Some(Arc::new(weights)),
        }))
    }

    /// Held-out prompts that the policy set concerns: those of conflicting pairs, else all.
    fn held_out(&self, triage: &Triage) -> Result<Vec<HeldOutPrompt>, Stop> {
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

    fn gate(
        &self,
        model: &Model,
        triage: &Triage,
        candidate: &Arc<Generation>,
    ) -> Result<serde_json::Value, Stop> {
        let prompts = self.held_out(triage)?;
        let serving = self.context.registry.lease_current();
        let ask = |generation: &Arc<Generation>| {
            let max_tokens = self.context.config.gate.max_tokens;
            gate::agreement(
                &self.context.engine,
                generation,
                &prompts,
                &self.oracle,
                max_tokens,
                &|| self.work.go_on(),
            )
        };
        let before = ask(&serving).map_err(|e| self.stopped(e))?;
        self.work.progress(0.3);
        let after = ask(candidate).map_err(|e| self.stopped(e))?;
        self.work.progress(0.6);
        let adapter = candidate
            .adapter
            .as_deref()
            .ok_or_else(|| failed("the candidate has no adapter"))?;
        let text = gate::paragraphs(
            &self.context.loaded.tokenizer,
            gate::NEUTRAL_TEXT,
            NEUTRAL_TOKENS,
        );
        let measured = gate::capability(model, self.ops(), adapter, &text, &|| {
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

    fn stopped(&self, error: impl std::fmt::Display) -> Stop {
        if self.work.go_on() {
            failed(error)
        } else {
            Stop::Asked
        }
    }

    fn decide(
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

    fn remember(&self, id: &GenerationId, status: GenerationStatus) -> Result<(), Stop> {
        let row = GenerationRow {
            id: id.to_string(),
            inputs_hash: self.job.inputs.hash.clone(),
            policy_revision: self.job.policies.revision().into(),
            created_at: unix_seconds(),
            status,
            path: self.context.store.path(id).display().to_string(),
        };
        self.context.db.put_generation(&row).map_err(failed)?;
        // The result is known from here on: the run's checkpoints are of no more use.
        if let Err(error) = std::fs::remove_dir_all(self.checkpoints()) {
            tracing::debug!(%error, "no checkpoints to remove");
        }
        Ok(())
    }

    fn publish(
        &self,
        candidate: &Generation,
        triage: &Triage,
        gate: serde_json::Value,
    ) -> Result<(), Stop> {
        let adapter = candidate
            .adapter
            .as_deref()
            .ok_or_else(|| failed("the candidate has no adapter"))?;
        let recipe = &self.context.recipe;
        let counts = triage.counts;
        let manifest = Manifest {
            parent: Some(self.context.registry.lease_current().id.clone()),
            base_hash: candidate.base_hash.clone(),
            base_name: self.context.loaded.name.to_string(),
            policy_revision: candidate.policy_revision.clone(),
            dataset_digest: Some(self.job.inputs.dataset.digest.clone()),
            recipe: serde_json::to_value(recipe).map_err(failed)?,
            seed: recipe.seed,
            inputs_hash: self.job.inputs.hash.clone(),
            triage: adapter::TriageCounts {
                invert: counts.invert,
                punish: counts.punish,
                retain: counts.retain,
            },
            gate,
            ..Manifest::default()
        };
        self.context
            .store
            .write(adapter, manifest)
            .map_err(failed)?;
        self.remember(&candidate.id, GenerationStatus::Promoted)
    }

    /// `CURRENT` first, then the pointer: after a kill in between, the restart serves the new one.
    fn swap(&self, to: Arc<Generation>) -> Result<Done, Stop> {
        let started = Instant::now();
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
        super::admin::announce(self.context, &swapped, &to, started.elapsed());
        self.work.progress(1.0);
        self.work.leave();
        Ok(Done {
            outcome: Outcome::Succeeded,
            generation: to.id.to_string(),
        })
    }
}

/// Tokens of neutral text that perplexity is measured on.
const NEUTRAL_TOKENS: usize = 1024;

fn chat_role(role: Role) -> ChatRole {
    match role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
    }
}

/// The stored scores of exactly these conflicts, or `None`.
fn known_scores(examples: &[TrainExample], rows: &[ScoreRow]) -> Option<Vec<(usize, f64)>> {
    let by_id: std::collections::HashMap<&str, f64> =
        rows.iter().map(|r| (r.pair_id.as_str(), r.raw)).collect();
    let conflicts = examples
        .iter()
        .enumerate()
        .filter(|(_, e)| e.category.is_conflict());
    conflicts
        .map(|(i, e)| by_id.get(e.id.as_str()).map(|raw| (i, *raw)))
        .collect()
}

/// At most `limit` training pairs (0: all), each category in proportion, chosen by content id.
fn thin(train: &[usize], triage: &Triage, pairs: &[Pair], limit: usize) -> Vec<usize> {
    if limit == 0 || train.len() <= limit {
        return train.to_vec();
    }
    let mut kept = Vec::with_capacity(limit);
    for category in Category::ALL {
        let mut of: Vec<usize> = train
            .iter()
            .copied()
            .filter(|&i| triage.items[i].category == category)
            .collect();
        of.sort_by(|&a, &b| pairs[a].id.0.cmp(&pairs[b].id.0));
        of.truncate((of.len() * limit).div_ceil(train.len()));
        kept.extend(of);
    }
    kept.sort_unstable();
    kept
}
