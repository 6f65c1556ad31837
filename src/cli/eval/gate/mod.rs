//! `realign eval gate`: whether the gate refuses spoiled candidates and lets good ones pass.

mod cases;

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::learning::Learning;
use crate::progress::{Bars, Progress};
use crate::{CliError, DeviceArgs, EXIT_FAILED, EXIT_OK, GlobalArgs, oracle};
use cases::Case;
use realign_align::exam::{
    Bounds, Compared, Exam, Examiner, MemoryExamCache, Occasion, Report, Settings, Sitting,
    Sources, Subject,
};
use realign_align::gate::{self, Measured};
use realign_align::oracle::{MemoryVerdictCache, RuleOracle, prepare_trusted};
use realign_align::pipeline::{Failures, Learner, PipelineError, Review, Run};
use realign_align::policy::PolicySet;
use realign_align::train::examples::TokenPair;
use realign_engine::adapter::base_id;
use realign_engine::adapter::content_id;
use realign_engine::adapter::generation::{Generation, StagedAdapter};
use realign_engine::{EngineConfig, EngineHandle};
use realign_model::LoraWeights;
use realign_server::control::EngineAnswers;

/// Memory of the engine's cache, in bytes.
const KV_BYTES: usize = 128 << 20;
/// Tokens of neutral text that perplexity is measured on.
const NEUTRAL_TOKENS: usize = 1024;

/// Flags of `eval gate`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GateArgs {
    /// Good candidates, each with a seed of its own
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) good: u64,
    /// Only these candidates, by name [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// What computes
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What the gate said about one candidate.
#[derive(Serialize)]
struct Row {
    name: String,
    good: bool,
    promoted: bool,
    right: bool,
    reason: String,
    compliance: Option<f64>,
    diverted: Option<f64>,
    facts: Option<f64>,
    seconds: f64,
}

/// Everything that candidates are made of and measured by.
struct Bench<'a> {
    learning: &'a Learning,
    /// The pairs that a good candidate is trained on.
    data: Vec<TokenPair>,
    set: &'a PolicySet,
    oracle: RuleOracle,
    exam: Exam,
    engine: EngineHandle,
    base: Arc<Generation>,
    answers: MemoryExamCache,
    verdicts: MemoryVerdictCache,
    threads: usize,
}

