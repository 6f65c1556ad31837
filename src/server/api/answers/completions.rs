//! What chat completions and completions answer, whole and in chunks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// What all answers to one request begin with.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Head<O> {
    /// The answer's id.
    pub id: String,
    /// Which kind of object it is.
    pub object: O,
    /// When it was made, in Unix seconds.
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
    /// Tokens of the whole request.
    pub usage: Usage,
}

/// A whole continuation of one or more texts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Completion {
    /// Id, model, generation.
    #[serde(flatten)]
    pub head: Head<TextObject>,
    /// As many as prompts times `n`.
    pub choices: Vec<TextChoice>,
    /// Tokens of the whole request.
    pub usage: Usage,
}

/// A part of a streamed answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Chunk<O, C> {
    /// Id, model, generation.
    #[serde(flatten)]
    pub head: Head<O>,
    /// What choices go on with; none in the last chunk, if that tells the usage.
    pub choices: Vec<C>,
    /// Only if it was asked for, and `null` but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Usage>")]
    pub usage: Option<Option<Usage>>,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Reason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// As many tokens as were asked for, or as fit.
    Length,
    /// The model calls functions.
    ToolCalls,
}

/// A choice of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatChoice {
    /// From 0.
    pub index: usize,
    /// What the model said.
    pub message: AnswerMessage,
    /// Only if they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<Reason>,
}

/// What the model said.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AnswerMessage {
    /// `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// The text; `null` if it only calls functions.
    pub content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
    /// Calls of functions; left out if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallMade>,
}

/// A call of a function that the model made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CallMade {
    /// For the message that returns the result.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub kind: &'static str,
    /// Which function, and with what.
    pub function: FunctionCalled,
}

/// Which function is called, and with what.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct FunctionCalled {
    /// The function.
    pub name: String,
    /// The text of a JSON object.
    pub arguments: String,
}

/// A choice's part in a chunk of an answer to a conversation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatDelta {
    /// From 0.
    pub index: usize,
    /// What is added.
    pub delta: Delta,
    /// Only if they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended, if it does.
    pub finish_reason: Option<Reason>,
}

/// What a chunk adds to a choice.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Delta {
    /// In a choice's first chunk.
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
    /// Where the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where the call begins.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Its name where it begins, and arguments.
    pub function: FunctionPart,
    /// Its position among the choice's calls.
    pub index: usize,
}

/// The name of a function where a call begins, and more of the arguments.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct FunctionPart {
    /// The function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the text of a JSON object.
    pub arguments: String,
}

/// A choice of a continued text, or its part in a chunk.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TextChoice {
    /// From 0.
    pub index: usize,
    /// The text, after the prompt if `echo` asks for that.
    pub text: String,
    /// Only if they were asked for.
    pub logprobs: Option<TextLogprobs>,
    /// Why it ended.
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

/// A token that was drawn, and its alternatives.
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
    /// -9999 stands for what JSON cannot express.
    pub logprob: f64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Log-probabilities of a continued text.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TextLogprobs {
    /// The tokens.
    pub tokens: Vec<String>,
    /// One per token.
    pub token_logprobs: Vec<f64>,
    /// The most probable tokens and the drawn one, by their text.
    #[schemars(with = "Vec<BTreeMap<String, f64>>")]
    pub top_logprobs: Vec<Map<String, Value>>,
    /// Where each token begins, in characters.
    pub text_offset: Vec<usize>,
}

/// Tokens of a whole request.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Usage {
    /// Of the prompts.
    pub prompt_tokens: usize,
    /// Of the answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptDetails,
}

/// More about a request's prompts.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct PromptDetails {
    /// Those that the prefix cache held.
    pub cached_tokens: usize,
}
