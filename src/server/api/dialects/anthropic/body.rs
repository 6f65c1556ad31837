//! The request of Anthropic's `POST /v1/messages`.

use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::super::request::{
    Refused, shortened, string_enum, tagged, unsupported, without_effect,
};

/// A request for a message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AnthropicMessageRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    pub(super) model: Option<String>,
    /// Most tokens of the answer.
    pub(super) max_tokens: Option<u64>,
    /// The conversation: `user` and `assistant`. If the last message is the assistant's, it is continued.
    pub(super) messages: Vec<Message>,
    /// The system prompt, as text or as blocks of text.
    pub(super) system: Option<Texts>,
    pub(super) stop_sequences: Option<Vec<String>>,
    pub(super) stream: Option<bool>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) tools: Option<Vec<Tool>>,
    pub(super) tool_choice: Option<Choice>,
    /// Whether the model thinks first, and for how many tokens at most.
    pub(super) thinking: Option<Thinking>,
    /// A JSON schema that the answer fits, and how much the model thinks.
    pub(super) output_config: Option<OutputConfig>,
    /// Older place of `output_config.format`.
    pub(super) output_format: Option<Format>,
    /// Without effect.
    #[serde(rename = "metadata")]
    _metadata: Option<Metadata>,
    /// Only what keeps everything.
    #[serde(rename = "context_management")]
    #[schemars(skip)]
    _context_management: Option<KeepsAll>,
    /// Without effect: prompts are always cached.
    #[serde(rename = "cache_control")]
    #[schemars(with = "Option<Value>")]
    _cache_control: Option<IgnoredAny>,
    /// Without effect.
    #[serde(rename = "service_tier")]
    #[schemars(with = "Option<String>")]
    _service_tier: Option<IgnoredAny>,
}

without_effect! {
    /// What says who asks.
    MetadataFields { "user_id" }
}

/// Who asks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct Metadata {
    #[serde(rename = "..fields")]
    #[schemars(flatten)]
    _fields: MetadataFields,
}

/// `context_management` that takes nothing out of the conversation.
#[derive(Clone, Debug)]
struct KeepsAll;

impl<'de> Deserialize<'de> for KeepsAll {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let asked = Value::deserialize(deserializer)?;
        let edits = asked["edits"].as_array().into_iter().flatten();
        let keeps = |edit: &Value| {
            let kind = edit["type"].as_str().unwrap_or_default();
            kind.starts_with("clear_thinking") && edit["keep"] == "all"
        };
        match edits.into_iter().all(keeps) {
            true => Ok(Self),
            false => Err(unsupported(" that takes something out of the conversation")),
        }
    }
}

/// A message of the conversation.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct Message {
    pub(super) role: String,
    pub(super) content: Option<Content>,
}

/// Text, or blocks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename = "one of", expecting = "a string or an array of blocks")]
#[schemars(inline, untagged)]
pub(super) enum Content {
    #[serde(rename = "string")]
    Text(String),
    #[serde(rename = "array")]
    Blocks(Vec<Block>),
}

/// Text, or blocks of text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename = "one of", expecting = "a string or an array of blocks")]
#[schemars(inline, untagged)]
pub(super) enum Texts {
    #[serde(rename = "string")]
    Text(String),
    #[serde(rename = "array")]
    Blocks(Vec<OnlyText>),
}

impl Texts {
    pub(super) fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Blocks(blocks) => {
                let text = |OnlyText::Text(_, block): OnlyText| block.text;
                blocks.into_iter().map(text).collect()
            }
        }
    }
}

string_enum! {
    /// The kinds of block that are done.
    BlockKind {
        Text = "text",
        Thinking = "thinking",
        RedactedThinking = "redacted_thinking",
        ToolUse = "tool_use",
        ToolResult = "tool_result",
    } else |kind| unsupported(&format!(" of the value `{}`", shortened(kind)))
}

string_enum! {
    /// The kinds of block where only text is done.
    TextKind { Text = "text" } else |kind| unsupported(&format!(" of the value `{}`", shortened(kind)))
}

tagged! {
    /// A block of a message.
    Block by "type": BlockKind {
        [Text] => Text(TextBlock),
        [Thinking] => Thinking(ThinkingBlock),
        [RedactedThinking] => Redacted(RedactedBlock),
        [ToolUse] => Use(UseBlock),
        [ToolResult] => Result(ResultBlock),
    }
}

