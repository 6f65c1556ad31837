//! Trains candidates as a server does and has them answer, in this process: what `eval gate` and
//! `eval bench` have in common.

use std::collections::HashMap;
use std::sync::Arc;

use crate::learning::Learning;
use crate::progress::{Bars, Progress};
use crate::{CliError, GlobalArgs, oracle};
use realign_align::exam::{
    ASKED_BETWEEN_ROUNDS, Exam, Examiner, MemoryExamCache, ReviewQuestions, Settings, Sitting,
    Sources, Subject,
};
use realign_align::gather::further;
use realign_align::oracle::{MemoryVerdictCache, RuleOracle, prepare_trusted};
use realign_align::pipeline::{Candidate, Failures, Learner, PipelineError, Review, Run};
use realign_align::policy::PolicySet;
use realign_align::preferences::Pair;
use realign_align::train::Trained;
use realign_align::train::examples::TokenPair;
use realign_core::Category;
use realign_engine::adapter::base_id;
use realign_engine::adapter::content_id;
use realign_engine::adapter::generation::{Generation, StagedAdapter};
use realign_engine::{EngineConfig, EngineHandle};
use realign_model::LoraWeights;
use realign_server::control::EngineAnswers;

/// Memory of the engine's cache, in bytes.
const KV_BYTES: usize = 128 << 20;

/// Everything that candidates are made of and asked by.
pub(crate) struct Workbench<'a> {
    pub(super) learning: &'a Learning,
    /// What a server would train on, its controls included.
    pub(super) data: Vec<TokenPair>,
    /// Governed prompts that candidates are asked between rounds besides those that are trained on.
    pub(super) further: Vec<String>,
    pub(super) set: &'a PolicySet,
    pub(crate) base: Arc<Generation>,
    oracle: RuleOracle,
    engine: EngineHandle,
    answers: MemoryExamCache,
    verdicts: MemoryVerdictCache,
    threads: usize,
}

pub(super) fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Eval(error.to_string())
}

impl<'a> Workbench<'a> {
    /// Starts an engine and has the base answer the controls that are trained on.
    pub(super) fn start(learning: &'a Learning, set: &'a PolicySet) -> Result<Self, CliError> {
        let prepared = prepare_trusted(set, &oracle::services(&learning.config, set)?)?;
        let mut bench = Self::without_controls(learning, set, prepared.oracle(set))?;
        let controls = bench.controls()?;
        bench.data.extend(controls);
        let known = learning.inputs.dataset.pairs.iter();
        let known: Vec<&str> = known.map(Pair::prompt_text).collect();
        bench.further = further(set, &known, &bench.exam(), ASKED_BETWEEN_ROUNDS);
        Ok(bench)
    }

    /// Starts an engine.
    pub(crate) fn without_controls(
        learning: &'a Learning,
        set: &'a PolicySet,
        oracle: RuleOracle,
    ) -> Result<Self, CliError> {
        let config = &learning.config;
        let defaults = EngineConfig {
            kv_cache_bytes: KV_BYTES,
            ..EngineConfig::default()
        };
        let threads = config.engine.threads.unwrap_or(defaults.threads);
        let loaded = &learning.loaded;
        let engine = realign_engine::start(
            &*loaded.backend,
            loaded.tokenizer.clone(),
            EngineConfig {
                threads,
                ..defaults
            },
        );
        Ok(Self {
            learning,
            data: learning.selected.pairs.clone(),
            further: Vec::new(),
            set,
            base: Arc::new(Generation {
                id: base_id(&loaded.base_hash),
                base_hash: loaded.base_hash.to_string(),
                policy_revision: None,
                adapter: None,
            }),
            oracle,
            engine: engine.map_err(failed)?,
            answers: MemoryExamCache::default(),
            verdicts: MemoryVerdictCache::default(),
            threads,
        })
    }

