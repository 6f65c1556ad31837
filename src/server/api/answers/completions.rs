//! Answers of chat completions and completions, whole and in chunks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// The fields that all answers and chunks of one request share.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Head<O> {
    /// The answer's id.
    pub(crate) id: String,
    /// The kind of object.
    pub(crate) object: O,
    /// When it was created, in Unix seconds.
    pub(crate) created: u64,
    /// `model` as it was sent.
    pub(crate) model: String,
    /// Base model and generation that answered.
    pub(crate) system_fingerprint: String,
}

/// The `object` of a chat completion.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) enum ChatObject {
    /// A whole answer.
    #[serde(rename = "chat.completion")]
    Whole,
}

/// The `object` of a completion.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) enum TextObject {
    /// A whole answer or a part of one.
    #[serde(rename = "text_completion")]
    Text,
}

/// The `object` of a part of a chat completion.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) enum ChunkObject {
    /// A part of an answer.
    #[serde(rename = "chat.completion.chunk")]
    Chunk,
}

/// A whole answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ChatCompletion {
    /// Id, model, generation.
    #[serde(flatten)]
    pub(crate) head: Head<ChatObject>,
    /// As many as `n` asks for.
    pub(crate) choices: Vec<ChatChoice>,
    /// Token counts of the whole request.
    pub(crate) usage: Usage,
    /// Of the prompt's tokens, `null` of the first: by token id, the log-probability, the rank and the text
    /// of the token and of the most likely ones. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<Vec<Value>>,
    /// Ids of the prompt's tokens. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}

/// A whole completion of one or more texts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Completion {
    /// Id, model, generation.
    #[serde(flatten)]
    pub(crate) head: Head<TextObject>,
    /// As many as prompts times `n`.
    pub(crate) choices: Vec<TextChoice>,
    /// Token counts of the whole request.
    pub(crate) usage: Usage,
}

/// A part of a streamed answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Chunk<O, C> {
    /// Id, model, generation.
    #[serde(flatten)]
    pub(crate) head: Head<O>,
    /// New output of choices; empty in the last chunk if that contains the usage.
    pub(crate) choices: Vec<C>,
    /// Only if requested; `null` except in the last chunk, unless every chunk was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Usage>")]
    pub(crate) usage: Option<Option<Usage>>,
    /// Ids of the prompt's tokens, in the first chunk of each choice. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Reason {
    /// The model ended its turn, or generated a stop string.
    Stop,
    /// The maximum number of tokens, or the context, was reached.
    Length,
    /// The model calls functions.
    ToolCalls,
}

/// A choice of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ChatChoice {
    /// Position among the choices, from 0.
    pub(crate) index: usize,
    /// The model's message.
    pub(crate) message: AnswerMessage,
    /// Only if requested.
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// Why the choice ended.
    pub(crate) finish_reason: Option<Reason>,
    /// What the finished answer violates of its JSON schema, or why that is not known; omitted otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema_notice: Option<String>,
    /// The stop string, or the id of the stop token, that ended it; omitted if none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<Value>,
    /// Ids of its tokens. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// The model's message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct AnswerMessage {
    /// `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub(crate) role: &'static str,
    /// The text; `null` if it only calls functions.
    pub(crate) content: Option<String>,
    /// What the model thought before its text; omitted if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    /// Always `null`.
    pub(crate) refusal: Option<String>,
    /// Function calls; omitted if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<CallMade>,
}

/// A call of a function that the model made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct CallMade {
    /// Id to refer to in the message that returns the result.
    pub(crate) id: String,
    /// `function`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub(crate) kind: &'static str,
    /// The function and its arguments.
    pub(crate) function: FunctionCalled,
}

/// The called function and its arguments.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct FunctionCalled {
    /// The function's name.
    pub(crate) name: String,
    /// The text of a JSON object.
    pub(crate) arguments: String,
}

/// A choice's part in a chunk of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ChatDelta {
    /// Position among the choices, from 0.
    pub(crate) index: usize,
    /// The new output.
    pub(crate) delta: Delta,
    /// Only if requested.
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// Why the choice ended; `null` while it continues.
    pub(crate) finish_reason: Option<Reason>,
    /// What the finished answer violates of its JSON schema, or why that is not known; omitted otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema_notice: Option<String>,
    /// The stop string, or the id of the stop token, that ended it; omitted if none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<Value>,
    /// Ids of its tokens. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// What a chunk adds to a choice.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Delta {
    /// Only in a choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    /// More of what the model thinks before its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    /// Calls, or more of their arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<CallPart>,
}

/// A call, or more of its arguments.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct CallPart {
    /// Only in the chunk in which the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// Only in the chunk in which the call begins.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    /// Its name, where it begins, and more of its arguments.
    pub(crate) function: FunctionPart,
    /// Its position among the choice's calls.
    pub(crate) index: usize,
}

/// The name of a function where a call begins, and more of the arguments.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct FunctionPart {
    /// The function's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// More of the text of a JSON object.
    pub(crate) arguments: String,
}

/// A choice of a completion, or its part in a chunk.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TextChoice {
    /// Position among the choices, from 0.
    pub(crate) index: usize,
    /// The text, preceded by the prompt if `echo` is set.
    pub(crate) text: String,
    /// Only if requested.
    pub(crate) logprobs: Option<TextLogprobs>,
    /// Of the prompt's tokens, `null` of the first: by token id, the log-probability, the rank and the text
    /// of the token and of the most likely ones. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<Vec<Value>>,
    /// Why the choice ended.
    pub(crate) finish_reason: Option<Reason>,
    /// What the finished answer violates of its JSON schema, or why that is not known; omitted otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema_notice: Option<String>,
    /// The stop string, or the id of the stop token, that ended it; omitted if none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<Value>,
    /// Ids of its tokens. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
    /// Ids of the prompt's tokens. Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ChatLogprobs {
    /// One entry per token.
    pub(crate) content: Vec<ScoredToken>,
    /// Always `null`.
    pub(crate) refusal: Option<String>,
}

/// A sampled token and its alternatives.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ScoredToken {
    /// The token.
    #[serde(flatten)]
    pub(crate) token: TokenScore,
    /// The most probable tokens.
    pub(crate) top_logprobs: Vec<TokenScore>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TokenScore {
    /// Its text.
    pub(crate) token: String,
    /// Natural logarithm; -9999 stands for values that JSON cannot express.
    pub(crate) logprob: f64,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// Log-probabilities of a completion.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TextLogprobs {
    /// The tokens.
    pub(crate) tokens: Vec<String>,
    /// One per token; `null` of an echoed prompt's first.
    pub(crate) token_logprobs: Vec<Option<f64>>,
    /// The most probable tokens and the sampled one, by their text; `null` of an echoed prompt's first.
    #[schemars(with = "Vec<Option<BTreeMap<String, f64>>>")]
    pub(crate) top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Offset of each token in the text, in characters.
    pub(crate) text_offset: Vec<usize>,
}

/// Token counts of a whole request.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompts.
    pub(crate) prompt_tokens: usize,
    /// Tokens of the answers.
    pub(crate) completion_tokens: usize,
    /// Sum of both.
    pub(crate) total_tokens: usize,
    /// More about the prompts.
    pub(crate) prompt_tokens_details: PromptDetails,
    /// More about the answers; omitted if no model thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion_tokens_details: Option<CompletionDetails>,
}

/// More about a request's answers.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct CompletionDetails {
    /// Tokens of thoughts.
    pub(crate) reasoning_tokens: usize,
}

/// More about a request's prompts.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct PromptDetails {
    /// Prompt tokens found in the prefix cache.
    pub(crate) cached_tokens: usize,
}
