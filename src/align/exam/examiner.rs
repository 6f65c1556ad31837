//! Has a generation answer an exam, and marks the answers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::assemble::Exam;
use super::bank::Fact;
use super::defects::{Defect, defects};
use super::diversion::{Likelihoods, Spoken, TOKENS, is_diverted};
use super::question::{Question, user};
use super::scorer::Question as Scored;
use crate::oracle::{Exchange, Judgement, RuleOracle, VerdictCache};
use crate::pipeline::Renderer;
use crate::train::examples::TokenPair;
use realign_core::Category;
use realign_model::{LoadedModel, Staged};

/// Tokens of the base's answers that training keeps: an answer is diverted at its beginning.
const TRAINED_TOKENS: usize = 16;
/// Tokens of an opening: an answer that begins as the base's does is not diverted.
const OPENING: usize = 16;
/// Answers that are remembered together: a sitting that is interrupted loses no more.
const ANSWERED_AT_ONCE: usize = 64;
/// Answers that are scored between two looks at whether to go on.
const SCORED_AT_ONCE: usize = 16;

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What it says.
    pub text: String,
    /// Its tokens, the end-of-turn token included.
    pub tokens: Vec<u32>,
    /// Its likelihood under the generation that gave it, in nats per token.
    pub own: Option<f64>,
}

/// A prompt to answer.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The rendered conversation.
    pub prompt: Vec<u32>,
    /// 0 or 1.
    pub temperature: f32,
    /// Seed of a sampled answer.
    pub seed: u64,
    /// Most tokens of the answer.
    pub max_tokens: usize,
}

/// Whose answers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The base model.
    Base,
    /// The generation that sits the exam.
    Subject,
}

/// Answers prompts: the serving engine.
pub trait Respond {
    /// One answer a prompt, in order.
    ///
    /// # Errors
    /// [`ExamError::Cancelled`] or [`ExamError::Engine`].
    fn respond(&self, who: Who, prompts: &[Asked]) -> Result<Vec<Answer>, ExamError>;

    /// Whether to go on.
    fn proceed(&self) -> bool {
        true
    }
}

/// Remembers answers and likelihoods. Losing one costs computing it again.
pub trait ExamCache: Send + Sync {
    /// What is remembered under each key.
    fn get_many(&self, keys: &[[u8; 32]]) -> Vec<Option<String>>;

    /// Remembers values.
    fn put_many(&self, values: &[([u8; 32], String)]);
}

/// A cache in memory.
#[derive(Debug, Default)]
pub struct MemoryExamCache(Mutex<HashMap<[u8; 32], String>>);

impl ExamCache for MemoryExamCache {
    fn get_many(&self, keys: &[[u8; 32]]) -> Vec<Option<String>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|key| known.get(key).cloned()).collect()
    }

    fn put_many(&self, values: &[([u8; 32], String)]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(values.iter().cloned());
    }
}

/// Why an exam could not be sat.
#[derive(Debug, thiserror::Error)]
pub enum ExamError {
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
    /// The engine did not answer.
    #[error("{0}")]
    Engine(String),
    /// A likelihood could not be computed.
    #[error("a likelihood could not be computed: {0}")]
    Likelihood(#[from] candle_core::Error),
}

/// A generation that sits an exam.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub generation: &'a str,
    /// The base's id.
    pub base: &'a str,
    /// Its adapter as the backend staged it; `None` of the base.
    pub adapter: Option<&'a Staged>,
}

/// How one answer was marked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mark {
    /// What was answered.
    pub text: String,
    /// What the base answers.
    pub base: String,
    /// Indices of the rules that it violates.
    pub violated: Vec<usize>,
    /// Indices of the rules that could not be decided.
    pub undecided: Vec<usize>,
    /// What is wrong with it whatever it says.
    pub defects: Vec<Defect>,
    /// By how much the base finds it less likely than the generation that gave it, in nats per token;
    /// `None` where it is the base's own answer or not a control.
    pub surprise: Option<f64>,
    /// Whether it is a control's answer that the base would not give.
    pub diverted: bool,
    /// Whether it is a control that cannot be one: the base's own answer violates a rule.
    pub excluded: bool,
}

/// What a generation answered, question by question, and how it was marked.
#[derive(Clone, Debug, Default)]
pub struct Sitting {
    /// The generation.
    pub generation: String,
    /// Marks in the order of the exam's questions.
    pub marks: Vec<Mark>,
    /// Whether each fact was known.
    pub facts: Vec<bool>,
    /// The same of the base.
    pub base_facts: Vec<bool>,
    /// Why rules were not decided, if any were not.
    pub undecided: Option<String>,
    /// Seconds it took.
    pub seconds: f64,
    /// Answers that were remembered from an earlier sitting.
    pub remembered: usize,
}

/// Examines generations of one model.
pub struct Examiner<'a> {
    /// The model.
    pub loaded: &'a LoadedModel,
    /// Judges answers.
    pub oracle: &'a RuleOracle,
    /// Verdicts of earlier sittings.
    pub verdicts: &'a dyn VerdictCache,
    /// Answers and likelihoods of earlier sittings.
    pub cache: &'a dyn ExamCache,
    /// Answers.
    pub engine: &'a dyn Respond,
    /// Threads that compute likelihoods.
    pub threads: usize,
    /// Most tokens of an answer to a governed prompt; controls have at most [`TOKENS`].
    pub max_tokens: usize,
}

