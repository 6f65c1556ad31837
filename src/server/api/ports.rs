//! Traits through which the API uses the rest of the server, so that it can be tested without a
//! model.

use std::sync::Arc;

use futures::stream::BoxStream;

use super::answers::admin::{
    Alignment, Cancelling, ExamAnswer, Generations, History, Policies, Realignment, Started, Swap,
    Unpinned,
};
use super::answers::retention::Collected;
use crate::telemetry::Event;
use realign_align::oracle::Exchange;
use realign_align::policy::RuleExplanation;
use realign_core::Thread;
use realign_engine::PromptToken;
use realign_engine::adapter::generation::Generation;
use realign_engine::request::{EngineStats, GenerateRequest, GenerateStream, SubmitError};

/// The engine, as used by the API.
pub trait EnginePort: Send + Sync {
    /// Submits one sequence. Must not block.
    ///
    /// # Errors
    /// [`SubmitError`], in which case nothing was queued.
    fn submit(&self, request: GenerateRequest) -> Result<GenerateStream, SubmitError>;

    /// A snapshot of the load, for metrics.
    fn stats(&self) -> EngineStats;

    /// Maximum number of tokens, prompt and completion together, in a sequence.
    fn max_model_len(&self) -> usize;
}

/// The threads that the server cannot do without, as probes and metrics ask about them.
pub trait HealthPort: Send + Sync {
    /// The part that has failed for good, and why; `None` while there is none.
    fn failure(&self) -> Option<String>;

    /// Why requests should not be sent here yet or any more; `None` if they should.
    fn unready(&self) -> Option<String>;

    /// Takes figures anew that change by themselves, such as a lease that runs out, before they are read.
    fn measure(&self) {}

    /// Panics of each thread so far.
    fn panics(&self) -> Vec<(Thread, u64)>;
}

/// Why an operator's request failed. The text says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The named object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The current state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The operation failed.
    #[error("{0}")]
    Failed(String),
}

/// An item of a realignment's event stream.
#[derive(Clone, Debug)]
pub enum RealignmentEvent {
    /// An event of the realignment.
    Happened(Arc<Event>),
    /// The reader was too slow: up to this many events were skipped.
    Lagged(u64),
}

/// What to do with what exceeds the limits of `[retention]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CollectOptions {
    /// Only say what would go.
    pub dry_run: bool,
    /// Also remove imported adapters that have not been used for this many seconds.
    pub max_imported_age_s: Option<u64>,
}

/// An adapter to load under a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct NewName<'a> {
    /// What requests will send as `model`; the served name's own forms are not among these.
    pub name: &'a str,
    /// A PEFT directory.
    pub path: &'a str,
    /// Whether the name may exist, with the same content.
    pub again: bool,
    /// The generation that the content must be, if the caller knows it.
    pub expected: Option<&'a str>,
}

/// The operations behind the operator routes. Methods may read from disk, so the API calls them on
/// blocking threads.
pub trait AdminPort: Send + Sync {
    /// The active policy set, and why the latest one was refused, if it was.
    fn policies(&self) -> Policies;

    /// The name and the text of the file that an active policy comes from.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] if no accepted file holds it, [`AdminError::Failed`] if it cannot be
    /// read.
    fn policy_file(&self, policy: &str) -> Result<(String, String), AdminError>;

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

    /// The events of one realignment from now on. The last relevant one is that of its end; for a
    /// realignment that has already ended it is the only one. `None` if there is no such
    /// realignment.
    fn events(&self, id: &str) -> Option<BoxStream<'static, RealignmentEvent>>;

    /// All generations on disk and in memory, and which one is current.
    fn generations(&self) -> Generations;

    /// Makes a generation current; with `expected`, only if that one is current now.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], or [`AdminError::Conflict`] if `expected` is not current.
    fn activate(&self, generation: &str, expected: Option<&str>) -> Result<Swap, AdminError>;

    /// Makes the previous generation current again; with `expected`, only if that one is current
    /// now. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] if there is none, `expected` is not current, or the last change was a
    /// rollback already.
    fn rollback(&self, expected: Option<&str>) -> Result<Swap, AdminError>;

    /// Lets realignments replace what an operator activated.
    ///
    /// # Errors
    /// [`AdminError::Failed`] if that cannot be stored.
    fn unpin(&self) -> Result<Unpinned, AdminError>;

