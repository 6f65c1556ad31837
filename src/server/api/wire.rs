//! Converts the engine's output into answers, whole and in chunks.

use serde::Serialize;
use serde_json::{Map, Value};

use super::answers::completions::{
    AnswerMessage, CallMade, CallPart, ChatChoice, ChatCompletion, ChatDelta, ChatLogprobs,
    ChatObject, Chunk, ChunkObject, Completion, CompletionDetails, Delta, FunctionCalled,
    FunctionPart, Head, PromptDetails, Reason, ScoredToken, TextChoice, TextLogprobs, TextObject,
    TokenScore,
};
use super::answers::{completions, responses};
use realign_engine::request::{StoppedBy, TokenLogprob};
use realign_model::Tokenizer;

/// Stands for a log-probability that JSON cannot express, as with OpenAI.
const MIN_LOGPROB: f32 = -9999.0;

/// The endpoint of a request, which determines the format of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Text,
    /// Builds its own objects; see [`super::responses`].
    Response,
}

/// A token with its alternatives, as the engine reported it.
#[derive(Clone, Debug)]
pub(crate) struct Scored {
    pub(crate) token: TokenLogprob,
    pub(crate) top: Vec<TokenLogprob>,
}

/// Output of one choice: new output in a stream, or the whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChoiceOutput {
    pub(crate) text: String,
    /// What the model thought before its text.
    pub(crate) thoughts: String,
    /// Present if log-probabilities were requested.
    pub(crate) scored: Option<Vec<Scored>>,
    /// Number of characters before this output, for `text_offset`.
    pub(crate) offset: usize,
    pub(crate) reason: Option<Reason>,
    /// Calls of functions, or parts of them.
    pub(crate) calls: Vec<CallDelta>,
    /// How likely the prompt's tokens are, in vLLM's form.
    pub(crate) prompt_logprobs: Option<Vec<Value>>,
    /// What the check of the finished answer found.
    pub(crate) schema_notice: Option<String>,
    /// The prompt's tokens, if they were requested.
    pub(crate) prompt_ids: Option<Vec<u32>>,
    /// Its tokens, if they were requested.
    pub(crate) token_ids: Option<Vec<u32>>,
    /// The stop string or token that ended the choice.
    pub(crate) stopped_by: Option<StoppedBy>,
}

/// A call, or more of its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallDelta {
    /// Position among the choice's calls.
    pub(crate) index: usize,
    /// Id and name, where the call begins.
    pub(crate) opens: Option<(String, String)>,
    pub(crate) arguments: String,
}

impl ChoiceOutput {
    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
            && self.thoughts.is_empty()
            && self.scored.is_none()
            && self.token_ids.is_none()
            && self.reason.is_none()
            && self.calls.is_empty()
    }

    /// Appends the output that follows.
    pub(crate) fn extend(&mut self, next: ChoiceOutput) {
        self.text.push_str(&next.text);
        self.thoughts.push_str(&next.thoughts);
        self.reason = self.reason.or(next.reason);
        self.schema_notice = self.schema_notice.take().or(next.schema_notice);
        self.stopped_by = self.stopped_by.take().or(next.stopped_by);
        if let (Some(all), Some(new)) = (&mut self.token_ids, next.token_ids) {
            all.extend(new);
        }
        if let (Some(all), Some(new)) = (&mut self.scored, next.scored) {
            all.extend(new);
        }
        for call in next.calls {
            match self.calls.last_mut() {
                Some(last) if call.opens.is_none() => last.arguments.push_str(&call.arguments),
                _ => self.calls.push(call),
            }
        }
    }

    fn content(&self) -> Option<String> {
        let only_calls = self.text.is_empty() && !self.calls.is_empty();
        (!only_calls).then(|| self.text.clone())
    }

    fn stop_reason(&self) -> Option<Value> {
        match self.stopped_by.as_ref()? {
            StoppedBy::Text(stop) => Some(stop.as_str().into()),
            StoppedBy::Token(id) => Some((*id).into()),
        }
    }

    fn reasoning(&self) -> Option<String> {
        (!self.thoughts.is_empty()).then(|| self.thoughts.clone())
    }

    fn message(&self) -> AnswerMessage {
        AnswerMessage {
            role: "assistant",
            content: self.content(),
            reasoning_content: self.reasoning(),
            refusal: None,
            tool_calls: self.calls.iter().map(CallDelta::whole).collect(),
        }
    }

    fn delta(&self) -> Delta {
        let other = !self.calls.is_empty() || !self.thoughts.is_empty();
        let says_nothing = self.reason.is_some() || other;
        let shown = !self.text.is_empty() || !says_nothing;
        Delta {
            role: None,
            content: shown.then(|| self.text.clone()),
            reasoning_content: self.reasoning(),
            tool_calls: self.calls.iter().map(CallDelta::part).collect(),
        }
    }

    fn chat_logprobs(&self, tokenizer: &Tokenizer) -> Option<ChatLogprobs> {
        self.scored.as_ref()?;
        Some(ChatLogprobs {
            content: self.scored_tokens(tokenizer),
            refusal: None,
        })
    }

    /// Its tokens with their log-probabilities; none if they were not asked for.
    pub(crate) fn scored_tokens(&self, tokenizer: &Tokenizer) -> Vec<ScoredToken> {
        let entry = |s: &Scored| ScoredToken {
            token: score(&s.token, tokenizer),
            top_logprobs: s.top.iter().map(|t| score(t, tokenizer)).collect(),
        };
        self.scored.iter().flatten().map(entry).collect()
    }

    fn text_logprobs(&self) -> Option<TextLogprobs> {
        let scored = self.scored.as_ref()?;
        let mut at = self.offset;
        let mut text_offset = Vec::new();
        for s in scored {
            text_offset.push(at);
            at += s.token.text.chars().count();
        }
        let top = |s: &Scored| {
            if s.token.logprob.is_nan() {
                return None;
            }
            // The sampled token is always included, so there may be one more than requested.
            let all = s.top.iter().chain(std::iter::once(&s.token));
            let pairs = all.map(|t| (t.text.clone(), Value::from(finite(t.logprob))));
            Some(pairs.collect::<Map<_, _>>())
        };
        Some(TextLogprobs {
            tokens: scored.iter().map(|s| s.token.text.clone()).collect(),
            token_logprobs: scored.iter().map(|s| known(s.token.logprob)).collect(),
            top_logprobs: scored.iter().map(top).collect(),
            text_offset,
        })
    }
}

