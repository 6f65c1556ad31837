//! Preference pairs → token ids, with the model's own chat template.

use super::RenderError;
use crate::preferences::{Message, Pair, Role};
use crate::train::examples::TokenPair;
use realign_core::Category;
use realign_model::{ChatError, ChatMessage, ChatRole, LoadedModel};

/// Renders pairs for a model.
#[derive(Clone, Copy, Debug)]
pub struct Renderer<'a> {
    loaded: &'a LoadedModel,
}

impl<'a> Renderer<'a> {
    /// A renderer with the model's tokenizer and chat template.
    pub fn new(loaded: &'a LoadedModel) -> Self {
        Self { loaded }
    }

    /// One pair as token ids.
    ///
    /// # Errors
    /// [`RenderError`], as for every method here, if the template or the tokenizer rejects the text.
    pub(crate) fn pair(&self, pair: &Pair, category: Category) -> Result<TokenPair, RenderError> {
        Ok(TokenPair {
            id: pair.id.0.clone(),
            category,
            prompt: self.prompt(pair)?,
            chosen: self.response(pair, &pair.chosen)?,
            rejected: self.response(pair, &pair.rejected)?,
        })
    }

    /// A PUNISH pair and a compliant response, as a preference for that response over the chosen
    /// one: an INVERT pair, whose *rejected* response training prefers.
    ///
    /// # Errors
    /// See [`Renderer::pair`].
    pub(crate) fn corrected(&self, pair: &Pair, response: &str) -> Result<TokenPair, RenderError> {
        Ok(TokenPair {
            id: pair.id.0.clone(),
            category: Category::Invert,
            prompt: self.prompt(pair)?,
            chosen: self.response(pair, &pair.chosen)?,
            rejected: self.response(pair, response)?,
        })
    }

    /// A response's tokens, including the end-of-turn token.
    ///
    /// # Errors
    /// See [`Renderer::pair`].
    pub(crate) fn response(&self, pair: &Pair, text: &str) -> Result<Vec<u32>, RenderError> {
        self.loaded
            .chat
            .encode_response(&self.loaded.tokenizer, text)
            .map_err(|error| failed(pair, &error))
    }

    /// Tokens of the conversation before the response, including the generation prompt.
    ///
    /// # Errors
    /// See [`Renderer::pair`].
    pub fn prompt(&self, pair: &Pair) -> Result<Vec<u32>, RenderError> {
        self.conversation(&pair.prompt)
            .map_err(|error| failed(pair, &error))
    }

    /// Tokens of any conversation, including the generation prompt.
    ///
    /// # Errors
    /// If the template or the tokenizer rejects it.
    pub(crate) fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>, ChatError> {
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|m| ChatMessage::new(chat_role(m.role), &m.content))
            .collect();
        self.loaded
            .chat
            .encode_chat(&self.loaded.tokenizer, &messages, true)
    }
}

fn failed(pair: &Pair, error: &dyn std::fmt::Display) -> RenderError {
    RenderError {
        location: pair.source.to_string(),
        what: error.to_string(),
    }
}

fn chat_role(role: Role) -> ChatRole {
    match role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
    }
}
