//! Who answers and writes: the port between gathering and a model.

use crate::exam::{ExamError, Who};
use crate::preferences::Message;

/// How a prompt is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// A conversation, by the model's chat template.
    Chat(Vec<Message>),
    /// A text that the model continues.
    Completion(String),
}

/// A prompt to answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The prompt.
    pub put: Put,
    /// Seed of the answer.
    pub seed: u64,
    /// Temperature at which it is drawn.
    pub temperature: f32,
    /// Most tokens of the answer.
    pub max_tokens: usize,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What it says; empty where the prompt could not be put.
    pub text: String,
    /// Whether it ended by itself, before `max_tokens`.
    pub ended: bool,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Prompts are written.
    Write,
    /// Prompts are answered.
    Answer,
    /// They are answered again, by the model that is told the policy.
    Tell,
    /// Complying answers are scored.
    Rank,
}

/// A model that answers.
pub trait Speaker {
    /// One answer for each prompt, in order. The same prompt and seed get the same answer.
    ///
    /// # Errors
    /// [`ExamError::Cancelled`] or [`ExamError::Engine`].
    fn speak(&self, who: Who, asks: &[Ask]) -> Result<Vec<Said>, ExamError>;

    /// How likely the base finds answers, in nats per token; `None` of those that are not scored.
    ///
    /// # Errors
    /// As [`Speaker::speak`].
    fn fluency(&self, answers: &[(Vec<Message>, String)]) -> Result<Vec<Option<f64>>, ExamError> {
        Ok(vec![None; answers.len()])
    }

    /// A phase begins that takes this many answers.
    fn enter(&self, _phase: Phase, _answers: usize) {}
}
