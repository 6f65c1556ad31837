//! Progress of an answer: turns the engine's events into output of its choices.

use std::sync::Arc;

use super::AppState;
use super::answers::completions::Reason;
use super::error::ApiError;
use super::observe::Observation;
use super::prompt_scores::PromptScores;
use super::run::ActiveRequest;
use super::thinking::Thinking;
use super::tool_calls::{CallParser, ParsedPart};
use super::tools::{Checks, Tools};
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

/// What encloses a call that is written with tags. JSON has no line break inside of strings.
const TAGS: (&str, &str) = ("<tool_call>", "\n</tool_call>");

impl CallOptions {
    pub(crate) fn new(tools: &Tools, state: &AppState) -> Option<Self> {
        tools.callable().then(|| Self {
            style: state.chat.call_style(),
            named: tools.is_named(),
        })
    }

    /// The tags of calls of which the answer may have several, and should not have the same twice.
    pub(crate) fn repeatable(&self) -> Option<(&'static str, &'static str)> {
        match self.style {
            CallStyle::Tagged => Some(TAGS),
            CallStyle::Bare => None,
        }
    }
}

/// The progress of a request's choices.
pub(crate) struct Progress {
    pub(crate) settings: ProgressSettings,
    pub(crate) usage: Usage,
    /// Tokens generated so far, of all choices.
    generated: usize,
    /// Characters generated so far, per choice.
    offsets: Vec<usize>,
    /// One per choice if the model may think, otherwise empty.
    thinking: Vec<Thinking>,
    /// One per choice if there may be calls, otherwise empty.
    parsers: Vec<CallParser>,
    /// Number of calls so far, per choice.
    called: Vec<usize>,
    /// The answers so far, if they are to be checked, otherwise empty.
    answers: Vec<ChoiceOutput>,
}

/// What [`Progress`] needs to know about a request.
pub(crate) struct ProgressSettings {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) observation: Arc<Observation>,
    /// Whether log-probabilities were requested.
    pub(crate) scored: bool,
    /// Alternatives to each token that were requested.
    pub(crate) top: usize,
    pub(crate) choices: usize,
    /// Choices per prompt: they share the prompt's tokens, which are counted once.
    pub(crate) n: usize,
    /// How calls are parsed, if there may be any.
    pub(crate) calls: Option<CallOptions>,
    /// The text of each prompt, if it is to be repeated before the answer.
    pub(crate) echo: Vec<String>,
    /// How the thoughts are told from the answer, of a model that thinks.
    pub(crate) thinking: Option<Thinking>,
    /// How likely the prompts' tokens are.
    pub(crate) prompt: PromptScores,
    /// What finished answers are checked against.
    pub(crate) checks: Option<Arc<Checks>>,
    /// The field that the answer's constraint came in.
    pub(crate) constraint_field: &'static str,
    /// Each prompt's tokens, if the answer has the ids of tokens.
    pub(crate) prompt_ids: Option<Vec<Vec<u32>>>,
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: usize,
}

