//! Generation without HTTP, for the process that the server is embedded in. Leases, engine, metrics
//! and judgements are the same as for a client's request; API keys and rate limits do not apply.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use serde_json::json;

use super::error::ApiError;
use super::observe::Observation;
use super::{AppState, chat, not_ready};
use crate::telemetry::Event;
use realign_engine::adapter::generation::GenerationId;
use realign_engine::request::{GenerateEvent, GenerateRequest, GenerateStream, SamplingParams};

pub use realign_engine::request::FinishReason;
pub use realign_model::{ChatMessage, ChatRole};

/// What to generate: a conversation to answer or a text to continue, and how to sample.
///
/// Unless set otherwise, tokens are drawn at temperature 1 from the whole vocabulary with a random
/// seed until the model ends its answer or the context is full, and the generation that serves when
/// the request is accepted produces all of them.
///
/// ```
/// # use realign_server::api::{ChatMessage, ChatRole, Generate};
/// let question = Generate::user("Which city is the capital of France?").max_tokens(32);
/// let conversation = Generate::chat([
///     ChatMessage::new(ChatRole::System, "Answer in one word."),
///     ChatMessage::user("Which city is the capital of France?"),
/// ]);
/// let story = Generate::text("Once upon a time").temperature(0.7).stop("\n\n").seed(1);
/// # let _ = (question, conversation, story);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    prompt: Prompt,
    generation: Option<String>,
    max_tokens: Option<usize>,
    temperature: f32,
    top_p: f32,
    seed: Option<u64>,
    stop: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Prompt {
    Chat(Vec<ChatMessage>),
    Text(String),
}

impl Generate {
    /// The assistant's answer to a conversation, laid out by the model's chat template.
    pub fn chat(messages: impl IntoIterator<Item = ChatMessage>) -> Self {
        Self::new(Prompt::Chat(messages.into_iter().collect()))
    }

    /// The answer to a conversation of one user message.
    pub fn user(message: impl Into<String>) -> Self {
        Self::chat([ChatMessage::user(message)])
    }

    /// The continuation of a text, without a chat template.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(text.into()))
    }

    fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            generation: None,
            max_tokens: None,
            temperature: 1.0,
            top_p: 1.0,
            seed: None,
            stop: Vec::new(),
        }
    }

    /// Pins a generation: `base`, or an id of 12 hexadecimal digits.
    #[must_use]
    pub fn generation(mut self, generation: impl Into<String>) -> Self {
        self.generation = Some(generation.into());
        self
    }

    /// Generates at most this many tokens, at least 1.
    #[must_use]
    pub fn max_tokens(mut self, tokens: usize) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Divides the logits by this; 0 always picks the most probable token.
    #[must_use]
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Samples from the smallest set of tokens whose total probability reaches this, from 0 to 1.
    #[must_use]
    pub fn top_p(mut self, share: f32) -> Self {
        self.top_p = share;
        self
    }

    /// Seeds the request's own random stream: the same seed and generation give the same text.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Ends the text before this string. May be called several times to add strings.
    #[must_use]
    pub fn stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    fn check(&self) -> Result<(), ApiError> {
        let wrong = |field, message: &str| Err(ApiError::field(field, message));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("temperature", "`temperature` must be 0 or more");
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return wrong("top_p", "`top_p` must be from 0 to 1");
        }
        if self.max_tokens == Some(0) {
            return wrong("max_tokens", "`max_tokens` must be at least 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return wrong("stop", "`stop` must not be empty");
        }
        match &self.prompt {
            Prompt::Chat(messages) if messages.is_empty() => {
                wrong("messages", "`messages` must have at least one message")
            }
            Prompt::Chat(_) | Prompt::Text(_) => Ok(()),
        }
    }

    /// The prompt's token ids.
    fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        match &self.prompt {
            Prompt::Chat(messages) => chat::encode(state, messages, &[])
                .map_err(|error| chat::chat_error(&error, "messages")),
            Prompt::Text(text) => {
                let encoded = state.tokenizer.encode_prompt(text);
                encoded.map_err(|error| ApiError::field("text", error.to_string()))
            }
        }
    }

    /// The prompt as policies see it: the last user message, or the text to continue.
    fn judged_prompt(&self) -> &str {
        match &self.prompt {
            Prompt::Chat(messages) => {
                let user = messages.iter().rev().find(|m| m.role == ChatRole::User);
                user.map_or("", |message| &message.content)
            }
            Prompt::Text(text) => text,
        }
    }

    /// The sampling parameters after a prompt of `prompt` tokens, with a context of `limit` tokens.
    fn sampling(self, prompt: usize, limit: usize) -> SamplingParams {
        // At least 1, so that the engine refuses a prompt that fills the context.
        let room = limit.saturating_sub(prompt).max(1);
        SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed.unwrap_or_else(rand::random),
            max_tokens: self.max_tokens.unwrap_or(room),
            stop: self.stop,
            ..SamplingParams::default()
        }
    }
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Prompt tokens found in the prefix cache.
    pub cached: usize,
    /// Generated tokens, including the end-of-turn token.
    pub completion: usize,
}

