//! Answers, piece by piece and whole.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use realign_engine::adapter::generation::GenerationId;
use realign_engine::request::{FinishReason, GenerateEvent, GenerateStream};

use super::GenerateError;
use crate::api::observe::Observation;

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them that were found in the prefix cache.
    pub cached: usize,
    /// Tokens generated, the end-of-turn token included.
    pub completion: usize,
}

/// A text that was generated to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generated {
    /// The text, without the stop string that ended it.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub tokens: TokenCounts,
    /// Id of the generation that produced every token of it.
    pub generation: String,
}

/// A text that is being generated, piece by piece. It is a [`Stream`] as well. Dropping it cancels
/// the rest.
pub struct TextStream {
    events: GenerateStream,
    /// Reported when the text has ended, or with this stream.
    observation: Option<Observation>,
    generation: GenerationId,
    finish: Option<FinishReason>,
    tokens: TokenCounts,
}

/// What an event means for the reader of a stream: an item, the end, or nothing yet.
type Step = ControlFlow<Option<Result<String, GenerateError>>>;

impl TextStream {
    /// The text of a sequence that was queued.
    pub(super) fn new(
        events: GenerateStream,
        observation: Observation,
        generation: GenerationId,
    ) -> Self {
        Self {
            events,
            observation: Some(observation),
            generation,
            finish: None,
            tokens: TokenCounts::default(),
        }
    }

    /// The next piece of text, never empty; `None` after the last one.
    ///
    /// # Errors
    /// [`GenerateError::Failed`] if the engine failed; nothing follows.
    pub async fn next(&mut self) -> Option<Result<String, GenerateError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// As [`TextStream::next`], for callers outside of asynchronous code.
    ///
    /// # Errors
    /// As [`TextStream::next`].
    ///
    /// # Panics
    /// Inside a task of a Tokio runtime, whose thread it would block.
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

    /// What it took, once it has ended.
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

    fn take(&mut self, event: Option<GenerateEvent>) -> Step {
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
                stopped_by: _,
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

    /// What came, as a whole.
    pub(super) fn whole(self, text: String) -> Result<Generated, GenerateError> {
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
