//! Answers of `POST /v1/responses`, whole and as events.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// A response. The fields after `usage` repeat the request, with the defaults that were used.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Response {
    /// The response's id.
    pub id: String,
    /// `response`.
    #[schemars(extend("const" = "response"))]
    pub object: &'static str,
    /// When it was created, in Unix seconds.
    pub created_at: u64,
    /// Whether it has ended, and how.
    pub status: Status,
    /// The error; `null` unless the status is `failed`.
    pub error: Option<ResponseError>,
    /// Why the response is incomplete; `null` unless the status is `incomplete`.
    pub incomplete_details: Option<Incomplete>,
    /// `model` as it was sent.
    pub model: String,
    /// Base model and generation that answered.
    pub system_fingerprint: String,
    /// Messages and function calls.
    pub output: Vec<Item>,
    /// Token counts of the whole request; `null` while it is in progress.
    pub usage: Option<ResponseUsage>,
    /// Fields repeated from the request.
    #[serde(flatten)]
    pub echoed: Echoed,
}

/// The status of a response or an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Status {
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
pub struct ResponseError {
    /// `server_error`.
    pub code: &'static str,
    /// The error message.
    pub message: String,
}

/// Why a response is not complete.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Incomplete {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// The fields that a response repeats from its request.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Echoed {
    /// Always false: responses are not generated in the background.
    pub background: bool,
    /// As sent.
    #[schemars(with = "Option<String>")]
    pub instructions: Value,
    /// As sent.
    pub max_output_tokens: Option<usize>,
    /// As sent.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub metadata: Value,
    /// As sent, or true.
    #[schemars(with = "bool")]
    pub parallel_tool_calls: Value,
    /// Always `null`: responses are not stored.
    pub previous_response_id: Option<String>,
    /// Always empty: there is no separate reasoning.
    pub reasoning: Reasoning,
    /// Always false: responses are not stored.
    pub store: bool,
    /// As sent, or 1.
    #[schemars(with = "f64")]
    pub temperature: Value,
    /// As sent, or plain text.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub text: Value,
    /// As sent, or `auto`.
    pub tool_choice: Value,
    /// As sent.
    #[schemars(with = "Vec<Value>")]
    pub tools: Value,
    /// As sent, or 1.
    #[schemars(with = "f64")]
    pub top_p: Value,
    /// `disabled`.
    pub truncation: &'static str,
    /// As sent.
    pub user: Value,
}

/// Always empty.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Reasoning {
    /// Always `null`.
    pub effort: Option<String>,
    /// Always `null`.
    pub summary: Option<String>,
}

/// An item of a response's output.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Item {
    /// Text.
    Message(MessageItem),
    /// A call of a function.
    Call(CallItem),
}

/// The model's message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct MessageItem {
    /// The item's id.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message"))]
    pub kind: &'static str,
    /// The item's status.
    pub status: Status,
    /// `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// One text part, or none yet.
    pub content: Vec<TextPart>,
}

/// The text of a message.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TextPart {
    /// `output_text`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "output_text"))]
    pub kind: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    pub annotations: [(); 0],
    /// Always empty.
    pub logprobs: [(); 0],
}

impl TextPart {
    /// Creates a part with this text.
    pub fn new(text: &str) -> Self {
        Self {
            kind: "output_text",
            text: text.into(),
            annotations: [],
            logprobs: [],
        }
    }
}

/// A call of a function that the model made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CallItem {
    /// The item's id.
    pub id: String,
    /// `function_call`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function_call"))]
    pub kind: &'static str,
    /// The item's status.
    pub status: Status,
    /// Id to refer to in the item that returns the result.
    pub call_id: String,
    /// The function's name.
    pub name: String,
    /// The text of a JSON object.
    pub arguments: String,
}

/// Token counts of a whole request, under the names that responses use.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct ResponseUsage {
    /// Tokens of the input.
    pub input_tokens: usize,
    /// More about the input.
    pub input_tokens_details: InputDetails,
    /// Tokens of the output.
    pub output_tokens: usize,
    /// More about the output.
    pub output_tokens_details: OutputDetails,
    /// Sum of both.
    pub total_tokens: usize,
}

/// More about a response's input.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct InputDetails {
    /// Input tokens found in the prefix cache.
    pub cached_tokens: usize,
    /// Always 0.
    pub cache_write_tokens: usize,
}

/// More about a response's output.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct OutputDetails {
    /// Always 0.
    pub reasoning_tokens: usize,
}

/// An event of a streamed response.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseEvent {
    /// The event's content.
    #[serde(flatten)]
    pub body: EventBody,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Position in the stream, from 0.
    pub sequence_number: u64,
}

/// The content of a response's event.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum EventBody {
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
        /// Always empty.
        logprobs: [(); 0],
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
        /// Always empty.
        logprobs: [(); 0],
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
