//! One sitting while it goes on: answers and likelihoods, those that are remembered included.

use super::assemble::Exam;
use super::bank::Fact;
use super::diversion::{Likelihoods, Spoken, TOKENS, is_diverted};
use super::examiner::{Examiner, Mark, Subject};
use super::question::user;
use super::respond::{Answer, Asked, Asking, ExamError, Who, key};
use super::scorer::Question as Scored;
use crate::pipeline::Renderer;
use realign_model::LoadedModel;

/// Answers that are scored between two looks at whether to go on.
const SCORED_AT_ONCE: usize = 16;
/// Tokens of an opening: an answer that begins as the base's does is not diverted.
pub(super) const OPENING: usize = 16;

/// One sitting while it goes on.
pub(super) struct Work<'a> {
    pub(super) examiner: &'a Examiner<'a>,
    pub(super) exam: &'a Exam,
    /// The questions as tokens.
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) subject: &'a Subject<'a>,
    pub(super) likelihoods: Option<Likelihoods>,
    pub(super) remembered: usize,
}

impl Work<'_> {
    fn id(&self, who: Who) -> &str {
        match who {
            Who::Base => self.subject.base,
            Who::Subject => self.subject.generation,
        }
    }

    /// Answers to some questions, remembered ones included.
    pub(super) fn answers(
        &mut self,
        who: Who,
        questions: &[usize],
    ) -> Result<Vec<Answer>, ExamError> {
        let asked = questions.iter().map(|&i| {
            let sampled = self.exam.questions[i].is_sampled();
            self.asked(i, sampled)
        });
        let asked: Vec<Asked> = asked.collect();
        self.ask(who, &asked)
    }

    /// A question as the engine is asked it.
    pub(super) fn asked(&self, index: usize, sampled: bool) -> Asked {
        let question = &self.exam.questions[index];
        let most = self.examiner.max_tokens;
        let is_control = question.group.is_control();
        Asked {
            prompt: self.prompts[index].clone(),
            temperature: if sampled { 1.0 } else { 0.0 },
            seed: question.seed(),
            max_tokens: if is_control { most.min(TOKENS) } else { most },
            measured: is_control,
        }
    }

    pub(super) fn ask(&mut self, who: Who, asked: &[Asked]) -> Result<Vec<Answer>, ExamError> {
        let asking = Asking {
            engine: self.examiner.engine,
            cache: self.examiner.cache,
            who,
            id: self.id(who),
            tokenizer: &self.examiner.loaded.tokenizer,
        };
        let (answers, remembered) = asking.ask(asked, &|| ())?;
        self.remembered += remembered;
        Ok(answers)
    }

    /// Marks the control answers that the base would not give. One that begins as its own answer does
    /// is none.
    pub(super) fn divert(
        &mut self,
        marks: &mut [Mark],
        own: &[Answer],
        base: &[Answer],
    ) -> Result<(), ExamError> {
        let questions = self.exam.questions.iter().enumerate();
        let changed: Vec<usize> = questions
            .filter(|(i, q)| q.group.is_control() && !begins_alike(&own[*i], &base[*i]))
            .map(|(i, _)| i)
            .collect();
        let spoken = changed.iter().map(|&i| Spoken {
            prompt: self.prompts[i].clone(),
            answer: own[i].tokens.clone(),
        });
        let likelihoods = self.likelihoods(&spoken.collect::<Vec<_>>())?;
        for (i, of_base) in changed.into_iter().zip(likelihoods) {
            marks[i].surprise = own[i].own.zip(of_base).map(|(own, base)| own - base);
            marks[i].diverted = is_diverted(own[i].own, of_base);
        }
        Ok(())
    }

    /// Likelihoods under the base, remembered ones included.
    fn likelihoods(&mut self, spoken: &[Spoken]) -> Result<Vec<Option<f64>>, ExamError> {
        let cache = self.examiner.cache;
        let keys: Vec<[u8; 32]> = spoken
            .iter()
            .map(|one| {
                let answer = key(&["tokens"], &one.answer);
                key(
                    &["likelihood", self.subject.base, &hex::encode(answer)],
                    &one.prompt,
                )
            })
            .collect();
        let known = cache.get_many(&keys).into_iter();
        // An answer without tokens has no likelihood, which is remembered as `null`.
        let known = known.map(|value| serde_json::from_str::<Option<f64>>(&value?).ok());
        let mut known: Vec<Option<Option<f64>>> = known.collect();
        let open: Vec<usize> = (0..spoken.len()).filter(|&i| known[i].is_none()).collect();
        for part in open.chunks(SCORED_AT_ONCE) {
            if !self.examiner.engine.proceed() {
                return Err(ExamError::Cancelled);
            }
            let asked: Vec<Spoken> = part.iter().map(|&i| spoken[i].clone()).collect();
            let scored = self.scorer()?.of(&asked)?;
            let mut remembered = Vec::with_capacity(part.len());
            for (&i, likelihood) in part.iter().zip(scored) {
                let json = serde_json::to_string(&likelihood).unwrap_or_default();
                remembered.push((keys[i], json));
                known[i] = Some(likelihood);
            }
            cache.put_many(&remembered);
        }
        Ok(known.into_iter().map(Option::flatten).collect())
    }

    fn scorer(&mut self) -> Result<&mut Likelihoods, ExamError> {
        if self.likelihoods.is_none() {
            let backend = &*self.examiner.loaded.backend;
            self.likelihoods = Some(Likelihoods::new(backend, self.examiner.threads)?);
        }
        self.likelihoods
            .as_mut()
            .ok_or_else(|| ExamError::Engine("no scorer".into()))
    }

    /// Whether the right answer to each fact is the likeliest.
    pub(super) fn facts(&mut self, who: Who) -> Result<Vec<bool>, ExamError> {
        let exam = self.exam;
        let id = self.id(who).to_owned();
        let key_of = |fact: &Fact| key(&["fact", &id, &fact.prompt, &fact.answer], &[]);
        let cache = self.examiner.cache;
        let keys: Vec<[u8; 32]> = exam.facts.iter().map(key_of).collect();
        let known = cache.get_many(&keys).into_iter();
        let mut known: Vec<Option<bool>> = known.map(|value| value?.parse().ok()).collect();
        let adapter = match who {
            Who::Base => None,
            Who::Subject => self.subject.adapter,
        };
        let open: Vec<usize> = (0..known.len()).filter(|&i| known[i].is_none()).collect();
        for part in open.chunks(SCORED_AT_ONCE) {
            if !self.examiner.engine.proceed() {
                return Err(ExamError::Cancelled);
            }
            let loaded = self.examiner.loaded;
            let asked: Vec<Scored> = part
                .iter()
                .map(|&i| choices(loaded, &exam.facts[i]))
                .collect();
            let scored = self.scorer()?.scorer().score(&asked, adapter)?;
            let mut remembered = Vec::with_capacity(part.len());
            for (&i, choices) in part.iter().zip(scored) {
                let right = is_first_likeliest(&choices);
                remembered.push((keys[i], right.to_string()));
                known[i] = Some(right);
            }
            cache.put_many(&remembered);
        }
        Ok(known.into_iter().map(Option::unwrap_or_default).collect())
    }
}

/// Whether two answers have the same opening, or are the same.
pub(super) fn begins_alike(a: &Answer, b: &Answer) -> bool {
    let same = a.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b);
    a.tokens == b.tokens || same.count() >= OPENING
}

/// A fact as a prompt with four answers, the right one first.
fn choices(loaded: &LoadedModel, fact: &Fact) -> Scored {
    let renderer = Renderer::new(loaded);
    let texts = std::iter::once(&fact.answer).chain(&fact.others);
    Scored {
        prompt: renderer
            .conversation(&user(&fact.prompt))
            .unwrap_or_default(),
        continuations: texts.map(|text| loaded.said(text)).collect(),
    }
}

/// Whether the first answer has the highest log-probability per token.
fn is_first_likeliest(choices: &[Vec<f64>]) -> bool {
    let mut means = choices
        .iter()
        .map(|tokens| tokens.iter().sum::<f64>() / tokens.len().max(1) as f64);
    let first = means.next().unwrap_or(f64::NEG_INFINITY);
    means.all(|other| first > other)
}
