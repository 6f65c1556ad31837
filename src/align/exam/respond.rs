//! Who answers an exam, and what is remembered of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use realign_core::thoughts;
use realign_model::Tokenizer;

/// Answers that are remembered together: work that is killed loses no more.
const KEPT_AT_ONCE: usize = 64;

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What it says.
    pub text: String,
    /// Its tokens, the end-of-turn token included.
    pub tokens: Vec<u32>,
    /// Its likelihood under the generation that gave it, in nats per token; `None` if it was not
    /// wanted, and of an empty answer.
    pub own: Option<f64>,
}

/// A prompt to answer.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The rendered conversation.
    pub prompt: Vec<u32>,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Seed of a sampled answer.
    pub seed: u64,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// Whether the answer's likelihood is wanted, which takes time.
    pub measured: bool,
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
    /// Answers every prompt once, in any order: `answered` takes each answer, and the index of its
    /// prompt, as soon as it is whole.
    ///
    /// # Errors
    /// [`ExamError::Cancelled`] or [`ExamError::Engine`].
    fn respond(
        &self,
        who: Who,
        prompts: &[Asked],
        answered: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), ExamError>;

    /// Whether a prompt with its answer fits the context, both in tokens.
    fn fits(&self, _prompt: usize, _answer: usize) -> bool {
        true
    }

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

/// Who is asked, and where answers are remembered.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) engine: &'a dyn Respond,
    pub(crate) cache: &'a dyn ExamCache,
    pub(crate) who: Who,
    /// The id of the generation that answers.
    pub(crate) id: &'a str,
    /// Whose prompts they are.
    pub(crate) tokenizer: &'a Tokenizer,
}

impl Asking<'_> {
    /// Answers in order, remembered ones included, and how many of them were remembered. `answered` is
    /// called for each of the others. Thoughts that a prompt opened begin with their tag, wherever the
    /// answer came from.
    ///
    /// # Errors
    /// [`ExamError`]; what was answered is remembered.
    pub(crate) fn ask(
        &self,
        asked: &[Asked],
        answered: &dyn Fn(),
    ) -> Result<(Vec<Answer>, usize), ExamError> {
        let keys: Vec<[u8; 32]> = asked
            .iter()
            .map(|asked| {
                let how = if asked.temperature > 0.0 {
                    format!("{} at {}", asked.seed, asked.temperature)
                } else {
                    "greedy".into()
                };
                let most = asked.max_tokens.to_string();
                let what = if asked.measured { "answer" } else { "words" };
                key(&[what, self.id, &how, &most], &asked.prompt)
            })
            .collect();
        let mut known = Known::of(self.cache, &keys);
        let open = known.open();
        let count = keys.len() - open.len();
        let prompts: Vec<Asked> = open.iter().map(|&i| asked[i].clone()).collect();
        let result = self.engine.respond(self.who, &prompts, &mut |n, answer| {
            known.add(open[n], answer);
            answered();
        });
        let mut answers = known.finish();
        result?;
        for (asked, answer) in asked.iter().zip(&mut answers) {
            let opened = thoughts::opened_by(&self.tokenizer.tail(&asked.prompt));
            answer.text = thoughts::whole(opened, std::mem::take(&mut answer.text));
        }
        Ok((answers, count))
    }
}

/// Values under keys, those that are remembered and those that are added, which are kept on the way.
struct Known<'a, T> {
    cache: &'a dyn ExamCache,
    keys: &'a [[u8; 32]],
    values: Vec<Option<T>>,
    /// What was added and is not kept yet.
    lines: Vec<([u8; 32], String)>,
}

impl<'a, T: Clone + Default + Serialize + DeserializeOwned> Known<'a, T> {
    fn of(cache: &'a dyn ExamCache, keys: &'a [[u8; 32]]) -> Self {
        let known = cache.get_many(keys).into_iter();
        Self {
            cache,
            keys,
            values: known
                .map(|json| serde_json::from_str(&json?).ok())
                .collect(),
            lines: Vec::new(),
        }
    }

