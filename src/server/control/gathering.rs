//! Gathering in a server: the serving generation answers, the state database remembers.

use std::sync::Arc;

use super::context::Context;
use super::exam::{EngineAnswers, Watch};
use super::realign::{Done, Realignment, Stop, failed};
use realign_align::exam::{self, ASKED_BETWEEN_ROUNDS, Exam, ExamError, Sitting, Standing};
use realign_align::gather::{self, GatherError, Gathered, ModelSpeaker, Phase, Sources};
use realign_align::pipeline::{Corrector, Inputs, Selected, Selection};
use realign_align::policy::PolicySet;
use realign_align::preferences::Pair;
use realign_align::train::Recipe;
use realign_align::train::memory::check_exam;
use realign_align::triage::Triage;
use realign_core::{Category, Stage, crash_point};
use realign_engine::adapter::generation::Generation;

/// Share of the stage that gathering itself takes. Then the base is asked what must stay as it is.
const GATHERED: f64 = 0.75;

impl Context {
    /// What is asked of every generation under these policies. Where gathering is on, the base writes
    /// prompts for rules that have too few; what it wrote is remembered.
    ///
    /// # Errors
    /// [`ExamError`].
    pub(super) fn assemble_exam(
        &self,
        policies: &PolicySet,
        (inputs, triage): (&Inputs, &Triage),
        proceed: &dyn Fn() -> bool,
    ) -> Result<Arc<Exam>, ExamError> {
        let answered = &|| ();
        let live = self.live_prompts();
        let sources = exam::Sources {
            policies,
            pairs: &inputs.dataset.pairs,
            triage,
            holdout: &inputs.holdout,
            live: &live,
        };
        let base = self.registry.base();
        let engine = self.answers(base, Watch { proceed, answered });
        let speaker = self.speaker(&engine, base, &|_, _, _| ());
        let exam = gather::assemble_exam(sources, self.config.exam_settings(), &speaker)?;
        Ok(Arc::new(exam))
    }

    fn speaker<'a>(
        &'a self,
        engine: &'a EngineAnswers<'a>,
        subject: &'a Generation,
        progress: &'a dyn Fn(Phase, usize, usize),
    ) -> ModelSpeaker<'a> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.config.engine.threads.unwrap_or(cores);
        let ids = [&*self.registry.base().id.0, &*subject.id.0];
        ModelSpeaker::new(
            &self.loaded,
            (engine, self.db.as_ref()),
            ids,
            threads,
            progress,
        )
    }
}