/// Runs the command and returns the exit code.
///
/// # Errors
/// [`CliError`].
pub(super) fn run(
    args: &GateArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<u8, CliError> {
    let learning = Learning::load(global, None)?;
    let set = PolicySet::load_dir(&learning.config.paths.policies)?;
    let bench = Bench::start(&learning, &set)?;
    let before = bench.sit(&bench.base)?;
    let good = (0..args.good).map(|n| Case::Good(learning.recipe.seed + n));
    let cases = Case::SABOTAGED.into_iter().chain(good);
    let wanted = |case: &Case| args.only.is_empty() || args.only.contains(&case.name());
    let mut all_right = true;
    for case in cases.filter(wanted) {
        let row = bench.judge(case, &before, global)?;
        all_right &= row.right;
        if global.json {
            writeln!(out, "{}", serde_json::to_string(&row)?)?;
        } else {
            let verdict = if row.promoted { "promoted" } else { "refused" };
            let right = if row.right {
                "as it should be"
            } else {
                "WRONG"
            };
            writeln!(
                out,
                "{:<24} {verdict:<9} {right:<16} {:>4.0} s  {}",
                row.name, row.seconds, row.reason
            )?;
        }
        out.flush()?;
    }
    bench.engine.shutdown();
    Ok(if all_right { EXIT_OK } else { EXIT_FAILED })
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Eval(error.to_string())
}

impl<'a> Bench<'a> {
    fn start(learning: &'a Learning, set: &'a PolicySet) -> Result<Self, CliError> {
        let config = &learning.config;
        let prepared = prepare_trusted(set, &oracle::services(config, set)?)?;
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
        let settings = Settings {
            prompts: config.exam.prompts,
            governed: config.gate.max_prompts,
            facts: config.exam.facts,
            min_compliance: config.gate.min_compliance,
        };
        let sources = sources(learning, set);
        let mut bench = Self {
            learning,
            data: learning.selected.pairs.clone(),
            set,
            oracle: prepared.oracle(set),
            exam: Exam::assemble(sources, settings),
            engine: engine.map_err(failed)?,
            base: Arc::new(Generation {
                id: base_id(&loaded.base_hash),
                base_hash: loaded.base_hash.to_string(),
                policy_revision: None,
                adapter: None,
            }),
            answers: MemoryExamCache::default(),
            verdicts: MemoryVerdictCache::default(),
            threads,
        };
        let controls = Exam::training_controls(sources, learning.recipe.controls);
        let instead = bench.data.iter().find(|pair| pair.category.is_conflict());
        let instead = instead
            .map(|pair| pair.rejected.clone())
            .unwrap_or_default();
        let kept = bench.with_examiner(&bench.base, |examiner| {
            let longest = learning.recipe.max_tokens;
            examiner.training_pairs(&controls, &bench.base.id.0, &instead, longest)
        });
        let kept = kept.map_err(failed)?;
        bench.data.extend(kept);
        Ok(bench)
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

    fn sit(&self, generation: &Arc<Generation>) -> Result<Sitting, CliError> {
        let subject = Subject {
            generation: &generation.id.0,
            base: &self.base.id.0,
            adapter: generation.adapter.as_ref().map(|a| &a.staged),
        };
        let sat = self.with_examiner(generation, |examiner| examiner.sit(&self.exam, &subject));
        sat.map_err(failed)
    }

    fn report(&self, sitting: &Sitting) -> Report {
        let occasion = Occasion {
            policy_revision: self.set.revision(),
            sat_at: 0,
            min_prompts: self.learning.config.gate.min_prompts,
        };
        Report::new(&self.exam, sitting, occasion)
    }

    /// Makes a candidate and has the gate judge it.
    fn judge(&self, case: Case, before: &Sitting, global: &GlobalArgs) -> Result<Row, CliError> {
        let started = Instant::now();
        let recipe = case.recipe(&self.learning.recipe);
        let pairs = case.pairs(self)?;
        let learner = Learner::new(&self.learning.loaded);
        let bars = Bars::new(Progress::new(global), &self.learning.config.train);
        let run = Run {
            pairs: &pairs,
            recipe: &recipe,
            weights: None,
        };
        let row = |promoted: bool, reason: String, report: Option<&Report>| Row {
            name: case.name(),
            good: case.is_good(),
            promoted,
            right: promoted == case.is_good(),
            reason,
            compliance: report.and_then(|r| r.compliance.ratio),
            diverted: report.and_then(|r| r.controls.all.ratio),
            facts: report.and_then(|r| r.facts.ratio),
            seconds: started.elapsed().as_secs_f64(),
        };
        // Spoiled candidates are not to be mended.
        let trained = if case.is_good() {
            learner
                .run_rounds(&run, self, &bars)
                .map(|(candidate, rounds)| {
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
                    candidate
                })
        } else {
            learner.run(&run, &bars)
        };
        let trained = match trained {
            Ok(candidate) => candidate.trained,
            // A run that ends by itself makes no candidate: that is refused as well.
            Err(PipelineError::Train(error)) => return Ok(row(false, error.to_string(), None)),
            Err(error) => return Err(error.into()),
        };
        bars.clear();
        let (reasons, report) = self.refusals(trained.weights, before, &learner)?;
        let promoted = reasons.is_empty();
        let reason = if promoted {
            "every check passed".into()
        } else {
            reasons.join("; ")
        };
        Ok(row(promoted, reason, Some(&report)))
    }

    fn stage(&self, weights: LoraWeights) -> Result<Arc<Generation>, CliError> {
        let loaded = &self.learning.loaded;
        let base_hash = loaded.base_hash.to_string();
        Ok(Arc::new(Generation {
            id: content_id(&base_hash, &weights)?,
            base_hash,
            policy_revision: Some(self.set.revision().into()),
            adapter: Some(StagedAdapter::new(&*loaded.backend, weights).map_err(failed)?),
        }))
    }

    fn refusals(
        &self,
        weights: LoraWeights,
        before: &Sitting,
        learner: &Learner,
    ) -> Result<(Vec<String>, Report), CliError> {
        let loaded = &self.learning.loaded;
        let text = gate::paragraphs(&loaded.tokenizer, gate::NEUTRAL_TEXT, NEUTRAL_TOKENS);
        let capability = gate::capability(learner.backend(), &weights, &text, &|| true);
        let Some(capability) = capability.map_err(failed)? else {
            return Err(CliError::Eval("the measurement stopped".into()));
        };
        let candidate = self.stage(weights)?;
        let after = self.sit(&candidate)?;
        let (of_before, report) = (self.report(before), self.report(&after));
        let compared = Compared {
            exam: &self.exam,
            before,
            after: &after,
            report: &report,
        };
        let config = &self.learning.config.gate;
        let bounds = self.set.gate();
        let exam_bounds = Bounds {
            max_control_diverted: bounds
                .max_control_diverted()
                .unwrap_or(config.max_control_diverted),
            min_prompts: config.min_prompts,
        };
        let measured = Measured {
            prompts: report.compliance.of,
            agreement_before: of_before.compliance.ratio.unwrap_or_default(),
            agreement_after: report.compliance.ratio.unwrap_or_default(),
            perplexity_base: capability.perplexity_base,
            perplexity_after: capability.perplexity_candidate,
            kl_to_base: capability.kl,
        };
        let mut refusals = compared.refusals(exam_bounds);
        refusals.extend(gate::judge(&measured, &bounds));
        Ok((refusals.into_iter().map(|r| r.reason).collect(), report))
    }
}

fn sources<'a>(learning: &'a Learning, set: &'a PolicySet) -> Sources<'a> {
    Sources {
        policies: set,
        pairs: &learning.inputs.dataset.pairs,
        triage: &learning.triage,
        holdout: &learning.inputs.holdout,
        live: &[],
    }
}

impl Review for Bench<'_> {
    fn review(
        &self,
        weights: &LoraWeights,
        pairs: &[TokenPair],
    ) -> Result<Failures, PipelineError> {
        let failed = |error: &dyn std::fmt::Display| PipelineError::Review(error.to_string());
        let candidate = self.stage(weights.clone()).map_err(|e| failed(&e))?;
        let dataset = self.learning.inputs.dataset.pairs.iter();
        let prompts: HashMap<&str, &str> = dataset
            .map(|pair| (pair.id.0.as_str(), pair.prompt_text()))
            .collect();
        let subject = Subject {
            generation: &candidate.id.0,
            base: &self.base.id.0,
            adapter: candidate.adapter.as_ref().map(|a| &a.staged),
        };
        self.with_examiner(&candidate, |examiner| {
            examiner.failures(pairs, &prompts, &subject)
        })
        .map_err(|e| failed(&e))
    }
}