tagged! {
    /// A block of text.
    OnlyText by "type": TextKind {
        [Text] => Text(TextBlock),
    }
}

without_effect! {
    /// Prompts are always cached.
    CacheFields { "cache_control" }
}

without_effect! {
    /// What proves to Anthropic's servers that they wrote thoughts.
    ProofFields { "cache_control", "data", "signature" }
}

/// A text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct TextBlock {
    pub(super) text: String,
    #[serde(rename = "citations")]
    #[schemars(skip)]
    _citations: Option<Cited>,
    #[serde(rename = "..cache")]
    #[schemars(flatten)]
    _cache: CacheFields,
}

/// What an earlier answer cited: a list, without effect. An object would ask for citations.
#[derive(Clone, Debug)]
struct Cited;

impl<'de> Deserialize<'de> for Cited {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let cited = Value::deserialize(deserializer)?;
        match cited.is_array() || cited["enabled"] == false {
            true => Ok(Self),
            false => Err(unsupported("")),
        }
    }
}

/// What the model thought.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct ThinkingBlock {
    pub(super) thinking: String,
    #[serde(rename = "..proof")]
    #[schemars(flatten)]
    _proof: ProofFields,
}

/// Encrypted thoughts, which cannot be read and are left out.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct RedactedBlock {
    #[serde(rename = "..proof")]
    #[schemars(flatten)]
    _proof: ProofFields,
}

/// An earlier call of a function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct UseBlock {
    pub(super) id: Option<String>,
    pub(super) name: String,
    /// Without it there were no arguments.
    pub(super) input: Option<Value>,
    #[serde(rename = "caller")]
    #[schemars(skip)]
    _caller: Option<Caller>,
    #[serde(rename = "..cache")]
    #[schemars(flatten)]
    _cache: CacheFields,
}

string_enum! {
    /// Who called: only the model itself.
    CallerKind { Direct = "direct" } else |_| unsupported(" other than `direct`")
}

/// Who called a function.
#[derive(Clone, Debug, Deserialize)]
struct Caller {
    #[serde(rename = "type")]
    _kind: CallerKind,
}

/// The result of a call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct ResultBlock {
    pub(super) tool_use_id: Option<String>,
    pub(super) content: Option<Texts>,
    pub(super) is_error: Option<bool>,
    #[serde(rename = "..cache")]
    #[schemars(flatten)]
    _cache: CacheFields,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct Tool {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) input_schema: Option<Value>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    /// Calls always fit the schema; `true` refuses a schema that cannot be enforced.
    pub(super) strict: Option<bool>,
    /// Only `direct`, which is what happens.
    #[serde(rename = "allowed_callers")]
    _allowed_callers: Option<Vec<CallerKind>>,
    #[serde(rename = "defer_loading")]
    #[schemars(skip)]
    _defer_loading: Option<Refused>,
    #[serde(rename = "input_examples")]
    #[schemars(skip)]
    _input_examples: Option<Refused>,
    #[serde(rename = "..cache")]
    #[schemars(flatten)]
    _more: ToolFields,
}

without_effect! {
    /// Prompts are always cached, and arguments streamed as they are generated.
    ToolFields { "cache_control", "eager_input_streaming" }
}

/// Which function must be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct Choice {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) name: Option<String>,
    pub(super) disable_parallel_tool_use: Option<bool>,
}

/// Whether the model thinks first.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct Thinking {
    /// `enabled`, `adaptive` or `disabled`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Most tokens of thoughts; the model is made to end them there.
    pub(super) budget_tokens: Option<u64>,
    #[serde(rename = "display")]
    #[schemars(skip)]
    _display: Option<Display>,
}

string_enum! {
    /// Whether thoughts are shown: they are, and not only a summary of them.
    Display { Summarized = "summarized" } else |_| unsupported(" other than `summarized`")
}

/// What the answer is like.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct OutputConfig {
    /// `low`, `medium`, `high`, `xhigh` or `max`, for templates that know efforts.
    pub(super) effort: Option<String>,
    pub(super) format: Option<Format>,
}

/// The form of the answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct Format {
    /// `json_schema`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) schema: Option<Value>,
}