impl Examiner<'_> {
    /// Has a generation sit an exam.
    ///
    /// # Errors
    /// [`ExamError`]; what was answered is remembered.
    pub fn sit(&self, exam: &Exam, subject: &Subject<'_>) -> Result<Sitting, ExamError> {
        let started = Instant::now();
        let prompts: Vec<Vec<u32>> = exam.questions.iter().map(|q| self.render(q)).collect();
        let all: Vec<usize> = (0..exam.questions.len()).collect();
        let mut work = Work {
            examiner: self,
            exam,
            prompts,
            subject,
            likelihoods: None,
            remembered: 0,
        };
        let own = work.answers(Who::Subject, &all)?;
        let base = if subject.adapter.is_none() {
            own.clone()
        } else {
            work.answers(Who::Base, &all)?
        };
        let (mut marks, undecided) = self.mark(exam, &own, &base);
        work.divert(&mut marks, &own, &base)?;
        let base_facts = work.facts(Who::Base)?;
        let facts = match subject.adapter {
            None => base_facts.clone(),
            Some(_) => work.facts(Who::Subject)?,
        };
        Ok(Sitting {
            generation: subject.generation.to_owned(),
            marks,
            facts,
            base_facts,
            undecided,
            seconds: started.elapsed().as_secs_f64(),
            remembered: work.remembered,
        })
    }

    /// What the base answers to controls that are trained on, as pairs that keep its answers; those
    /// whose answer violates a rule or is empty are left out. `instead` is an answer that would be
    /// wrong there, as tokens.
    ///
    /// # Errors
    /// [`ExamError`].
    pub fn training_pairs(
        &self,
        controls: &[Question],
        base: &str,
        instead: &[u32],
    ) -> Result<Vec<TokenPair>, ExamError> {
        let exam = Exam {
            questions: controls.to_vec(),
            ..Exam::default()
        };
        let prompts: Vec<Vec<u32>> = controls.iter().map(|q| self.render(q)).collect();
        let subject = Subject {
            generation: base,
            base,
            adapter: None,
        };
        let mut work = Work {
            examiner: self,
            exam: &exam,
            prompts,
            subject: &subject,
            likelihoods: None,
            remembered: 0,
        };
        let asked = (0..controls.len()).map(|i| Asked {
            max_tokens: TRAINED_TOKENS,
            ..work.asked(i, false)
        });
        let asked: Vec<Asked> = asked.collect();
        let answers = work.ask(Who::Base, &asked)?;
        let exchanges: Vec<Exchange<'_>> = controls
            .iter()
            .zip(&answers)
            .map(|(question, answer)| Exchange {
                prompt: &question.prompt,
                response: &answer.text,
                labels: &[],
            })
            .collect();
        let (judgements, _) = self.oracle.judge_cached(&exchanges, self.verdicts);
        let rows = controls
            .iter()
            .zip(work.prompts)
            .zip(answers)
            .zip(judgements);
        let kept =
            rows.filter(|((_, answer), judgement)| judgement.complies() && answer.tokens.len() > 1);
        let pair =
            |(((question, prompt), answer), _): (((&Question, Vec<u32>), Answer), _)| TokenPair {
                id: format!("control-{}", question.id),
                category: Category::Retain,
                prompt,
                chosen: answer.tokens,
                rejected: instead.to_vec(),
            };
        Ok(kept.map(pair).collect())
    }

    /// A question as tokens. A template that takes no system prompt or no second turn is given the
    /// prompt alone.
    fn render(&self, question: &Question) -> Vec<u32> {
        let renderer = Renderer::new(self.loaded);
        renderer
            .conversation(&question.messages)
            .or_else(|_| renderer.conversation(&user(&question.prompt)))
            .unwrap_or_default()
    }

    /// Marks without likelihoods, and why the first open rule is open.
    fn mark(&self, exam: &Exam, own: &[Answer], base: &[Answer]) -> (Vec<Mark>, Option<String>) {
        let judged = self.judge(exam, own);
        let of_base = self.judge(exam, base);
        let rows = exam.questions.iter().zip(own.iter().zip(base));
        let rows = rows.zip(judged.answers.into_iter().zip(of_base.answers));
        let marks = rows.map(|((question, (own, base)), (judged, of_base))| {
            let control = question.group.is_control();
            Mark {
                text: own.text.clone(),
                base: base.text.clone(),
                violated: judged.violated,
                undecided: judged.undecided,
                defects: defects(&own.text, control.then_some(&base.text)),
                surprise: None,
                diverted: false,
                excluded: control && !of_base.violated.is_empty(),
            }
        });
        (marks.collect(), judged.open)
    }

    fn judge(&self, exam: &Exam, answers: &[Answer]) -> Judged {
        let asked = exam.questions.iter().zip(answers);
        let exchanges: Vec<Exchange<'_>> = asked
            .map(|(question, answer)| Exchange {
                prompt: &question.prompt,
                response: &answer.text,
                labels: &[],
            })
            .collect();
        let index = |policy: &str, rule: &str| {
            let mut rules = exam.rules.iter();
            rules.position(|r| r.policy == policy && r.rule == rule)
        };
        let (judgements, _) = self.oracle.judge_cached(&exchanges, self.verdicts);
        let mut open = judgements.iter().flat_map(|j| &j.undecided);
        let open = open.next().map(|u| {
            format!(
                "rule {}:{} could not be decided: {}",
                u.policy, u.rule, u.why
            )
        });
        let of = |judgement: Judgement| {
            let violated = judgement.violations.iter();
            let undecided = judgement.undecided.iter();
            Findings {
                violated: violated.filter_map(|v| index(&v.policy, &v.rule)).collect(),
                undecided: undecided
                    .filter_map(|u| index(&u.policy, &u.rule))
                    .collect(),
            }
        };
        Judged {
            answers: judgements.into_iter().map(of).collect(),
            open,
        }
    }
}

