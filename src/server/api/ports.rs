//! What the API needs from the rest of the server, as traits, so that it can be tested without a
//! model.

use std::sync::Arc;

use futures::stream::BoxStream;

use super::answers::admin::{Cancelling, Generations, Policies, Realignment, Started, Swap};
use crate::telemetry::Event;
use realign_engine::adapter::generation::Generation;
use realign_engine::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};

/// The engine, as far as the API knows it.
pub trait EnginePort: Send + Sync {
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

/// An item of a realignment's event stream.
#[derive(Clone, Debug)]
pub enum RealignmentEvent {
    /// Something happened.
    Happened(Arc<Event>),
    /// The reader was too slow: up to this many events are missing here.
    Lagged(u64),
}

/// What operators can see and do. Methods may read from disk: the API calls them where blocking is
/// allowed.
pub trait AdminPort: Send + Sync {
    /// The active policy set and what was wrong with the last one that was refused.
    fn policies(&self) -> Policies;

    /// All realignments, newest first, without their timelines.
    fn realignments(&self) -> Vec<Realignment>;

    /// One realignment: stages, progress, triage counts, losses, gate, timeline.
    fn realignment(&self, id: &str) -> Option<Realignment>;

    /// Starts a realignment to the active policy set.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] while one that cannot be superseded runs.
    fn start(&self) -> Result<Started, AdminError>;

    /// Stops a running realignment.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], or [`AdminError::Conflict`] if it has ended.
    fn cancel(&self, id: &str) -> Result<Cancelling, AdminError>;

    /// The events of one realignment from now on. That of its end is the last one that readers
    /// need; for a realignment that has ended it is the only one. `None` if there is no such
    /// realignment.
    fn events(&self, id: &str) -> Option<BoxStream<'static, RealignmentEvent>>;

    /// All generations on disk and in memory, and which one serves.
    fn generations(&self) -> Generations;

    /// Makes a generation serve; with `expected`, only if that one serves now.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], or [`AdminError::Conflict`] if `expected` does not serve.
    fn activate(&self, generation: &str, expected: Option<&str>) -> Result<Swap, AdminError>;

    /// Makes the previous generation serve again.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] if there is none.
    fn rollback(&self) -> Result<Swap, AdminError>;

    /// Whether what serves is aligned to the active policies.
    fn aligned(&self) -> bool;
}

/// Why a log filter is not in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    /// It is not a filter.
    #[error(
        "`filter` cannot be used: {0}; give a level (error, warn, info, debug, trace, off), or \
         levels by module such as info,realign::api=debug"
    )]
    Unusable(String),
    /// The process does not log any more.
    #[error("{0}")]
    Gone(String),
    /// The server is embedded, and its application did not hand control of its logs over.
    #[error(
        "this server is part of an application, which decides itself what is logged; see its own \
         settings"
    )]
    NotOurs,
}

/// What is logged, as far as operators can change it while the server runs.
pub trait LogPort: Send + Sync {
    /// The filter in force: levels, by module where they differ.
    fn filter(&self) -> String;

    /// Replaces the filter.
    ///
    /// # Errors
    /// [`LogFilterError`]; the old filter stays in force then.
    fn set_filter(&self, filter: &str) -> Result<(), LogFilterError>;
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
pub trait ModerationPort: Send + Sync {
    /// Judges each text as the answer to the prompt, by the active policies. Pure and quick, but
    /// linear in texts and rules: the API calls it where blocking is allowed.
    fn moderate(&self, prompt: &str, responses: &[String]) -> Moderations;
}

/// Why there is no embedding of a text.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EmbeddingError(pub Box<dyn std::error::Error + Send + Sync>);

/// What makes embeddings.
pub trait EmbeddingPort: Send + Sync {
    /// The embedding of a text's tokens. Blocks for one forward pass.
    ///
    /// # Errors
    /// [`EmbeddingError`] if the forward pass fails.
    fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>, EmbeddingError>;
}

impl EmbeddingPort for realign_engine::Embedder {
    fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>, EmbeddingError> {
        realign_engine::Embedder::embed(self, generation, tokens)
            .map_err(|error| EmbeddingError(Box::new(error)))
    }
}

impl EnginePort for realign_engine::EngineHandle {
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
