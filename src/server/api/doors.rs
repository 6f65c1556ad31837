//! What the API needs from the rest of the server, as traits, so that it can be tested without a
//! model.

use serde_json::Value;
use tokio::sync::broadcast;

use realign_engine::adapter::generation::Generation;
use realign_engine::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};

/// The engine, as far as the API knows it.
pub trait EngineDoor: Send + Sync {
    /// Queues one sequence. Must not block.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was queued then.
    fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError>;

    /// A snapshot for metrics.
    fn stats(&self) -> EngineStats;

    /// Most tokens, prompt and completion together, that a sequence may have.
    fn max_model_len(&self) -> usize;
}

/// Why an operator's request was not carried out. The text says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// What was named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The state does not allow it now.
    #[error("{0}")]
    Conflict(String),
    /// The request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

/// What operators can see and do. Methods may read from disk: the API calls them where blocking is
/// allowed.
pub trait AdminDoor: Send + Sync {
    /// The active policy set and what was wrong with the last one that was refused.
    fn policies(&self) -> Value;

    /// All realignments, newest first.
    fn realignments(&self) -> Value;

    /// One realignment: stages, progress, triage counts, losses, gate.
    fn realignment(&self, id: &str) -> Option<Value>;

    /// Starts a realignment to the active policy set.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] while one that cannot be superseded runs.
    fn start(&self) -> Result<Value, AdminError>;

    /// Stops a running realignment.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], or [`AdminError::Conflict`] if it has ended.
    fn cancel(&self, id: &str) -> Result<Value, AdminError>;

    /// The events of one realignment from now on; `None` if there is no such realignment.
    fn events(&self, id: &str) -> Option<broadcast::Receiver<Value>>;

    /// All generations on disk and in memory, and which one serves.
    fn generations(&self) -> Value;

    /// Makes a generation serve; with `expected`, only if that one serves now.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], or [`AdminError::Conflict`] if `expected` does not serve.
    fn activate(&self, generation: &str, expected: Option<&str>) -> Result<Value, AdminError>;

    /// Makes the previous generation serve again.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] if there is none.
    fn rollback(&self) -> Result<Value, AdminError>;

    /// Whether what serves is aligned to the active policies.
    fn aligned(&self) -> bool;
}

/// What is logged, as far as operators can change it while the server runs.
pub trait LogDoor: Send + Sync {
    /// The filter in force: levels, by module where they differ.
    fn filter(&self) -> String;

    /// Puts another filter in its place.
    ///
    /// # Errors
    /// What is wrong with it.
    fn set_filter(&self, filter: &str) -> Result<(), String>;
}

/// What the policy oracle says about texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moderations {
    /// Which policy set judged: equal revisions, equal judgements.
    pub revision: String,
    /// `policy/rule` of every enforced rule.
    pub categories: Vec<String>,
    /// For each text, which of them it violates.
    pub results: Vec<Vec<bool>>,
}

/// The policy oracle, as far as clients see it.
pub trait ModerationDoor: Send + Sync {
    /// Judges each text as the answer to the prompt, by the active policies. Pure and quick, but
    /// linear in texts and rules: the API calls it where blocking is allowed.
    fn moderate(&self, prompt: &str, responses: &[String]) -> Moderations;
}

/// What makes embeddings.
pub trait EmbeddingDoor: Send + Sync {
    /// The embedding of a text's tokens. Blocks for one forward pass.
    ///
    /// # Errors
    /// Why it could not be computed.
    fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>, String>;
}

impl EmbeddingDoor for realign_engine::Embedder {
    fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>, String> {
        realign_engine::Embedder::embed(self, generation, tokens).map_err(|e| e.to_string())
    }
}

impl EngineDoor for realign_engine::EngineHandle {
    fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError> {
        self.as_ref().submit(request)
    }

    fn stats(&self) -> EngineStats {
        self.as_ref().stats()
    }

    fn max_model_len(&self) -> usize {
        self.as_ref().max_model_len()
    }
}
