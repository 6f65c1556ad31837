//! Who answers an exam, and what is remembered of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

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