    /// Where a value is missing.
    fn open(&self) -> Vec<usize> {
        let indices = 0..self.keys.len();
        indices.filter(|&i| self.values[i].is_none()).collect()
    }

    fn add(&mut self, index: usize, value: T) {
        // Text and numbers always serialise.
        let json = serde_json::to_string(&value).unwrap_or_default();
        self.lines.push((self.keys[index], json));
        self.values[index] = Some(value);
        if self.lines.len() >= KEPT_AT_ONCE {
            self.keep();
        }
    }

    fn keep(&mut self) {
        self.cache.put_many(&std::mem::take(&mut self.lines));
    }

    /// Keeps the rest. Values that are still missing are empty.
    fn finish(mut self) -> Vec<T> {
        self.keep();
        let values = self.values.into_iter();
        values.map(Option::unwrap_or_default).collect()
    }
}

/// Values under keys, and how many were remembered: `fresh` computes those at the indices it is given,
/// at most `at_once` of them.
pub(crate) fn remembered<T: Clone + Default + Serialize + DeserializeOwned>(
    cache: &dyn ExamCache,
    keys: &[[u8; 32]],
    at_once: usize,
    mut fresh: impl FnMut(&[usize]) -> Result<Vec<T>, ExamError>,
) -> Result<(Vec<T>, usize), ExamError> {
    let mut known = Known::of(cache, keys);
    let open = known.open();
    for part in open.chunks(at_once) {
        for (&i, value) in part.iter().zip(fresh(part)?) {
            known.add(i, value);
        }
        known.keep();
    }
    Ok((known.finish(), keys.len() - open.len()))
}

/// A key over texts and tokens.
pub(crate) fn key(parts: &[&str], tokens: &[u32]) -> [u8; 32] {
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

/// Why an exam could not be sat.
#[derive(Debug, thiserror::Error)]
pub enum ExamError {
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
    /// The engine did not answer.
    #[error("{0}")]
    Engine(String),
    /// There is not enough memory; holds the numbers.
    #[error("{0}")]
    NoRoom(String),
    /// A likelihood could not be computed.
    #[error("a likelihood could not be computed: {0}")]
    Likelihood(#[from] candle_core::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use realign_model::test_support::test_model;

    /// Says the same to everything.
    struct Says(&'static str);

    impl Respond for Says {
        fn respond(
            &self,
            _: Who,
            prompts: &[Asked],
            answered: &mut dyn FnMut(usize, Answer),
        ) -> Result<(), ExamError> {
            let answer = |text: &str| Answer {
                text: text.into(),
                ..Answer::default()
            };
            // The last one first: answers come in any order.
            (0..prompts.len())
                .rev()
                .for_each(|i| answered(i, answer(self.0)));
            Ok(())
        }
    }

    #[test]
    fn thoughts_that_a_prompt_opened_are_told_apart_remembered_or_not() {
        let tokenizer = Tokenizer::from_gguf(&test_model()).unwrap();
        let asked = |prompt: &str| Asked {
            prompt: tokenizer.encode(prompt, true).unwrap(),
            temperature: 0.0,
            seed: 0,
            max_tokens: 9,
            measured: false,
        };
        let asked = [asked("assistant\n<think>\n"), asked("assistant\n")];
        let cache = MemoryExamCache::default();
        let asking = Asking {
            engine: &Says("20 mg.</think>\n\nAsk them."),
            cache: &cache,
            who: Who::Base,
            id: "base",
            tokenizer: &tokenizer,
        };
        for remembered in [0, 2] {
            let (answers, known) = asking.ask(&asked, &|| ()).unwrap();
            assert_eq!(known, remembered);
            let judged: Vec<&str> = answers
                .iter()
                .map(|answer| thoughts::answer_of(&answer.text))
                .collect();
            assert_eq!(judged, ["Ask them.", "20 mg.</think>\n\nAsk them."]);
        }
    }
}