    /// Loads an adapter under a name of its own. What serves, on disk and in memory, stays as it is.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] without such a directory, [`AdminError::Invalid`] if the name is taken
    /// or the adapter is unusable, [`AdminError::Conflict`] if the content is not what it must be.
    fn load_adapter(&self, new: NewName<'_>) -> Result<(), AdminError>;

    /// Takes away a name that [`AdminPort::load_adapter`] gave. Answers that run go on to their end.
    ///
    /// # Errors
    /// [`AdminError::NotFound`], or [`AdminError::Conflict`] if it is not the `expected` generation.
    fn unload_adapter(&self, name: &str, expected: Option<&str>) -> Result<(), AdminError>;

    /// What served, newest first.
    ///
    /// # Errors
    /// [`AdminError::Failed`] if it cannot be read.
    fn history(&self) -> Result<History, AdminError>;

    /// Serves without policies: the empty set becomes the accepted one.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] while the policy directory holds policies.
    fn clear_policies(&self) -> Result<Policies, AdminError>;

    /// Removes what exceeds the limits of `[retention]`, or says what would go.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] while a realignment runs, whose end removes it by itself;
    /// [`AdminError::Failed`] if the directories cannot be read.
    fn collect(&self, options: CollectOptions) -> Result<Collected, AdminError>;

    /// Whether what serves is aligned to the active policies, as the exam measured it. Must not
    /// block: every answer to a client says it.
    fn alignment(&self) -> Alignment;

    /// Why clients who ask for what serves are refused, if they are. Must not block.
    fn refuses_clients(&self) -> Option<String> {
        None
    }

    /// What the last exams said.
    fn exam(&self) -> ExamAnswer;

    /// Has what serves sit the exam, in the background.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] while a realignment runs, which begins with the same exam.
    fn examine(&self) -> Result<ExamAnswer, AdminError>;
}

/// Why a log filter could not be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    /// The text is not a valid filter.
    #[error(
        "`filter` cannot be used: {0}; give a level (error, warn, info, debug, trace, off), or \
         levels by module such as info,realign::api=debug"
    )]
    Unusable(String),
    /// The process no longer logs.
    #[error("{0}")]
    Gone(String),
    /// The server is embedded in an application that controls logging itself.
    #[error(
        "this server is part of an application, which decides itself what is logged; see its own \
         settings"
    )]
    NotOurs,
}

/// The log filter, which operators can change while the server runs.
pub trait LogPort: Send + Sync {
    /// The current filter: a level, and levels by module where they differ.
    fn filter(&self) -> String;

    /// Replaces the filter.
    ///
    /// # Errors
    /// [`LogFilterError`], in which case the old filter stays in force.
    fn set_filter(&self, filter: &str) -> Result<(), LogFilterError>;
}

/// The policy oracle's judgements of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moderations {
    /// Revision of the policy set used; equal revisions give equal judgements.
    pub(crate) revision: String,
    /// `policy/rule` of every enforced rule.
    pub(crate) categories: Vec<String>,
    /// For each text, which categories it violates.
    pub(crate) results: Vec<Vec<bool>>,
}

/// The policy oracle, as used by clients.
pub trait ModerationPort: Send + Sync {
    /// Why nothing can be judged, while no policies have been loaded.
    fn unavailable(&self) -> Option<String> {
        None
    }

    /// Judges each text as the answer to the prompt, by the active policies. Takes time
    /// linear in texts and rules, so the API calls it on a blocking thread.
    fn moderate(&self, prompt: &str, responses: &[String]) -> Moderations;

    /// What each rule of the active policies, `dryrun` ones included, says about an answer and why;
    /// with the set's revision. Blocks as `moderate` does.
    fn explain(&self, exchange: &Exchange<'_>) -> (String, Vec<RuleExplanation>);
}

/// Why an embedding could not be computed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EmbeddingError(pub Box<dyn std::error::Error + Send + Sync>);

/// Computes embeddings.
pub trait EmbeddingPort: Send + Sync {
    /// The embedding of a text's tokens. Blocks for one forward pass.
    ///
    /// # Errors
    /// [`EmbeddingError`] if the forward pass fails.
    fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>, EmbeddingError>;

    /// How likely each token of a prompt is but the first, and the `top` most likely ones in its place.
    /// Blocks for one forward pass.
    ///
    /// # Errors
    /// [`EmbeddingError`] if the forward pass fails.
    fn prompt_logprobs(
        &self,
        generation: &Generation,
        tokens: &[u32],
        top: usize,
    ) -> Result<Vec<PromptToken>, EmbeddingError>;
}

impl EmbeddingPort for realign_engine::Embedder {
    fn embed(&self, generation: &Generation, tokens: &[u32]) -> Result<Vec<f32>, EmbeddingError> {
        realign_engine::Embedder::embed(self, generation, tokens)
            .map_err(|error| EmbeddingError(Box::new(error)))
    }

    fn prompt_logprobs(
        &self,
        generation: &Generation,
        tokens: &[u32],
        top: usize,
    ) -> Result<Vec<PromptToken>, EmbeddingError> {
        realign_engine::Embedder::prompt_logprobs(self, generation, tokens, top)
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