impl Progress {
    /// Nothing has been generated yet.
    pub(crate) fn new(settings: ProgressSettings) -> Self {
        let choices = settings.choices;
        Self {
            usage: Usage::default(),
            generated: 0,
            offsets: vec![0; choices],
            parsers: match settings.calls {
                Some(calls) => vec![CallParser::new(calls.style); choices],
                None => Vec::new(),
            },
            called: vec![0; choices],
            answers: match settings.checks {
                Some(_) => vec![ChoiceOutput::default(); choices],
                None => Vec::new(),
            },
            thinking: settings
                .thinking
                .iter()
                .cycle()
                .take(choices)
                .cloned()
                .collect(),
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

    /// The tokens of a choice's prompt, if they were requested.
    pub(crate) fn prompt_ids(&self, index: usize) -> Option<&Vec<u32>> {
        let all = self.settings.prompt_ids.as_ref()?;
        all.get(index / self.settings.n)
    }

    /// The token counts of the answer as far as it has come. Which of the prompt's tokens were cached
    /// is known when a choice ends.
    pub(crate) fn so_far(&self) -> Usage {
        Usage {
            prompt: self.settings.prompt_tokens,
            completion: self.generated,
            ..self.usage
        }
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
                self.generated += 1;
                output.token_ids = self.settings.prompt_ids.as_ref().map(|_| vec![id]);
                let text = self.think(index, &text, &mut output);
                self.settings.observation.add_text(index, &text, false);
                self.read(index, &text, &mut output);
                // The end of the turn is not part of the text.
                let ends = self
                    .settings
                    .tokenizer
                    .end_of_generation_ids()
                    .contains(&id);
                // Behind an echoed prompt every generated token is reported: harnesses count entries.
                let reported = !ends || self.settings.prompt.is_given();
                if let Some(token) = logprob.filter(|_| self.settings.scored && reported) {
                    self.offsets[index] += token.text.chars().count();
                    output.scored = Some(vec![Scored { token, top }]);
                }
            }
            GenerateEvent::Finished {
                reason,
                stopped_by,
                text,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => {
                let mut text = self.think(index, &text, &mut output);
                if let Some(thinking) = self.thinking.get_mut(index) {
                    let last = thinking.finish();
                    self.settings
                        .observation
                        .add_thoughts(index, &last.thoughts);
                    output.thoughts.push_str(&last.thoughts);
                    text.push_str(&last.answer);
                }
                self.settings.observation.add_text(index, &text, true);
                self.read(index, &text, &mut output);
                self.end(index, reason, &mut output)?;
                output.stopped_by = stopped_by.filter(|_| reason == FinishReason::Stop);
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
        self.check(index, &mut output);
        Ok(output)
    }

    /// Checks an answer that ends with this output. One that is cut has no end to check.
    fn check(&mut self, index: usize, output: &mut ChoiceOutput) {
        let (Some(checks), Some(answer)) = (&self.settings.checks, self.answers.get_mut(index))
        else {
            return;
        };
        answer.extend(ChoiceOutput {
            text: output.text.clone(),
            calls: output.calls.clone(),
            ..ChoiceOutput::default()
        });
        if !matches!(output.reason, Some(Reason::Stop | Reason::ToolCalls)) {
            return;
        }
        let calls = answer.calls.iter().filter_map(|call| {
            let (_, name) = call.opens.as_ref()?;
            Some((name.as_str(), call.arguments.as_str()))
        });
        if let Some(found) = checks.answer(&answer.text, calls) {
            if found.invalid {
                self.settings
                    .observation
                    .add_invalid_answer(index, &found.text);
            }
            output.schema_notice = Some(found.text);
        }
    }

    /// Takes the thoughts out of new text of a choice; what is left is judged and answered.
    fn think(&mut self, index: usize, text: &str, output: &mut ChoiceOutput) -> String {
        let Some(thinking) = self.thinking.get_mut(index) else {
            return text.to_owned();
        };
        self.usage.reasoning += usize::from(thinking.thinks());
        let split = thinking.push(text);
        self.settings
            .observation
            .add_thoughts(index, &split.thoughts);
        output.thoughts.push_str(&split.thoughts);
        split.answer
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
                ParsedPart::Arguments(arguments) => {
                    let index = called.saturating_sub(1);
                    // Clients expect one entry per call in each chunk.
                    match output.calls.last_mut() {
                        Some(last) if last.index == index => last.arguments.push_str(&arguments),
                        _ => output.calls.push(CallDelta {
                            index,
                            opens: None,
                            arguments,
                        }),
                    }
                }
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
            let parts = parser.finish(reason == FinishReason::Length);
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
                    None => self.settings.constraint_field,
                };
                let message = "the constraint became too complex while the answer was generated, \
                               or allows nothing but what `bad_words` forbids; make it simpler";
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
    let settings = &active.progress.settings;
    let empty = |index: usize| {
        let echo = active.progress.echo(index);
        let prompt = index / settings.n;
        let echoed = || match echo {
            Some(_) => settings
                .prompt
                .echoed(prompt, settings.top, &settings.tokenizer),
            None => Vec::new(),
        };
        ChoiceOutput {
            text: echo.unwrap_or_default().to_string(),
            scored: settings.scored.then(echoed),
            prompt_logprobs: settings.prompt.alone(prompt, &settings.tokenizer),
            prompt_ids: active.progress.prompt_ids(index).cloned(),
            token_ids: settings.prompt_ids.as_ref().map(|_| Vec::new()),
            ..ChoiceOutput::default()
        }
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
