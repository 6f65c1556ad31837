//! The exam of a server: assembled from the active policies and the data, sat through the serving
//! engine.

use std::sync::Arc;

use super::context::Context;
use realign_align::exam::diversion::likelihood;
use realign_align::exam::{
    Answer, Asked, Exam, ExamError, Examiner, Occasion, Question, Report, Respond, ReviewQuestions,
    Sitting, Subject, Who,
};
use realign_align::oracle::{Oracle, RuleOracle};
use realign_align::pipeline::Failures;
use realign_align::train::examples::TokenPair;
use realign_align::train::memory::check_exam;
use realign_core::clock::unix_seconds;
use realign_core::crash_point;
use realign_engine::adapter::base_id;
use realign_engine::adapter::generation::Generation;
use realign_engine::request::SamplingParams;
use realign_engine::{AskError, EngineHandle, Prompt};

/// What is told while the engine answers.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    /// Whether to go on.
    pub(super) proceed: &'a dyn Fn() -> bool,
    /// Called for each answer.
    pub(super) answered: &'a dyn Fn(),
}

impl Context {
    /// Has a generation sit an exam.
    ///
    /// # Errors
    /// [`ExamError`]; what was answered is remembered. Nothing is asked if there is no room.
    pub(super) fn sit(
        &self,
        exam: &Exam,
        oracle: &RuleOracle,
        generation: &Arc<Generation>,
        watch: Watch<'_>,
    ) -> Result<(Sitting, Arc<Report>), ExamError> {
        let backend = &*self.loaded.backend;
        check_exam(backend, &self.recipe, backend.headroom())
            .map_err(|error| ExamError::NoRoom(error.to_string()))?;
        let engine = self.answers(generation, watch);
        let base = base_id(&self.loaded.base_hash);
        let subject = Subject {
            generation: &generation.id.0,
            base: &base.0,
            adapter: generation.adapter.as_ref().map(|a| &a.staged),
        };
        let sitting = self.examiner(oracle, &engine).sit(exam, &subject)?;
        let occasion = Occasion {
            policy_revision: oracle.revision(),
            sat_at: unix_seconds(),
            min_prompts: self.config.gate.min_prompts,
        };
        let report = Report::new(exam, &sitting, occasion);
        tracing::info!(
            generation = %generation.id,
            prompts = report.prompts,
            remembered = report.remembered,
            seconds = report.took_seconds,
            compliance = report.compliance.ratio,
            diverted = report.controls.all.ratio,
            "exam"
        );
        Ok((sitting, Arc::new(report)))
    }

    /// The base's answers to controls that are trained on, as pairs.
    ///
    /// # Errors
    /// [`ExamError`]; what was answered is remembered.
    pub(super) fn training_pairs(
        &self,
        oracle: &RuleOracle,
        controls: &[Question],
        instead: &[u32],
        watch: Watch<'_>,
    ) -> Result<Vec<TokenPair>, ExamError> {
        let engine = self.answers(self.registry.base(), watch);
        let base = base_id(&self.loaded.base_hash);
        self.examiner(oracle, &engine).training_pairs(
            controls,
            &base.0,
            instead,
            self.recipe.max_tokens,
        )
    }

    /// What a candidate gets wrong between two rounds of training.
    ///
    /// # Errors
    /// [`ExamError`].
    pub(super) fn failures(
        &self,
        (oracle, candidate): (&RuleOracle, &Arc<Generation>),
        questions: ReviewQuestions<'_>,
        watch: Watch<'_>,
    ) -> Result<Failures, ExamError> {
        let engine = self.answers(candidate, watch);
        let base = base_id(&self.loaded.base_hash);
        let subject = Subject {
            generation: &candidate.id.0,
            base: &base.0,
            adapter: candidate.adapter.as_ref().map(|a| &a.staged),
        };
        self.examiner(oracle, &engine).failures(questions, &subject)
    }

    /// The engine, asked for answers of `subject` and the base.
    pub(super) fn answers<'a>(
        &'a self,
        subject: &'a Arc<Generation>,
        watch: Watch<'a>,
    ) -> EngineAnswers<'a> {
        EngineAnswers {
            engine: &self.engine,
            base: self.registry.base(),
            subject,
            proceed: watch.proceed,
            answered: watch.answered,
        }
    }

    fn examiner<'a>(
        &'a self,
        oracle: &'a RuleOracle,
        engine: &'a EngineAnswers<'a>,
    ) -> Examiner<'a> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Examiner {
            loaded: &self.loaded,
            oracle,
            verdicts: self.db.as_ref(),
            cache: self.db.as_ref(),
            engine,
            threads: self.config.engine.threads.unwrap_or(cores),
            max_tokens: self.config.gate.max_tokens,
        }
    }
}

/// An engine, as an exam asks it.
pub struct EngineAnswers<'a> {
    /// The engine.
    pub engine: &'a EngineHandle,
    /// The base model.
    pub base: &'a Arc<Generation>,
    /// The generation that sits the exam.
    pub subject: &'a Arc<Generation>,
    /// Whether to go on.
    pub proceed: &'a dyn Fn() -> bool,
    /// Called for each answer.
    pub answered: &'a dyn Fn(),
}

impl Respond for EngineAnswers<'_> {
    fn respond(
        &self,
        who: Who,
        prompts: &[Asked],
        answered: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), ExamError> {
        let generation = match who {
            Who::Base => self.base,
            Who::Subject => self.subject,
        };
        let prompt = |asked: &Asked| Prompt {
            tokens: asked.prompt.clone(),
            sampling: SamplingParams {
                temperature: asked.temperature,
                seed: asked.seed,
                max_tokens: asked.max_tokens,
                top_logprobs: asked.measured.then_some(0),
                ..SamplingParams::default()
            },
        };
        let prompts: Vec<Prompt> = prompts.iter().map(prompt).collect();
        let mut take = |index, answer: realign_engine::Answered| {
            (self.answered)();
            let own = likelihood(answer.logprobs.iter().copied().map(f64::from));
            let (text, tokens) = (answer.text, answer.tokens);
            answered(index, Answer { text, tokens, own });
        };
        let asked =
            realign_engine::ask_each(self.engine, generation, &prompts, self.proceed, &mut take);
        asked.map_err(|error| match error {
            AskError::Cancelled => ExamError::Cancelled,
            other => ExamError::Engine(other.to_string()),
        })?;
        crash_point("exam:after-answers");
        Ok(())
    }

    fn fits(&self, prompt: usize, answer: usize) -> bool {
        prompt + answer <= self.engine.max_model_len()
    }

    fn proceed(&self) -> bool {
        (self.proceed)()
    }
}
