//! What has come of an answer so far: the engine's events become pieces of choices.

use std::sync::Arc;

use futures::stream::StreamExt;

use super::AppState;
use super::answers::completions::Reason;
use super::error::ApiError;
use super::observe::Observation;
use super::run::Job;
use super::tool_calls::{CallReader, Part};
use super::tools::{ToolChoice, Tools};
use super::wire::{CallDelta, Piece, Scored, Usage};
use realign_engine::request::{FinishReason, GenerateEvent};
use realign_model::{CallStyle, Tokenizer};

/// How calls are found in an answer and reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallReading {
    style: CallStyle,
    /// The client named the function, so that the answer stops rather than calls.
    named: bool,
}

impl CallReading {
    pub(crate) fn new(tools: &Tools, state: &AppState) -> Option<Self> {
        tools.callable().then(|| Self {
            style: state.chat.call_style(),
            named: matches!(tools.choice, ToolChoice::Named(_)),
        })
    }
}

/// What has come so far.
pub(crate) struct Progress {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) observation: Arc<Observation>,
    pub(crate) usage: Usage,
    scored: bool,
    /// Choices per prompt: they share the prompt's tokens, which count once.
    n: usize,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    calls: Option<CallReading>,
    /// One for each choice, if there may be calls.
    readers: Vec<CallReader>,
    /// Calls of each choice so far.
    called: Vec<usize>,
    /// The text of each prompt, if it is to stand before the answer.
    echo: Vec<String>,
}

/// What a [`Progress`] is made of.
pub(crate) struct ProgressParts {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) observation: Arc<Observation>,
    /// Whether log-probabilities were asked for.
    pub(crate) scored: bool,
    pub(crate) choices: usize,
    /// Choices per prompt.
    pub(crate) n: usize,
    pub(crate) calls: Option<CallReading>,
    pub(crate) echo: Vec<String>,
}

impl Progress {
    /// Nothing has come yet.
    pub(crate) fn new(parts: ProgressParts) -> Self {
        let ProgressParts {
            tokenizer,
            observation,
            scored,
            choices,
            n,
            calls,
            echo,
        } = parts;
        Self {
            tokenizer,
            observation,
            usage: Usage::default(),
            scored,
            n,
            offsets: vec![0; choices],
            readers: match calls {
                Some(calls) => vec![CallReader::new(calls.style); choices],
                None => Vec::new(),
            },
            called: vec![0; choices],
            calls,
            echo,
        }
    }

    /// The text that stands before a choice's answer, if it was asked for.
    pub(crate) fn echo(&self, index: usize) -> Option<&str> {
        self.echo.get(index / self.n).map(String::as_str)
    }

    /// What an event adds to its choice.
    ///
    /// # Errors
    /// If the engine could not go on.
    pub(crate) fn piece(&mut self, index: usize, event: GenerateEvent) -> Result<Piece, ApiError> {
        let mut piece = Piece {
            offset: self.offsets[index],
            ..Piece::default()
        };
        match event {
            GenerateEvent::Token {
                id,
                text,
                logprob,
                top,
            } => {
                self.observation.token(index);
                self.observation.answered(index, &text, false);
                self.read(index, &text, &mut piece);
                // The end of the turn is not part of the text.
                let ends = self.tokenizer.end_of_generation_ids().contains(&id);
                if let Some(token) = logprob.filter(|_| self.scored && !ends) {
                    self.offsets[index] += token.text.chars().count();
                    piece.scored = Some(vec![Scored { token, top }]);
                }
            }
            GenerateEvent::Finished {
                reason,
                text,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => {
                self.observation.answered(index, &text, true);
                self.read(index, &text, &mut piece);
                self.end(index, reason, &mut piece)?;
                self.usage.completion += completion_tokens;
                if index.is_multiple_of(self.n) {
                    self.usage.prompt += prompt_tokens;
                    self.usage.cached += cached_tokens;
                }
            }
            GenerateEvent::Failed(message) => {
                tracing::error!(message, "generation failed");
                return Err(ApiError::Internal(format!("generation failed: {message}")));
            }
        }
        Ok(piece)
    }

    /// New text of a choice: text, or calls in it.
    fn read(&mut self, index: usize, text: &str, piece: &mut Piece) {
        let Some(reader) = self.readers.get_mut(index) else {
            piece.text.push_str(text);
            return;
        };
        let parts = reader.push(text);
        self.take(index, parts, piece);
    }

    fn take(&mut self, index: usize, parts: Vec<Part>, piece: &mut Piece) {
        for part in parts {
            let called = &mut self.called[index];
            match part {
                Part::Text(text) => piece.text.push_str(&text),
                Part::Call(name) => {
                    let id = format!("call_{:024x}", rand::random::<u128>() >> 32);
                    piece.calls.push(CallDelta {
                        index: *called,
                        opens: Some((id, name)),
                        arguments: String::new(),
                    });
                    *called += 1;
                }
                Part::Arguments(arguments) => piece.calls.push(CallDelta {
                    index: called.saturating_sub(1),
                    opens: None,
                    arguments,
                }),
            }
        }
    }

    fn end(
        &mut self,
        index: usize,
        reason: FinishReason,
        piece: &mut Piece,
    ) -> Result<(), ApiError> {
        if let Some(reader) = self.readers.get_mut(index) {
            let parts = reader.finish();
            self.take(index, parts, piece);
        }
        let called = self.called[index] > 0 && self.calls.is_some_and(|calls| !calls.named);
        piece.reason = Some(match reason {
            FinishReason::Stop if called => Reason::ToolCalls,
            FinishReason::Stop => Reason::Stop,
            FinishReason::Length => Reason::Length,
            FinishReason::Grammar => {
                let param = match self.calls {
                    Some(_) => "tools",
                    None => "response_format",
                };
                let message = "the schema became too complex while the answer was generated; \
                               make it simpler";
                return Err(ApiError::field(param, message));
            }
        });
        Ok(())
    }

    /// Reports the figures of a request that ran to its end.
    pub(crate) fn finish(&self) {
        self.observation
            .set_tokens(self.usage.prompt, self.usage.completion);
    }
}

/// Reads a job to its end: its choices, whole.
///
/// # Errors
/// If the engine could not go on.
pub(crate) async fn choices(job: &mut Job) -> Result<Vec<Piece>, ApiError> {
    let empty = |index| Piece {
        text: job.progress.echo(index).unwrap_or_default().to_string(),
        scored: job.progress.scored.then(Vec::new),
        ..Piece::default()
    };
    let mut choices: Vec<Piece> = (0..job.choices).map(empty).collect();
    while let Some((index, event)) = job.events.next().await {
        let piece = job.progress.piece(index, event)?;
        choices[index].extend(piece);
    }
    job.progress.finish();
    Ok(choices)
}
