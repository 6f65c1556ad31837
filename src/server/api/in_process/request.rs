//! Requests as the embedding process builds them.

use realign_engine::request::SamplingParams;
use realign_model::chat::Turn;
use realign_model::{ChatMessage, ChatRole};

use crate::api::error::ApiError;
use crate::api::{AppState, chat};

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
    pub(super) generation: Option<String>,
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

    /// Divides the logits by this; 0 always takes the most probable token.
    #[must_use]
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draws from the smallest set of tokens whose probability reaches this, from 0 to 1.
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

    /// Ends the text before this string; may be called several times.
    #[must_use]
    pub fn stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    pub(super) fn check(&self) -> Result<(), ApiError> {
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
    pub(super) fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        match &self.prompt {
            Prompt::Chat(messages) => chat::encode(state, messages, &[], &Turn::new(true))
                .map_err(|error| chat::chat_error(&error, "messages")),
            Prompt::Text(text) => {
                let encoded = state.tokenizer.encode_prompt(text);
                encoded.map_err(|error| ApiError::field("text", error.to_string()))
            }
        }
    }

    /// What policies call the prompt: the last user message, or the text to continue.
    pub(super) fn judged_prompt(&self) -> &str {
        match &self.prompt {
            Prompt::Chat(messages) => {
                let user = messages.iter().rev().find(|m| m.role == ChatRole::User);
                user.map_or("", |message| &message.content)
            }
            Prompt::Text(text) => text,
        }
    }

    /// How to sample after a prompt of `prompt` tokens, within a context of `limit`.
    pub(super) fn sampling(self, prompt: usize, limit: usize) -> SamplingParams {
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