impl CallDelta {
    fn whole(&self) -> CallMade {
        let (id, name) = self.opens.clone().unwrap_or_default();
        CallMade {
            id,
            kind: "function",
            function: FunctionCalled {
                name,
                arguments: self.arguments.clone(),
            },
        }
    }

    fn part(&self) -> CallPart {
        let (id, name) = self.opens.clone().unzip();
        CallPart {
            kind: id.is_some().then_some("function"),
            id,
            function: FunctionPart {
                name,
                arguments: self.arguments.clone(),
            },
            index: self.index,
        }
    }
}

/// Tokens of the whole request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    /// Prompt tokens that the prefix cache held.
    pub(crate) cached: usize,
    pub(crate) completion: usize,
    /// Of those, tokens of thoughts.
    pub(crate) reasoning: usize,
}

/// The fields that all chunks of an answer share.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) endpoint: Endpoint,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

/// A whole answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum WholeAnswer {
    Chat(ChatCompletion),
    Text(Completion),
}

/// A part of a streamed answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum AnswerChunk {
    Chat(Chunk<ChunkObject, ChatDelta>),
    Text(Chunk<TextObject, TextChoice>),
}

impl Envelope {
    /// The whole answer.
    pub(crate) fn whole(
        &self,
        choices: &[ChoiceOutput],
        usage: Usage,
        tokenizer: &Tokenizer,
    ) -> WholeAnswer {
        let first = choices.first();
        let (prompt_token_ids, prompt_logprobs) = match first {
            Some(first) => (first.prompt_ids.clone(), first.prompt_logprobs.clone()),
            None => (None, None),
        };
        let choices = choices.iter().enumerate();
        match self.endpoint {
            Endpoint::Chat | Endpoint::Response => WholeAnswer::Chat(ChatCompletion {
                head: self.head(ChatObject::Whole),
                choices: choices.map(|(i, p)| chat_choice(i, p, tokenizer)).collect(),
                usage: usage.into(),
                prompt_logprobs,
                prompt_token_ids,
            }),
            Endpoint::Text => WholeAnswer::Text(Completion {
                head: self.head(TextObject::Text),
                choices: choices.map(|(i, p)| text_choice(i, p)).collect(),
                usage: usage.into(),
            }),
        }
    }

    /// The chunk with new output of a choice. `usage` is `None` if it was not requested.
    pub(crate) fn part(
        &self,
        index: usize,
        output: &ChoiceOutput,
        usage: Option<Option<Usage>>,
        tokenizer: &Tokenizer,
    ) -> AnswerChunk {
        match self.endpoint {
            Endpoint::Chat | Endpoint::Response => {
                let choice = ChatDelta {
                    index,
                    delta: output.delta(),
                    logprobs: output.chat_logprobs(tokenizer),
                    finish_reason: output.reason,
                    schema_notice: output.schema_notice.clone(),
                    stop_reason: output.stop_reason(),
                    token_ids: output.token_ids.clone(),
                };
                self.chat_part(vec![choice], usage, None)
            }
            Endpoint::Text => self.text_part(vec![text_choice(index, output)], usage),
        }
    }