impl Realignment<'_> {
    /// What every generation is asked.
    pub(super) fn assemble_exam(&self, triage: &Triage) -> Result<Arc<Exam>, Stop> {
        let (policies, inputs) = (&self.job.policies, &self.job.inputs);
        let proceed = || self.work.go_on();
        let exam = self
            .context
            .assemble_exam(policies, (inputs, triage), &proceed);
        exam.map_err(|error| match error {
            ExamError::Cancelled => Stop::Asked,
            other => failed(other),
        })
    }

    /// Governed prompts that nothing is trained on and no exam asks, for further rounds.
    pub(super) fn further(&self, exam: &Exam) -> Vec<String> {
        let known = self.job.inputs.dataset.pairs.iter();
        let gathered = self.gathered.pairs.iter().map(|gathered| &gathered.pair);
        let known: Vec<&str> = known.chain(gathered).map(Pair::prompt_text).collect();
        gather::further(&self.job.policies, &known, exam, ASKED_BETWEEN_ROUNDS)
    }

    /// Gathers pairs for the rules that what serves misses, or may miss, and that the data has few
    /// pairs for. Nothing if no rule needs any.
    pub(super) fn gather(
        &self,
        exam: &Exam,
        before: &Sitting,
        triage: &Triage,
    ) -> Result<Gathered, Stop> {
        let context = self.context;
        if !context.config.gather.enabled || exam.rules.is_empty() {
            return Ok(Gathered::default());
        }
        let results = self.report(exam, before).rules;
        let standings: Vec<Standing> = results.iter().map(|rule| rule.standing).collect();
        let serving = context.registry.lease_current();
        let inputs = &self.job.inputs;
        let sources = Sources {
            policies: &self.job.policies,
            pairs: &inputs.dataset.pairs,
            triage,
            train: &inputs.train,
            digest: &inputs.dataset.digest,
            exam,
            standings: &standings,
            generation: &serving.id.0,
        };
        let settings = context.config.gather_settings();
        if !gather::is_needed(&sources, settings) {
            return Ok(Gathered::default());
        }
        // Scoring answers takes what an exam's takes.
        let backend = &*context.loaded.backend;
        check_exam(backend, &context.recipe, backend.headroom()).map_err(failed)?;
        self.work.enter(Stage::Gather);
        let proceed = || self.work.go_on();
        let progress = |phase: Phase, done: usize, of: usize| {
            if phase == Phase::Answer {
                crash_point("gather:answering");
            }
            self.work.progress(GATHERED * share(phase, done, of));
        };
        let watch = Watch {
            proceed: &proceed,
            answered: &|| (),
        };
        let engine = context.answers(&serving, watch);
        let speaker = context.speaker(&engine, &serving, &progress);
        let corrector = self.corrector();
        let gathered = gather::gather(
            sources,
            settings,
            &self.oracle,
            &speaker,
            corrector.as_ref(),
        );
        let gathered = gathered.map_err(|error| match error {
            GatherError::Model(ExamError::Cancelled) => Stop::Asked,
            other => failed(other),
        })?;
        self.log_gathered(&gathered);
        Ok(gathered)
    }

    fn log_gathered(&self, gathered: &Gathered) {
        if let Some(report) = &gathered.report {
            tracing::info!(
                id = self.job.id,
                inputs = report.inputs,
                asked = report.answers.asked,
                violating = report.answers.violating,
                "{}",
                report.describe()
            );
        }
    }

    /// The endpoint that writes responses that comply, if one is configured.
    pub(super) fn corrector(&self) -> Option<Corrector<'_>> {
        let spec = self.context.config.train.corrective.as_ref();
        spec.map(|spec| Corrector {
            spec,
            policies: &self.job.policies,
            oracle: &self.oracle,
            cache: self.context.db.clone(),
        })
    }

    /// The recipe for the pairs of the data: gathered ones take up to half of `max_pairs`.
    pub(super) fn recipe_beside_gathered(&self) -> Recipe {
        let recipe = &self.context.recipe;
        let gathered = self.gathered.pairs.len();
        Recipe {
            max_pairs: match recipe.max_pairs {
                0 => 0,
                most => most.saturating_sub(gathered).max(most.div_ceil(2)),
            },
            ..recipe.clone()
        }
    }

    /// The gathered pairs as token ids.
    pub(super) fn select_gathered(&self) -> Result<Selected, Stop> {
        let pairs = self.gathered.pairs.iter();
        let dataset: Vec<_> = pairs
            .clone()
            .map(|gathered| gathered.pair.clone())
            .collect();
        let categories: Vec<Category> = pairs.map(|gathered| gathered.category).collect();
        let train: Vec<usize> = (0..dataset.len()).collect();
        let selection = Selection {
            dataset: &dataset,
            categories: &categories,
            train: &train,
        };
        let selected = selection.select(&self.context.loaded, &self.context.recipe, None);
        selected.map_err(failed)
    }

    /// No pair conflicts, and none was gathered. Without any data that is a failure, unless nothing is asked
    /// or what serves complies.
    pub(super) fn nothing_to_learn(&self, exam: &Exam, before: &Sitting) -> Result<Done, Stop> {
        let has_data = !self.job.inputs.dataset.pairs.is_empty();
        let complies = !exam.rules.is_empty()
            && self.context.config.gather.enabled
            && self.report(exam, before).standing() == Standing::Meets;
        let asks = self.job.policies.policies().iter().any(|p| p.is_enforced());
        if has_data || !asks || complies {
            return self.without_conflict(exam, before);
        }
        // No data is nothing to learn from: what serves keeps serving.
        Err(Stop::Failed(format!(
            "{}: no preference pairs; add *.jsonl files or set paths.preferences{}",
            self.context.config.paths.preferences.display(),
            self.nothing_gathered()
        )))
    }

    /// Why nothing could be gathered, as the end of a sentence; empty if nothing was tried.
    pub(super) fn nothing_gathered(&self) -> String {
        let report = self.gathered.report.as_ref();
        report.map_or_else(String::new, |report| format!("; {}", report.describe()))
    }
}

/// Share of the stage that is done, 0 to 1.
fn share(phase: Phase, done: usize, of: usize) -> f64 {
    let (from, to) = match phase {
        Phase::Write => (0.0, 0.2),
        Phase::Answer => (0.2, 0.6),
        Phase::Tell => (0.6, 0.95),
        Phase::Rank => (0.95, 1.0),
    };
    from + (to - from) * done as f64 / of.max(1) as f64
}
