//! Answers of chat completions and completions, whole and in chunks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// The fields that all answers and chunks of one request share.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Head<O> {
    /// The answer's id.
    pub id: String,
    /// The kind of object.
    pub object: O,
    /// When it was created, in Unix seconds.
    pub created: u64,
    /// `model` as it was sent.
    pub model: String,
    /// Base model and generation that answered.
    pub system_fingerprint: String,
}

/// The `object` of a chat completion.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum ChatObject {
    /// A whole answer.
    #[serde(rename = "chat.completion")]
    Whole,
}

/// The `object` of a completion.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum TextObject {
    /// A whole answer or a part of one.
    #[serde(rename = "text_completion")]
    Text,
}

/// The `object` of a part of a chat completion.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum ChunkObject {
    /// A part of an answer.
    #[serde(rename = "chat.completion.chunk")]
    Chunk,
}

/// A whole answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatCompletion {
    /// Id, model, generation.
    #[serde(flatten)]
    pub head: Head<ChatObject>,
    /// As many as `n` asks for.
    pub choices: Vec<ChatChoice>,
    /// Token counts of the whole request.
    pub usage: Usage,
}

/// A whole completion of one or more texts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Completion {
    /// Id, model, generation.
    #[serde(flatten)]
    pub head: Head<TextObject>,
    /// As many as prompts times `n`.
    pub choices: Vec<TextChoice>,
    /// Token counts of the whole request.
    pub usage: Usage,
}

/// A part of a streamed answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Chunk<O, C> {
    /// Id, model, generation.
    #[serde(flatten)]
    pub head: Head<O>,
    /// New output of choices; empty in the last chunk if that contains the usage.
    pub choices: Vec<C>,
    /// Only if requested; `null` except in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Usage>")]
    pub usage: Option<Option<Usage>>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Reason {
    /// The model ended its turn, or generated a stop string.
    Stop,
    /// The maximum number of tokens, or the context, was reached.
    Length,
    /// The model calls functions.
    ToolCalls,
}

/// A choice of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatChoice {
    /// Position among the choices, from 0.
    pub index: usize,
    /// The model's message.
    pub message: AnswerMessage,
    /// Only if requested.
    pub logprobs: Option<ChatLogprobs>,
    /// Why the choice ended.
    pub finish_reason: Option<Reason>,
}

/// The model's message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AnswerMessage {
    /// `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// The text; `null` if it only calls functions.
    pub content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
    /// Function calls; omitted if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallMade>,
}

/// A call of a function that the model made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CallMade {
    /// Id to refer to in the message that returns the result.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub kind: &'static str,
    /// The function and its arguments.
    pub function: FunctionCalled,
}

/// The called function and its arguments.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct FunctionCalled {
    /// The function's name.
    pub name: String,
    /// The text of a JSON object.
    pub arguments: String,
}

/// A choice's part in a chunk of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatDelta {
    /// Position among the choices, from 0.
    pub index: usize,
    /// The new output.
    pub delta: Delta,
    /// Only if requested.
    pub logprobs: Option<ChatLogprobs>,
    /// Why the choice ended; `null` while it continues.
    pub finish_reason: Option<Reason>,
}

/// What a chunk adds to a choice.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Delta {
    /// Only in a choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Calls, or more of their arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallPart>,
}

/// A call, or more of its arguments.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CallPart {
    /// Only in the chunk in which the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Only in the chunk in which the call begins.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Its name, where it begins, and more of its arguments.
    pub function: FunctionPart,
    /// Its position among the choice's calls.
    pub index: usize,
}

/// The name of a function where a call begins, and more of the arguments.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct FunctionPart {
    /// The function's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the text of a JSON object.
    pub arguments: String,
}

/// A choice of a completion, or its part in a chunk.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TextChoice {
    /// Position among the choices, from 0.
    pub index: usize,
    /// The text, preceded by the prompt if `echo` is set.
    pub text: String,
    /// Only if requested.
    pub logprobs: Option<TextLogprobs>,
    /// Why the choice ended.
    pub finish_reason: Option<Reason>,
}

/// Log-probabilities of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ScoredToken>,
    /// Always `null`.
    pub refusal: Option<String>,
}

/// A sampled token and its alternatives.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ScoredToken {
    /// The token.
    #[serde(flatten)]
    pub token: TokenScore,
    /// The most probable tokens.
    pub top_logprobs: Vec<TokenScore>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TokenScore {
    /// Its text.
    pub token: String,
    /// Natural logarithm; -9999 stands for values that JSON cannot express.
    pub logprob: f64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Log-probabilities of a completion.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TextLogprobs {
    /// The tokens.
    pub tokens: Vec<String>,
    /// One per token.
    pub token_logprobs: Vec<f64>,
    /// The most probable tokens and the sampled one, by their text.
    #[schemars(with = "Vec<BTreeMap<String, f64>>")]
    pub top_logprobs: Vec<Map<String, Value>>,
    /// Offset of each token in the text, in characters.
    pub text_offset: Vec<usize>,
}

/// Token counts of a whole request.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens of the answers.
    pub completion_tokens: usize,
    /// Sum of both.
    pub total_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptDetails,
}

/// More about a request's prompts.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct PromptDetails {
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
}
