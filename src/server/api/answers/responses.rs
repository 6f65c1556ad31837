//! Answers of `POST /v1/responses`, whole and as events.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::completions::ScoredToken;

/// A response. The fields after `usage` repeat the request, with the defaults that were used.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Response {
    /// The response's id.
    pub(crate) id: String,
    /// `response`.
    #[schemars(extend("const" = "response"))]
    pub(crate) object: &'static str,
    /// When it was created, in Unix seconds.
    pub(crate) created_at: u64,
    /// Whether it has ended, and how.
    pub(crate) status: Status,
    /// The error; `null` unless the status is `failed`.
    pub(crate) error: Option<ResponseError>,
    /// Why the response is incomplete; `null` unless the status is `incomplete`.
    pub(crate) incomplete_details: Option<Incomplete>,
    /// `model` as it was sent.
    pub(crate) model: String,
    /// Base model and generation that answered.
    pub(crate) system_fingerprint: String,
    /// Thoughts, messages and function calls.
    pub(crate) output: Vec<Item>,
    /// Token counts of the whole request; `null` while it is in progress.
    pub(crate) usage: Option<ResponseUsage>,
    /// What the finished answer violates of its JSON schema, or why that is not known; omitted otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schema_notice: Option<String>,
    /// Fields repeated from the request.
    #[serde(flatten)]
    pub(crate) echoed: Echoed,
}

/// The status of a response or an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Status {
    /// It is being generated.
    InProgress,
    /// It is complete.
    Completed,
    /// It was cut off.
    Incomplete,
    /// Generation failed.
    Failed,
}

/// The error of a failed response.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct ResponseError {
    /// `server_error`.
    pub(crate) code: &'static str,
    /// The error message.
    pub(crate) message: String,
}

/// Why a response is not complete.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct Incomplete {
    /// `max_output_tokens`.
    pub(crate) reason: &'static str,
}

/// The fields that a response repeats from its request.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Echoed {
    /// Always false: responses are not generated in the background.
    pub(crate) background: bool,
    /// As sent.
    #[schemars(with = "Option<String>")]
    pub(crate) instructions: Value,
    /// As sent.
    pub(crate) max_output_tokens: Option<usize>,
    /// As sent.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub(crate) metadata: Value,
    /// As sent, or true.
    #[schemars(with = "bool")]
    pub(crate) parallel_tool_calls: Value,
    /// As sent.
    pub(crate) previous_response_id: Option<String>,
    /// What was asked of the thoughts.
    pub(crate) reasoning: Reasoning,
    /// Whether the response can be continued with `previous_response_id`.
    pub(crate) store: bool,
    /// As sent, or 0.
    pub(crate) top_logprobs: usize,
    /// As sent, or 1.
    #[schemars(with = "f64")]
    pub(crate) temperature: Value,
    /// As sent, or plain text.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub(crate) text: Value,
    /// As sent, or `auto`.
    pub(crate) tool_choice: Value,
    /// As sent.
    #[schemars(with = "Vec<Value>")]
    pub(crate) tools: Value,
    /// As sent, or 1.
    #[schemars(with = "f64")]
    pub(crate) top_p: Value,
    /// `disabled`.
    pub(crate) truncation: &'static str,
    /// As sent.
    pub(crate) user: Value,
}

/// What was asked of the thoughts.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct Reasoning {
    /// As sent.
    pub(crate) effort: Option<&'static str>,
    /// Always `null`.
    pub(crate) summary: Option<String>,
}

/// An item of a response's output.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Item {
    /// Text.
    Message(MessageItem),
    /// A call of a function.
    Call(CallItem),
    /// What the model thought.
    Reasoning(ReasoningItem),
}

/// What the model thought before its answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ReasoningItem {
    /// The item's id.
    pub(crate) id: String,
    /// `reasoning`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "reasoning"))]
    pub(crate) kind: &'static str,
    /// The item's status.
    pub(crate) status: Status,
    /// Always empty: the content has the thoughts themselves.
    pub(crate) summary: [(); 0],
    /// One part, or none yet.
    pub(crate) content: Vec<ReasoningPart>,
}

/// The text of thoughts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ReasoningPart {
    /// `reasoning_text`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "reasoning_text"))]
    pub(crate) kind: &'static str,
    /// The text.
    pub(crate) text: String,
}