/// What the oracle says about all answers.
struct Judged {
    answers: Vec<Findings>,
    /// Why the first open rule is open.
    open: Option<String>,
}

/// What the oracle says about one answer, as indices of rules.
struct Findings {
    violated: Vec<usize>,
    undecided: Vec<usize>,
}

/// One sitting while it goes on.
struct Work<'a> {
    examiner: &'a Examiner<'a>,
    exam: &'a Exam,
    /// The questions as tokens.
    prompts: Vec<Vec<u32>>,
    subject: &'a Subject<'a>,
    likelihoods: Option<Likelihoods>,
    remembered: usize,
}

impl Work<'_> {
    fn id(&self, who: Who) -> &str {
        match who {
            Who::Base => self.subject.base,
            Who::Subject => self.subject.generation,
        }
    }

    /// Answers to some questions, remembered ones included.
    fn answers(&mut self, who: Who, questions: &[usize]) -> Result<Vec<Answer>, ExamError> {
        let asked = questions.iter().map(|&i| {
            let sampled = self.exam.questions[i].is_sampled();
            self.asked(i, sampled)
        });
        let asked: Vec<Asked> = asked.collect();
        self.ask(who, &asked)
    }

    /// A question as the engine is asked it.
    fn asked(&self, index: usize, sampled: bool) -> Asked {
        let question = &self.exam.questions[index];
        let most = self.examiner.max_tokens;
        Asked {
            prompt: self.prompts[index].clone(),
            temperature: if sampled { 1.0 } else { 0.0 },
            seed: question.seed(),
            max_tokens: if question.group.is_control() {
                most.min(TOKENS)
            } else {
                most
            },
        }
    }

    fn ask(&mut self, who: Who, asked: &[Asked]) -> Result<Vec<Answer>, ExamError> {
        let cache = self.examiner.cache;
        let keys: Vec<[u8; 32]> = asked
            .iter()
            .map(|asked| {
                let how = if asked.temperature > 0.0 {
                    asked.seed.to_string()
                } else {
                    "greedy".into()
                };
                let most = asked.max_tokens.to_string();
                key(&["answer", self.id(who), &how, &most], &asked.prompt)
            })
            .collect();
        let known = cache.get_many(&keys).into_iter();
        let mut answers: Vec<Option<Answer>> = known
            .map(|json| serde_json::from_str(&json?).ok())
            .collect();
        self.remembered += answers.iter().flatten().count();
        let open: Vec<usize> = (0..asked.len()).filter(|&i| answers[i].is_none()).collect();
        for part in open.chunks(ANSWERED_AT_ONCE) {
            let prompts: Vec<Asked> = part.iter().map(|&i| asked[i].clone()).collect();
            let fresh = self.examiner.engine.respond(who, &prompts)?;
            let mut remembered = Vec::with_capacity(part.len());
            for (&i, answer) in part.iter().zip(fresh) {
                // An answer is text and numbers, which always serialise.
                remembered.push((keys[i], serde_json::to_string(&answer).unwrap_or_default()));
                answers[i] = Some(answer);
            }
            cache.put_many(&remembered);
        }
        Ok(answers.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Marks the control answers that the base would not give. One that begins as its own answer does
    /// is none.
    fn divert(
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
    fn facts(&mut self, who: Who) -> Result<Vec<bool>, ExamError> {
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
fn begins_alike(a: &Answer, b: &Answer) -> bool {
    let same = a.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b);
    a.tokens == b.tokens || same.count() >= OPENING
}

/// A fact as a prompt with four answers, the right one first.
fn choices(loaded: &LoadedModel, fact: &Fact) -> Scored {
    let renderer = Renderer::new(loaded);
    let tokens = |text: &str| loaded.tokenizer.encode(text, false).unwrap_or_default();
    let texts = std::iter::once(&fact.answer).chain(&fact.others);
    Scored {
        prompt: renderer
            .conversation(&user(&fact.prompt))
            .unwrap_or_default(),
        continuations: texts.map(|text| tokens(text)).collect(),
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

fn key(parts: &[&str], tokens: &[u32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    hash.finalize().into()
}