    /// The base's own answers to prompts that no rule is about, as pairs that keep them.
    fn controls(&self) -> Result<Vec<TokenPair>, CliError> {
        let recipe = &self.learning.recipe;
        let preferred = self.data.iter().find_map(|pair| match pair.category {
            Category::Invert => Some(&pair.rejected),
            Category::Punish => Some(&pair.chosen),
            Category::Retain => None,
        });
        let Some(instead) = preferred.filter(|_| recipe.controls > 0) else {
            return Ok(Vec::new());
        };
        let asked = Exam::training_controls(self.sources(), recipe.controls);
        let kept = self.with_examiner(&self.base, |examiner| {
            examiner.training_pairs(&asked, &self.base.id.0, instead, recipe.max_tokens)
        });
        kept.map_err(failed)
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            policies: self.set,
            pairs: &self.learning.inputs.dataset.pairs,
            triage: &self.learning.triage,
            holdout: &self.learning.inputs.holdout,
            live: &[],
        }
    }

    /// The exam that a server would sit.
    pub(crate) fn exam(&self) -> Exam {
        let config = &self.learning.config;
        let settings = Settings {
            prompts: config.exam.prompts,
            governed: config.gate.max_prompts,
            facts: config.exam.facts,
            min_compliance: config.gate.min_compliance,
            // Nothing is gathered here.
            spare: None,
        };
        Exam::assemble(self.sources(), settings)
    }

    fn with_examiner<T>(
        &self,
        subject: &Arc<Generation>,
        act: impl FnOnce(&Examiner<'_>) -> T,
    ) -> T {
        let engine = EngineAnswers {
            engine: &self.engine,
            base: &self.base,
            subject,
            proceed: &|| true,
            answered: &|| (),
        };
        act(&Examiner {
            loaded: &self.learning.loaded,
            oracle: &self.oracle,
            verdicts: &self.verdicts,
            cache: &self.answers,
            engine: &engine,
            threads: self.threads,
            max_tokens: self.learning.config.gate.max_tokens,
        })
    }

    /// Has a generation answer an exam. The base's answers are remembered.
    pub(crate) fn sit(
        &self,
        exam: &Exam,
        generation: &Arc<Generation>,
    ) -> Result<Sitting, CliError> {
        let subject = self.subject(generation);
        let sat = self.with_examiner(generation, |examiner| examiner.sit(exam, &subject));
        sat.map_err(failed)
    }

    fn subject<'b>(&'b self, generation: &'b Generation) -> Subject<'b> {
        Subject {
            generation: &generation.id.0,
            base: &self.base.id.0,
            adapter: generation.adapter.as_ref().map(|a| &a.staged),
        }
    }

    /// Trains, with further rounds for what the candidate gets wrong, as a server does.
    pub(super) fn learn(
        &self,
        run: &Run<'_>,
        global: &GlobalArgs,
    ) -> Result<Trained, PipelineError> {
        self.with_learner(global, |learner, bars| {
            let (candidate, rounds) = learner.run_rounds(run, self, bars)?;
            for (round, wrong) in rounds.iter().enumerate() {
                tracing::info!(
                    round = round + 1,
                    controls = wrong.controls.0,
                    diverted = wrong.controls.1,
                    governed = wrong.governed.0,
                    violating = wrong.governed.1,
                    "what the candidate gets wrong of what it was trained on"
                );
            }
            Ok(candidate)
        })
    }

    /// Trains one round only.
    pub(super) fn learn_once(
        &self,
        run: &Run<'_>,
        global: &GlobalArgs,
    ) -> Result<Trained, PipelineError> {
        self.with_learner(global, |learner, bars| learner.run(run, bars))
    }

    fn with_learner(
        &self,
        global: &GlobalArgs,
        act: impl FnOnce(&Learner, &Bars<'_>) -> Result<Candidate, PipelineError>,
    ) -> Result<Trained, PipelineError> {
        let learner = Learner::new(&self.learning.loaded);
        let bars = Bars::new(Progress::new(global), &self.learning.config.train);
        let candidate = act(&learner, &bars);
        bars.clear();
        Ok(candidate?.trained)
    }

    /// An adapter as a generation that can answer.
    pub(super) fn stage(&self, weights: LoraWeights) -> Result<Arc<Generation>, CliError> {
        let loaded = &self.learning.loaded;
        let base_hash = loaded.base_hash.to_string();
        Ok(Arc::new(Generation {
            id: content_id(&base_hash, &weights)?,
            base_hash,
            policy_revision: Some(self.set.revision().into()),
            adapter: Some(StagedAdapter::new(&*loaded.backend, weights).map_err(failed)?),
        }))
    }

    /// Ends the engine.
    pub(crate) fn shutdown(&self) {
        self.engine.shutdown();
    }
}

impl Review for Workbench<'_> {
    fn review(
        &self,
        weights: &LoraWeights,
        pairs: &[TokenPair],
        limit: f64,
    ) -> Result<Failures, PipelineError> {
        let failed = |error: &dyn std::fmt::Display| PipelineError::Review(error.to_string());
        let candidate = self.stage(weights.clone()).map_err(|e| failed(&e))?;
        let dataset = self.learning.inputs.dataset.pairs.iter();
        let prompts: HashMap<&str, &str> = dataset
            .map(|pair| (pair.id.0.as_str(), pair.prompt_text()))
            .collect();
        let subject = self.subject(&candidate);
        self.with_examiner(&candidate, |examiner| {
            let questions = ReviewQuestions {
                pairs,
                prompts: &prompts,
                further: &self.further,
                limit,
            };
            examiner.failures(questions, &subject)
        })
        .map_err(|e| failed(&e))
    }
}
