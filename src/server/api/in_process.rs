//! Generation without HTTP, for the process that the server is embedded in. Leases, engine, metrics
//! and judgements are the same as for a client's request; API keys and rate limits do not apply.

mod request;
mod stream;

use serde_json::json;

use super::error::ApiError;
use super::observe::Observation;
use super::{AppState, not_ready, spawn_blocking};
use crate::telemetry::Event;
use realign_core::thoughts::{OPENS, opened_by};
use realign_engine::adapter::ResolveError;
use realign_engine::adapter::generation::GenerationId;
use realign_engine::request::{GenerateRequest, GenerateStream};

pub use realign_engine::request::FinishReason;
pub use realign_model::{ChatMessage, ChatRole};
pub use request::Generate;
pub use stream::{Generated, TextStream, TokenCounts};

/// Why generation failed or was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A field of the request is out of range, or the chat template rejects the conversation.
    #[error("{message}")]
    Invalid {
        /// The field's name.
        field: String,
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// The generation does not exist or cannot be loaded.
    #[error("{0}")]
    UnknownGeneration(String),
    /// Prompt and completion exceed the model's context.
    #[error("{0}")]
    TooLong(String),
    /// A limit of running or waiting requests is reached; retry in a moment.
    #[error("{0}")]
    Busy(String),
    /// The server is shutting down, or has no room for the generation.
    #[error("{0}")]
    Unavailable(String),
    /// The engine failed; the log says why.
    #[error("{0}")]
    Failed(String),
}

impl From<ApiError> for GenerateError {
    fn from(error: ApiError) -> Self {
        let message = error.to_string();
        match error {
            ApiError::Field { param, .. } => Self::Invalid {
                field: param,
                message,
            },
            ApiError::NotFound(_) => Self::UnknownGeneration(message),
            ApiError::ContextLength { .. } => Self::TooLong(message),
            ApiError::QueueFull(_) | ApiError::TooManyAtOnce { .. } => Self::Busy(message),
            ApiError::Unavailable(_) => Self::Unavailable(message),
            // The calls made here return no other errors.
            _ => Self::Failed(message),
        }
    }
}

/// Generates to the end. Dropping the future cancels.
pub(crate) async fn generate(
    state: &AppState,
    request: Generate,
) -> Result<Generated, GenerateError> {
    let mut stream = generate_stream(state, request).await?;
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(&piece?);
    }
    stream.whole(text)
}

/// As [`generate`], on the calling thread.
pub(crate) fn generate_blocking(
    state: &AppState,
    request: Generate,
) -> Result<Generated, GenerateError> {
    let mut stream = start(state, request)?;
    let mut text = String::new();
    while let Some(piece) = stream.blocking_next() {
        text.push_str(&piece?);
    }
    stream.whole(text)
}

/// As [`start`], on a blocking thread: the prompt may be long, and a pinned generation may have to
/// be loaded from disk.
pub(crate) async fn generate_stream(
    state: &AppState,
    request: Generate,
) -> Result<TextStream, GenerateError> {
    let state = state.clone();
    let started = spawn_blocking(move || start(&state, request)).await;
    started.unwrap_or_else(|| {
        let message = "the request could not be prepared; the log says why";
        Err(GenerateError::Failed(message.into()))
    })
}

/// Encodes the prompt and submits it to the engine.
pub(crate) fn start(state: &AppState, request: Generate) -> Result<TextStream, GenerateError> {
    let observation = Observation::in_process(state);
    match submit(state, request, &observation) {
        Ok((events, generation)) => Ok(TextStream::new(events, observation, generation)),
        Err(error) => {
            observation.set_status(error.status().as_u16());
            if let Some(reason) = error.refusal() {
                state.telemetry.emit(Event::RequestRefused { reason });
            }
            Err(error.into())
        }
    }
}

fn submit(
    state: &AppState,
    request: Generate,
    observation: &Observation,
) -> Result<(GenerateStream, GenerationId), ApiError> {
    if !state.is_ready() {
        return Err(not_ready());
    }
    request.check()?;
    observation.hold(state.access.clone(), state.access.acquire()?);
    let generation = state
        .registry
        .resolve(request.generation.as_deref())
        .map_err(|error| match error {
            ResolveError::Withheld { .. } => ApiError::Unavailable(error.to_string()),
            ResolveError::Unknown { .. } | ResolveError::Load { .. } => {
                ApiError::NotFound(error.to_string())
            }
        })?;
    observation.set_generation(&generation.id.0);
    observation.set_prompts(&json!({ "prompt": request.judged_prompt() }));
    let prompt = request.encode(state)?;
    if opened_by(&state.tokenizer.tail(&prompt)) {
        observation.add_text(0, OPENS, false);
    }
    let sampling = request.sampling(prompt.len(), state.engine.max_model_len());
    let id = generation.id.clone();
    let events = state
        .engine
        .submit(GenerateRequest {
            prompt,
            sampling,
            generation,
        })
        .map_err(|error| ApiError::from_submit(&error, "prompt"))?;
    Ok((events, id))
}
