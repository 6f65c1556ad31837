//! A loaded model as a speaker: prompts are rendered, answers remembered, likelihoods computed.

use std::cell::{Cell, RefCell};

use super::speaker::{Ask, Phase, Put, Said, Speaker};
use crate::exam::diversion::{Likelihoods, Spoken};
use crate::exam::respond::{Asking, key, remembered};
use crate::exam::{Asked, ExamCache, ExamError, Respond, Who};
use crate::pipeline::Renderer;
use crate::preferences::Message;
use realign_model::LoadedModel;

/// Answers that are scored between two looks at whether to go on.
const SCORED_AT_ONCE: usize = 16;
/// Longest prompt whose answers are scored, in tokens: what the likelihoods' cache holds twice.
const LONGEST_PROMPT: usize = 2048;

/// A model whose answers come from an engine.
pub struct ModelSpeaker<'a> {
    /// The model.
    loaded: &'a LoadedModel,
    /// Answers.
    engine: &'a dyn Respond,
    /// Answers and likelihoods of earlier times.
    cache: &'a dyn ExamCache,
    /// Ids of the base and of the generation that serves.
    ids: [&'a str; 2],
    threads: usize,
    /// Called with the phase, the answers that were drawn in it, and those that it takes.
    progress: &'a dyn Fn(Phase, usize, usize),
    phase: Cell<(Phase, usize, usize)>,
    likelihoods: RefCell<Option<Likelihoods>>,
}

impl<'a> ModelSpeaker<'a> {
    /// A speaker for the base with the first id and the serving generation with the second. Likelihoods
    /// are computed by `threads` threads.
    pub fn new(
        loaded: &'a LoadedModel,
        (engine, cache): (&'a dyn Respond, &'a dyn ExamCache),
        ids: [&'a str; 2],
        threads: usize,
        progress: &'a dyn Fn(Phase, usize, usize),
    ) -> Self {
        Self {
            loaded,
            engine,
            cache,
            ids,
            threads,
            progress,
            phase: Cell::new((Phase::Write, 0, 0)),
            likelihoods: RefCell::default(),
        }
    }

    fn advance(&self, answers: usize) {
        let (phase, done, of) = self.phase.get();
        self.phase.set((phase, done + answers, of));
        (self.progress)(phase, done + answers, of);
    }

    /// Tokens of a prompt; none where it cannot be put.
    fn render(&self, put: &Put) -> Vec<u32> {
        let renderer = Renderer::new(self.loaded);
        match put {
            Put::Completion(text) => self
                .loaded
                .tokenizer
                .encode_prompt(text)
                .unwrap_or_default(),
            Put::Chat(messages) => renderer.conversation(messages).unwrap_or_default(),
        }
    }

    fn score(&self, spoken: &[Spoken]) -> Result<Vec<Option<f64>>, ExamError> {
        if !self.engine.proceed() {
            return Err(ExamError::Cancelled);
        }
        let mut scorer = self.likelihoods.borrow_mut();
        if scorer.is_none() {
            *scorer = Some(Likelihoods::new(&*self.loaded.backend, self.threads)?);
        }
        let Some(scorer) = scorer.as_mut() else {
            return Ok(vec![None; spoken.len()]);
        };
        Ok(scorer.of(spoken)?)
    }
}

impl Speaker for ModelSpeaker<'_> {
    fn speak(&self, who: Who, asks: &[Ask]) -> Result<Vec<Said>, ExamError> {
        let asked = asks.iter().enumerate().map(|(i, ask)| {
            let asked = Asked {
                prompt: self.render(&ask.put),
                temperature: ask.temperature,
                seed: ask.seed,
                max_tokens: ask.max_tokens,
                measured: false,
            };
            (i, asked)
        });
        let fits = |(_, asked): &(usize, Asked)| {
            !asked.prompt.is_empty() && self.engine.fits(asked.prompt.len(), asked.max_tokens)
        };
        let (indices, asked): (Vec<usize>, Vec<Asked>) = asked.filter(fits).unzip();
        let [base, subject] = self.ids;
        let asking = Asking {
            engine: self.engine,
            cache: self.cache,
            who,
            id: match who {
                Who::Base => base,
                Who::Subject => subject,
            },
            tokenizer: &self.loaded.tokenizer,
        };
        let (answers, remembered) = asking.ask(&asked, &|| self.advance(1))?;
        self.advance(remembered + asks.len() - asked.len());
        let mut all = vec![Said::default(); asks.len()];
        for (i, answer) in indices.into_iter().zip(answers) {
            all[i] = Said {
                ended: answer.tokens.len() < asks[i].max_tokens,
                text: answer.text,
            };
        }
        Ok(all)
    }

    fn fluency(&self, answers: &[(Vec<Message>, String)]) -> Result<Vec<Option<f64>>, ExamError> {
        let spoken = answers.iter().enumerate().map(|(i, (messages, text))| {
            let spoken = Spoken {
                prompt: self.render(&Put::Chat(messages.clone())),
                answer: self.loaded.said(text),
            };
            (i, spoken)
        });
        let fits = |(_, one): &(usize, Spoken)| (1..=LONGEST_PROMPT).contains(&one.prompt.len());
        let (indices, spoken): (Vec<usize>, Vec<Spoken>) = spoken.filter(fits).unzip();
        let keys: Vec<[u8; 32]> = spoken
            .iter()
            .map(|one| {
                let answer = hex::encode(key(&["tokens"], &one.answer));
                key(&["fluency", self.ids[0], &answer], &one.prompt)
            })
            .collect();
        let (scored, known) = remembered(self.cache, &keys, SCORED_AT_ONCE, |part| {
            let part: Vec<Spoken> = part.iter().map(|&i| spoken[i].clone()).collect();
            let scored = self.score(&part);
            self.advance(part.len());
            scored
        })?;
        self.advance(known);
        let mut all = vec![None; answers.len()];
        for (i, value) in indices.into_iter().zip(scored) {
            all[i] = value;
        }
        Ok(all)
    }

    fn enter(&self, phase: Phase, answers: usize) {
        self.phase.set((phase, 0, answers));
        (self.progress)(phase, 0, answers);
    }
}
