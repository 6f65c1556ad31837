//! Preference pairs → token ids, with the model's own chat template.

use super::RenderError;
use crate::preferences::{Message, Pair, Role, functions};
use crate::train::examples::TokenPair;
use realign_core::Category;
use realign_model::chat::Turn;
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
        if let Some(answer) = pair.calling(text)
            && !answer.calls().is_empty()
        {
            return self.calling(pair, answer);
        }
        self.loaded
            .chat
            .encode_response(&self.loaded.tokenizer, text)
            .map_err(|error| failed(pair, &error))
    }

    /// A response that calls functions: what the template adds to the prompt for it, up to the end of
    /// the turn.
    fn calling(&self, pair: &Pair, answer: &Message) -> Result<Vec<u32>, RenderError> {
        let prompt = self.prompt(pair)?;
        let whole: Vec<Message> = pair.prompt.iter().chain([answer]).cloned().collect();
        let whole = self
            .accepted(&whole, false)
            .map_err(|error| failed(pair, &error))?;
        let Some(own) = whole.strip_prefix(prompt.as_slice()) else {
            let why =
                "the chat template writes a call of a function elsewhere than after the prompt";
            return Err(failed(pair, &why));
        };
        let end = self.loaded.chat.end_of_turn_id();
        let own = own.iter().copied().take_while(|id| *id != end);
        Ok(own.chain([end]).collect())
    }

    /// Tokens of the conversation before the response, including the generation prompt.
    ///
    /// # Errors
    /// See [`Renderer::pair`].
    pub fn prompt(&self, pair: &Pair) -> Result<Vec<u32>, RenderError> {
        self.conversation(&pair.prompt)
            .map_err(|error| failed(pair, &error))
    }

    /// A pair as it is trained with one of its responses: the prompt, the response and the end of the turn.
    ///
    /// # Errors
    /// See [`Renderer::pair`].
    pub fn answered(&self, pair: &Pair, response: &str) -> Result<Vec<u32>, RenderError> {
        let mut tokens = self.prompt(pair)?;
        tokens.extend(self.response(pair, response)?);
        Ok(tokens)
    }

    /// Tokens of any conversation, including the generation prompt. A template that refuses a system
    /// prompt is given it in front of the first user message.
    ///
    /// # Errors
    /// If the template or the tokenizer rejects it.
    pub(crate) fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>, ChatError> {
        self.accepted(messages, true)
    }

    fn accepted(&self, messages: &[Message], opens: bool) -> Result<Vec<u32>, ChatError> {
        let has_system = messages.iter().any(|m| m.role == Role::System);
        match self.encode(messages, opens) {
            // If it refuses that too, what it says about the conversation as it is helps more.
            Err(refused) if has_system => self
                .encode(&without_system(messages), opens)
                .map_err(|_| refused),
            encoded => encoded,
        }
    }

    fn encode(&self, messages: &[Message], opens: bool) -> Result<Vec<u32>, ChatError> {
        let functions = functions(messages);
        let messages: Vec<ChatMessage> = messages.iter().map(chat_message).collect();
        let turn = Turn::new(opens);
        self.loaded
            .chat
            .encode_chat_with(&self.loaded.tokenizer, &messages, &functions, &turn)
    }
}

fn chat_message(message: &Message) -> ChatMessage {
    let mut chat = ChatMessage::new(chat_role(message.role), &message.content);
    if let Some(calling) = &message.calling {
        chat.tool_calls = (!calling.calls.is_empty()).then(|| calling.calls.clone());
        chat.tool_call_id = calling.answers.clone();
    }
    chat
}

fn failed(pair: &Pair, error: &dyn std::fmt::Display) -> RenderError {
    RenderError {
        location: pair.source.to_string(),
        what: error.to_string(),
    }
}

/// A conversation whose system prompt is in front of its first user message.
fn without_system(messages: &[Message]) -> Vec<Message> {
    let (system, mut turns): (Vec<Message>, Vec<Message>) = messages
        .iter()
        .cloned()
        .partition(|m| m.role == Role::System);
    let functions = functions(&system);
    if let Some(first) = turns.first_mut()
        && !functions.is_empty()
    {
        first.calling_mut().functions.extend(functions);
    }
    let system: Vec<&str> = system.iter().map(|m| m.content.as_str()).collect();
    if let Some(first) = turns.iter_mut().find(|m| m.role == Role::User) {
        let parts = system.into_iter().chain([first.content.as_str()]);
        first.content = parts.collect::<Vec<_>>().join("\n\n");
    }
    turns
}

fn chat_role(role: Role) -> ChatRole {
    match role {
        Role::System => ChatRole::System,
        Role::User => ChatRole::User,
        Role::Assistant => ChatRole::Assistant,
        Role::Tool => ChatRole::Tool,
    }
}
