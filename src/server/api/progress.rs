//! Progress of an answer: turns the engine's events into output of its choices.

use std::sync::Arc;

use super::AppState;
use super::answers::completions::Reason;
use super::error::ApiError;
use super::observe::Observation;
use super::run::ActiveRequest;
use super::tool_calls::{CallParser, ParsedPart};
use super::tools::{ToolChoice, Tools};
use super::wire::{CallDelta, ChoiceOutput, Scored, Usage};
use realign_engine::request::{FinishReason, GenerateEvent};
use realign_model::{CallStyle, Tokenizer};

/// How calls in an answer are parsed and reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallOptions {
    style: CallStyle,
    /// The client named the function, so the finish reason is `stop` rather than `tool_calls`.
    named: bool,
}

impl CallOptions {
    pub(crate) fn new(tools: &Tools, state: &AppState) -> Option<Self> {
        tools.callable().then(|| Self {
            style: state.chat.call_style(),
            named: matches!(tools.choice, ToolChoice::Named(_)),
        })
    }
}

/// The progress of a request's choices.
pub(crate) struct Progress {
    pub(crate) settings: ProgressSettings,
    pub(crate) usage: Usage,
    /// Characters generated so far, per choice.
    offsets: Vec<usize>,
    /// One per choice if there may be calls, otherwise empty.
    parsers: Vec<CallParser>,
    /// Number of calls so far, per choice.
    called: Vec<usize>,
}

/// What [`Progress`] needs to know about a request.
pub(crate) struct ProgressSettings {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) observation: Arc<Observation>,
    /// Whether log-probabilities were requested.
    pub(crate) scored: bool,
    pub(crate) choices: usize,
    /// Choices per prompt: they share the prompt's tokens, which are counted once.
    pub(crate) n: usize,
    /// How calls are parsed, if there may be any.
    pub(crate) calls: Option<CallOptions>,
    /// The text of each prompt, if it is to be repeated before the answer.
    pub(crate) echo: Vec<String>,
}

impl Progress {
    /// Nothing has been generated yet.
    pub(crate) fn new(settings: ProgressSettings) -> Self {
        let choices = settings.choices;
        Self {
            usage: Usage::default(),
            offsets: vec![0; choices],
            parsers: match settings.calls {
                Some(calls) => vec![CallParser::new(calls.style); choices],
                None => Vec::new(),
            },
            called: vec![0; choices],
            settings,
        }
    }

    /// The prompt's text to repeat before a choice's answer, if that was requested.
    pub(crate) fn echo(&self, index: usize) -> Option<&str> {
        self.settings
            .echo
            .get(index / self.settings.n)
            .map(String::as_str)
    }

    /// Applies an event of choice `index` and returns what it adds to the choice.
    ///
    /// # Errors
    /// If generation failed.
    pub(crate) fn apply(
        &mut self,
        index: usize,
        event: GenerateEvent,
    ) -> Result<ChoiceOutput, ApiError> {
        let mut output = ChoiceOutput {
            offset: self.offsets[index],
            ..ChoiceOutput::default()
        };
        match event {
            GenerateEvent::Token {
                id,
                text,
                logprob,
                top,
            } => {
                self.settings.observation.add_token(index);
                self.settings.observation.add_text(index, &text, false);
                self.read(index, &text, &mut output);
                // The end of the turn is not part of the text.
                let ends = self
                    .settings
                    .tokenizer
                    .end_of_generation_ids()
                    .contains(&id);
                if let Some(token) = logprob.filter(|_| self.settings.scored && !ends) {
                    self.offsets[index] += token.text.chars().count();
                    output.scored = Some(vec![Scored { token, top }]);
                }
            }
            GenerateEvent::Finished {
                reason,
                text,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => {
                self.settings.observation.add_text(index, &text, true);
                self.read(index, &text, &mut output);
                self.end(index, reason, &mut output)?;
                self.usage.completion += completion_tokens;
                if index.is_multiple_of(self.settings.n) {
                    self.usage.prompt += prompt_tokens;
                    self.usage.cached += cached_tokens;
                }
            }
            GenerateEvent::Failed(message) => {
                tracing::error!(message, "generation failed");
                return Err(ApiError::Internal(format!("generation failed: {message}")));
            }
        }
        Ok(output)
    }

    /// Adds new text of a choice, parsing calls in it.
    fn read(&mut self, index: usize, text: &str, output: &mut ChoiceOutput) {
        let Some(parser) = self.parsers.get_mut(index) else {
            output.text.push_str(text);
            return;
        };
        let parts = parser.push(text);
        self.take(index, parts, output);
    }

    fn take(&mut self, index: usize, parts: Vec<ParsedPart>, output: &mut ChoiceOutput) {
        for part in parts {
            let called = &mut self.called[index];
            match part {
                ParsedPart::Text(text) => output.text.push_str(&text),
                ParsedPart::Call(name) => {
                    let id = format!("call_{:024x}", rand::random::<u128>() >> 32);
                    output.calls.push(CallDelta {
                        index: *called,
                        opens: Some((id, name)),
                        arguments: String::new(),
                    });
                    *called += 1;
                }
                ParsedPart::Arguments(arguments) => output.calls.push(CallDelta {
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
        output: &mut ChoiceOutput,
    ) -> Result<(), ApiError> {
        if let Some(parser) = self.parsers.get_mut(index) {
            let parts = parser.finish();
            self.take(index, parts, output);
        }
        let called =
            self.called[index] > 0 && self.settings.calls.is_some_and(|calls| !calls.named);
        output.reason = Some(match reason {
            FinishReason::Stop if called => Reason::ToolCalls,
            FinishReason::Stop => Reason::Stop,
            FinishReason::Length => Reason::Length,
            FinishReason::Grammar => {
                let param = match self.settings.calls {
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

    /// Records the token counts of a completed request.
    pub(crate) fn finish(&self) {
        self.settings
            .observation
            .set_tokens(self.usage.prompt, self.usage.completion);
    }
}

/// Waits for the whole answer and returns its choices.
///
/// # Errors
/// If generation failed.
pub(crate) async fn choices(active: &mut ActiveRequest) -> Result<Vec<ChoiceOutput>, ApiError> {
    let empty = |index| ChoiceOutput {
        text: active.progress.echo(index).unwrap_or_default().to_string(),
        scored: active.progress.settings.scored.then(Vec::new),
        ..ChoiceOutput::default()
    };
    let mut choices: Vec<ChoiceOutput> = (0..active.choices).map(empty).collect();
    while let Some(next) = active.next().await {
        let (index, event) = next?;
        let output = active.progress.apply(index, event)?;
        choices[index].extend(output);
    }
    active.progress.finish();
    Ok(choices)
}