    /// The final chunk, which contains the usage.
    pub(crate) fn usage(&self, usage: Usage) -> AnswerChunk {
        match self.endpoint {
            Endpoint::Chat | Endpoint::Response => {
                self.chat_part(Vec::new(), Some(Some(usage)), None)
            }
            Endpoint::Text => self.text_part(Vec::new(), Some(Some(usage))),
        }
    }

    /// The chunk that opens a choice, if the endpoint has one.
    pub(crate) fn opening(
        &self,
        index: usize,
        usage: Option<Option<Usage>>,
        prompt_ids: Option<&Vec<u32>>,
    ) -> Option<AnswerChunk> {
        let delta = Delta {
            role: Some("assistant"),
            content: Some(String::new()),
            reasoning_content: None,
            tool_calls: Vec::new(),
        };
        let choice = ChatDelta {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            schema_notice: None,
            stop_reason: None,
            token_ids: None,
        };
        match self.endpoint {
            Endpoint::Chat | Endpoint::Response => {
                Some(self.chat_part(vec![choice], usage, prompt_ids))
            }
            Endpoint::Text => None,
        }
    }

    fn chat_part(
        &self,
        choices: Vec<ChatDelta>,
        usage: Option<Option<Usage>>,
        prompt_ids: Option<&Vec<u32>>,
    ) -> AnswerChunk {
        AnswerChunk::Chat(Chunk {
            head: self.head(ChunkObject::Chunk),
            choices,
            usage: usage.map(|usage| usage.map(Into::into)),
            prompt_token_ids: prompt_ids.cloned(),
        })
    }

    fn text_part(&self, choices: Vec<TextChoice>, usage: Option<Option<Usage>>) -> AnswerChunk {
        AnswerChunk::Text(Chunk {
            head: self.head(TextObject::Text),
            choices,
            usage: usage.map(|usage| usage.map(Into::into)),
            prompt_token_ids: None,
        })
    }

    fn head<O>(&self, object: O) -> Head<O> {
        Head {
            id: self.id.clone(),
            object,
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
        }
    }
}

impl From<Usage> for completions::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cached,
            },
            completion_tokens_details: (usage.reasoning > 0).then_some(CompletionDetails {
                reasoning_tokens: usage.reasoning,
            }),
        }
    }
}

impl From<Usage> for responses::ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt,
            input_tokens_details: responses::InputDetails {
                cached_tokens: usage.cached,
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion,
            output_tokens_details: responses::OutputDetails {
                reasoning_tokens: usage.reasoning,
            },
            total_tokens: usage.prompt + usage.completion,
        }
    }
}

impl Endpoint {
    /// The field that contains the prompt, and the prefix of ids.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Endpoint::Chat => ("messages", "chatcmpl-"),
            Endpoint::Text => ("prompt", "cmpl-"),
            Endpoint::Response => ("input", "resp_"),
        }
    }
}

fn chat_choice(index: usize, output: &ChoiceOutput, tokenizer: &Tokenizer) -> ChatChoice {
    ChatChoice {
        index,
        message: output.message(),
        logprobs: output.chat_logprobs(tokenizer),
        finish_reason: output.reason,
        schema_notice: output.schema_notice.clone(),
        stop_reason: output.stop_reason(),
        token_ids: output.token_ids.clone(),
    }
}

fn text_choice(index: usize, output: &ChoiceOutput) -> TextChoice {
    TextChoice {
        index,
        text: output.text.clone(),
        logprobs: output.text_logprobs(),
        prompt_logprobs: output.prompt_logprobs.clone(),
        finish_reason: output.reason,
        schema_notice: output.schema_notice.clone(),
        stop_reason: output.stop_reason(),
        prompt_token_ids: output.prompt_ids.clone(),
        token_ids: output.token_ids.clone(),
    }
}

fn score(token: &TokenLogprob, tokenizer: &Tokenizer) -> TokenScore {
    TokenScore {
        token: token.text.clone(),
        logprob: finite(token.logprob),
        bytes: tokenizer.token_bytes(token.id).to_vec(),
    }
}

/// `None` of a prompt's first token, which nothing predicts.
fn known(logprob: f32) -> Option<f64> {
    (!logprob.is_nan()).then(|| finite(logprob))
}

fn finite(logprob: f32) -> f64 {
    let finite = if logprob.is_nan() {
        MIN_LOGPROB
    } else {
        logprob.clamp(MIN_LOGPROB, 0.0)
    };
    f64::from(finite)
}