impl ReasoningPart {
    /// Creates a part with this text.
    pub(crate) fn new(text: &str) -> Self {
        Self {
            kind: "reasoning_text",
            text: text.into(),
        }
    }
}

/// The model's message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct MessageItem {
    /// The item's id.
    pub(crate) id: String,
    /// `message`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message"))]
    pub(crate) kind: &'static str,
    /// The item's status.
    pub(crate) status: Status,
    /// `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub(crate) role: &'static str,
    /// One text part, or none yet.
    pub(crate) content: Vec<TextPart>,
}

/// The text of a message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TextPart {
    /// `output_text`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "output_text"))]
    pub(crate) kind: &'static str,
    /// The text.
    pub(crate) text: String,
    /// Always empty.
    pub(crate) annotations: [(); 0],
    /// One entry per token, if they were asked for.
    pub(crate) logprobs: Vec<ScoredToken>,
}

impl TextPart {
    /// Creates a part with this text.
    pub(crate) fn new(text: &str, logprobs: &[ScoredToken]) -> Self {
        Self {
            kind: "output_text",
            text: text.into(),
            annotations: [],
            logprobs: logprobs.to_vec(),
        }
    }
}

/// A call of a function that the model made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct CallItem {
    /// The item's id.
    pub(crate) id: String,
    /// `function_call`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function_call"))]
    pub(crate) kind: &'static str,
    /// The item's status.
    pub(crate) status: Status,
    /// Id to refer to in the item that returns the result.
    pub(crate) call_id: String,
    /// The function's name.
    pub(crate) name: String,
    /// The text of a JSON object.
    pub(crate) arguments: String,
}

/// Token counts of a whole request, under the names that responses use.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct ResponseUsage {
    /// Tokens of the input.
    pub(crate) input_tokens: usize,
    /// More about the input.
    pub(crate) input_tokens_details: InputDetails,
    /// Tokens of the output.
    pub(crate) output_tokens: usize,
    /// More about the output.
    pub(crate) output_tokens_details: OutputDetails,
    /// Sum of both.
    pub(crate) total_tokens: usize,
}

/// More about a response's input.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct InputDetails {
    /// Input tokens found in the prefix cache.
    pub(crate) cached_tokens: usize,
    /// Always 0.
    pub(crate) cache_write_tokens: usize,
}

/// More about a response's output.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct OutputDetails {
    /// Tokens of thoughts.
    pub(crate) reasoning_tokens: usize,
}

/// An event of a streamed response.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ResponseEvent {
    /// The event's content.
    #[serde(flatten)]
    pub(crate) body: EventBody,
    /// The event's type.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// Position in the stream, from 0.
    pub(crate) sequence_number: u64,
}

/// The content of a response's event.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum EventBody {
    /// The response as a whole.
    Response {
        /// The current state.
        response: Box<Response>,
    },
    /// An item was added or is done.
    Item {
        /// Its position in the output.
        output_index: usize,
        /// The current state.
        item: Item,
    },
    /// A part of a message was added or is done.
    Part {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// The current state.
        part: TextPart,
    },
    /// A part of thoughts was added or is done.
    ThoughtsPart {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// The current state.
        part: ReasoningPart,
    },
    /// More thoughts.
    ThoughtsDelta {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// The new text.
        delta: String,
    },
    /// Thoughts are complete.
    ThoughtsDone {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// The whole text.
        text: String,
    },
    /// More text.
    TextDelta {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// The new text.
        delta: String,
        /// One entry per new token, if they were asked for.
        logprobs: Vec<ScoredToken>,
    },
    /// A text is complete.
    TextDone {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// Always 0.
        content_index: usize,
        /// The whole text.
        text: String,
        /// One entry per token, if they were asked for.
        logprobs: Vec<ScoredToken>,
    },
    /// More of a call's arguments.
    ArgumentsDelta {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// The new text.
        delta: String,
    },
    /// A call is complete.
    ArgumentsDone {
        /// The item's id.
        item_id: String,
        /// Its position in the output.
        output_index: usize,
        /// The function's name.
        name: String,
        /// All arguments.
        arguments: String,
    },
}
