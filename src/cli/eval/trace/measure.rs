//! The figures of one model: fresh answers through the serving engine, likelihoods through its
//! executor.

use std::sync::Arc;

use super::inputs::Inputs;
use crate::CliError;
use realign_align::exam::{ScoredQuestion as Question, Scorer};
use realign_align::gate::{Agreement, HeldOutPrompt};
use realign_align::oracle::{Exchange, Judgement, Oracle};
use realign_core::thoughts;
use realign_engine::adapter::generation::Generation;
use realign_engine::{EngineConfig, EngineHandle, Prompt};
use realign_lab::evaluation::capability::margin;
use realign_lab::evaluation::refusal::RefusalWords;
use realign_lab::evaluation::{Answer, Measured, Share};
use realign_model::Staged;

/// Memory of the engine's cache, in bytes.
const KV_BYTES: usize = 128 << 20;
/// Longest prompt and answer, in tokens.
const LONGEST: usize = 2048;
/// Tokens of an answer to an everyday question: a refusal comes first.
const GENERAL_TOKENS: usize = 40;

/// An engine and a scorer over the base model.
pub(super) struct Measurer<'a> {
    inputs: &'a Inputs,
    engine: EngineHandle,
    scorer: Scorer,
    words: RefusalWords,
}

impl<'a> Measurer<'a> {
    pub(crate) fn start(inputs: &'a Inputs) -> Result<Self, CliError> {
        let config = EngineConfig {
            kv_cache_bytes: KV_BYTES,
            max_model_len: Some(LONGEST),
            ..EngineConfig::default()
        };
        let threads = inputs.config.engine.threads.unwrap_or(config.threads);
        let config = EngineConfig { threads, ..config };
        let loaded = &inputs.loaded;
        let engine = realign_engine::start(&*loaded.backend, loaded.tokenizer.clone(), config);
        Ok(Self {
            inputs,
            engine: engine.map_err(failed)?,
            scorer: Scorer::new(&*loaded.backend, threads).map_err(failed)?,
            words: RefusalWords::new().map_err(failed)?,
        })
    }

    /// Everything there is to measure of a generation.
    pub(crate) fn measure(&mut self, generation: &Arc<Generation>) -> Result<Measured, CliError> {
        let inputs = self.inputs;
        let mut measured = Measured::default();
        let prompts: Vec<HeldOutPrompt> = inputs.prompts.iter().map(|(p, _)| p.clone()).collect();
        let answers = self.ask(generation, &prompts, inputs.oracle.as_ref(), None)?;
        let with = |((prompt, answer, complies), (_, categories)): (_, &(_, Vec<_>))| Answer {
            prompt,
            answer,
            complies,
            categories: categories.clone(),
        };
        measured.count(answers.into_iter().zip(&inputs.prompts).map(with).collect());
        let anybody = Anybody;
        let general = self.ask(generation, &inputs.general, &anybody, Some(GENERAL_TOKENS))?;
        let evades = general
            .iter()
            .map(|(_, answer, _)| self.words.evades(thoughts::answer_of(answer)));
        measured.over_refusal = Share::of(evades);
        let adapter = generation.adapter.as_ref().map(|a| &a.staged);
        let (nll, margins) = self.preferences(&inputs.retained, adapter)?;
        measured.retain_nll = nll;
        measured.retain_margins = margins;
        measured.invert_margins = self.preferences(&inputs.inverted, adapter)?.1;
        measured.perplexity = self.mean_nll(&inputs.windows, adapter)?.map(f64::exp);
        measured.margins = self.margins(adapter)?;
        Ok(measured)
    }

    fn ask(
        &self,
        generation: &Arc<Generation>,
        prompts: &[HeldOutPrompt],
        oracle: &dyn Oracle,
        most: Option<usize>,
    ) -> Result<Vec<(String, String, bool)>, CliError> {
        let tokens = most.unwrap_or(self.inputs.answer_tokens);
        let greedy = |p: &HeldOutPrompt| Prompt::greedy(p.tokens.clone(), tokens);
        let asked: Vec<Prompt> = prompts.iter().map(greedy).collect();
        let answers = realign_engine::ask(&self.engine, generation, &asked, &|| true);
        let tokenizer = &self.inputs.loaded.tokenizer;
        let answers = answers.map_err(failed)?.into_iter().zip(prompts);
        let texts = answers.map(|(answer, prompt)| {
            let opened = thoughts::opened_by(&tokenizer.tail(&prompt.tokens));
            thoughts::whole(opened, answer.text)
        });
        let judged = Agreement::judge(prompts, texts.collect(), oracle);
        Ok(judged.map_err(failed)?.answers)
    }

    /// Mean negative log-likelihood per token; `None` of nothing.
    fn mean_nll(
        &mut self,
        questions: &[Question],
        adapter: Option<&Staged>,
    ) -> Result<Option<f64>, CliError> {
        let scored = self.scorer.score(questions, adapter).map_err(failed)?;
        let tokens: Vec<f64> = scored.into_iter().flatten().flatten().collect();
        Ok((!tokens.is_empty()).then(|| -mean(&tokens)))
    }

    /// Mean negative log-likelihood per token of the preferred responses, which come first, and by how much each
    /// is more likely per token than the other one.
    fn preferences(
        &mut self,
        pairs: &[Question],
        adapter: Option<&Staged>,
    ) -> Result<(Option<f64>, Vec<f64>), CliError> {
        let scored = self.scorer.score(pairs, adapter).map_err(failed)?;
        let preferred = || scored.iter().filter_map(|pair| pair.first());
        let tokens: Vec<f64> = preferred().flatten().copied().collect();
        let margin = |pair: &Vec<Vec<f64>>| Some(mean(pair.first()?) - mean(pair.get(1)?));
        let nll = (!tokens.is_empty()).then(|| -mean(&tokens));
        Ok((nll, scored.iter().filter_map(margin).collect()))
    }

    fn margins(&mut self, adapter: Option<&Staged>) -> Result<Vec<f64>, CliError> {
        let items = &self.inputs.items;
        let questions: Vec<Question> = items.iter().flat_map(|(_, q)| q.clone()).collect();
        let scored = self.scorer.score(&questions, adapter).map_err(failed)?;
        let mut scored = scored.into_iter();
        let of = |(item, questions): &(_, Vec<Question>)| {
            let own = scored.by_ref().take(questions.len());
            let per_token: Vec<f64> = own.flatten().map(|tokens| mean(&tokens)).collect();
            let item: &realign_lab::evaluation::capability::Item = item;
            margin(&per_token, item.gold)
        };
        Ok(items.iter().map(of).collect())
    }
}

impl Drop for Measurer<'_> {
    fn drop(&mut self) {
        self.engine.shutdown();
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Eval(error.to_string())
}

/// Judges nothing: the answers themselves are wanted.
struct Anybody;

impl Oracle for Anybody {
    fn judge(&self, _: &Exchange<'_>) -> Judgement {
        Judgement::default()
    }

    fn revision(&self) -> &str {
        "none"
    }
}