/// A completed text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generated {
    /// The text, without the stop string that ended it.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Token counts of the request.
    pub tokens: TokenCounts,
    /// Id of the generation that produced every token of it.
    pub generation: String,
}

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

/// A text that is being generated, received piece by piece. It also implements [`Stream`]. Dropping
/// it cancels the rest.
pub struct TextStream {
    events: GenerateStream,
    /// Reported when the text has ended or the stream is dropped.
    observation: Option<Observation>,
    generation: GenerationId,
    finish: Option<FinishReason>,
    tokens: TokenCounts,
}

/// What an event means for the reader of a stream: an item, the end, or nothing yet.
type StreamStep = ControlFlow<Option<Result<String, GenerateError>>>;

impl TextStream {
    /// The next piece of text, never empty; `None` after the last one.
    ///
    /// # Errors
    /// [`GenerateError::Failed`] if the engine failed; nothing follows.
    pub async fn next(&mut self) -> Option<Result<String, GenerateError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// As [`TextStream::next`], for blocking code.
    ///
    /// # Errors
    /// As [`TextStream::next`].
    ///
    /// # Panics
    /// If called within a Tokio runtime, whose thread it would block.
    pub fn blocking_next(&mut self) -> Option<Result<String, GenerateError>> {
        while self.observation.is_some() {
            let event = self.events.blocking_next();
            if let ControlFlow::Break(item) = self.take(event) {
                return item;
            }
        }
        None
    }

    /// Id of the generation that produces every token of the text.
    pub fn generation(&self) -> &str {
        &self.generation.0
    }

    /// Why the text ended; `None` before it has, and if the engine failed.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Token counts, complete once the text has ended.
    pub fn tokens(&self) -> TokenCounts {
        self.tokens
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<String, GenerateError>>> {
        while self.observation.is_some() {
            match self.events.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => {
                    if let ControlFlow::Break(item) = self.take(event) {
                        return Poll::Ready(item);
                    }
                }
            }
        }
        Poll::Ready(None)
    }

    fn take(&mut self, event: Option<GenerateEvent>) -> StreamStep {
        let stopped = || GenerateEvent::Failed("the engine stopped".into());
        match event.unwrap_or_else(stopped) {
            GenerateEvent::Token { text, .. } => {
                if let Some(observation) = &self.observation {
                    observation.add_token(0);
                    observation.add_text(0, &text, false);
                }
                if text.is_empty() {
                    return ControlFlow::Continue(());
                }
                ControlFlow::Break(Some(Ok(text)))
            }
            GenerateEvent::Finished {
                reason,
                text,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => {
                self.finish = Some(reason);
                self.tokens = TokenCounts {
                    prompt: prompt_tokens,
                    cached: cached_tokens,
                    completion: completion_tokens,
                };
                if let Some(observation) = self.observation.take() {
                    observation.add_text(0, &text, true);
                    observation.set_tokens(prompt_tokens, completion_tokens);
                    observation.set_status(200);
                }
                ControlFlow::Break((!text.is_empty()).then_some(Ok(text)))
            }
            GenerateEvent::Failed(message) => {
                tracing::error!(message, "generation failed");
                if let Some(observation) = self.observation.take() {
                    observation.set_status(500);
                }
                let message = format!("generation failed: {message}");
                ControlFlow::Break(Some(Err(GenerateError::Failed(message))))
            }
        }
    }

    /// The completed text with its figures.
    fn whole(self, text: String) -> Result<Generated, GenerateError> {
        let cut_off = || GenerateError::Failed("generation failed: the engine stopped".into());
        Ok(Generated {
            text,
            finish: self.finish.ok_or_else(cut_off)?,
            tokens: self.tokens,
            generation: self.generation.0,
        })
    }
}

impl Stream for TextStream {
    type Item = Result<String, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

impl std::fmt::Debug for TextStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextStream")
            .field("generation", &self.generation)
            .field("finish", &self.finish)
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// Generates the whole text. Dropping the future cancels it.
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
    match tokio::task::spawn_blocking(move || start(&state, request)).await {
        Ok(started) => started,
        Err(error) => {
            tracing::error!(%error, "preparing a request failed");
            Err(GenerateError::Failed(error.to_string()))
        }
    }
}

/// Encodes the prompt and submits it to the engine.
pub(crate) fn start(state: &AppState, request: Generate) -> Result<TextStream, GenerateError> {
    let observation = Observation::in_process(state);
    match submit(state, request, &observation) {
        Ok((events, generation)) => Ok(TextStream {
            events,
            observation: Some(observation),
            generation,
            finish: None,
            tokens: TokenCounts::default(),
        }),
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
        .map_err(|error| ApiError::NotFound(error.to_string()))?;
    observation.set_generation(&generation.id.0);
    observation.set_prompts(&json!({ "prompt": request.judged_prompt() }));
    let prompt = request.encode(state)?;
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
