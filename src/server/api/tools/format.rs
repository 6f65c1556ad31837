//! The required format of an answer: text, or JSON that matches a schema.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::request::{JsonSchemaText, Name, TagOnly, string_enum, tagged};

string_enum! {
    /// The required format of an answer.
    FormatKind {
        Text = "text",
        JsonObject = "json_object",
        JsonSchema = "json_schema",
    }
}

tagged! {
    /// The required format of a chat completion's answer.
    ResponseFormat by "type": FormatKind {
        [Text, JsonObject] => Plain(TagOnly),
        [JsonSchema] => Schema(NestedSchema),
    }
}

tagged! {
    /// The required format of a response's text.
    TextFormat by "type": FormatKind {
        [Text, JsonObject] => Plain(TagOnly),
        [JsonSchema] => Schema(AnswerSchema),
    }
}

/// A schema in the format of chat completions.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct NestedSchema {
    json_schema: AnswerSchema,
}

/// The schema that an answer must match.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct AnswerSchema {
    #[serde(rename = "name")]
    _name: Name,
    schema: JsonSchemaText,
    strict: Option<bool>,
    #[serde(rename = "description")]
    #[schemars(with = "Option<String>")]
    _description: Option<serde::de::IgnoredAny>,
}

/// The required format of an answer's text, apart from calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum AnswerFormat {
    /// Any text.
    #[default]
    Text,
    /// JSON that matches the schema; `strict` enforces every keyword.
    Json { schema: Value, strict: bool },
}

impl AnswerFormat {
    fn plain(kind: FormatKind) -> Self {
        match kind {
            FormatKind::JsonObject => Self::Json {
                schema: json!({"type": "object"}),
                strict: false,
            },
            FormatKind::Text | FormatKind::JsonSchema => Self::Text,
        }
    }
}

impl From<AnswerSchema> for AnswerFormat {
    fn from(answer: AnswerSchema) -> Self {
        Self::Json {
            schema: answer.schema.0,
            strict: answer.strict.unwrap_or(false),
        }
    }
}

impl From<ResponseFormat> for AnswerFormat {
    fn from(format: ResponseFormat) -> Self {
        match format {
            ResponseFormat::Plain(kind, _) => Self::plain(kind),
            ResponseFormat::Schema(_, nested) => nested.json_schema.into(),
        }
    }
}

impl From<TextFormat> for AnswerFormat {
    fn from(format: TextFormat) -> Self {
        match format {
            TextFormat::Plain(kind, _) => Self::plain(kind),
            TextFormat::Schema(_, schema) => schema.into(),
        }
    }
}
