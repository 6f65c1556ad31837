//! What an answer must be: text, or JSON that fits a schema.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::request::{JsonSchemaText, Name, Nothing, tagged, words};

words! {
    /// What an answer must be.
    FormatKind {
        Text = "text",
        JsonObject = "json_object",
        JsonSchema = "json_schema",
    }
}

tagged! {
    /// What a chat completion's answer must be.
    ResponseFormat by "type": FormatKind {
        [Text, JsonObject] => Plain(Nothing),
        [JsonSchema] => Schema(NestedSchema),
    }
}

tagged! {
    /// What a response's answer must be.
    TextFormat by "type": FormatKind {
        [Text, JsonObject] => Plain(Nothing),
        [JsonSchema] => Schema(AnswerSchema),
    }
}

/// A schema as chat completions take it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct NestedSchema {
    json_schema: AnswerSchema,
}

/// The schema that an answer must fit.
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

/// What the text of an answer must be, apart from calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Format {
    /// Any text.
    #[default]
    Text,
    /// JSON that fits the schema.
    Json { schema: Value, strict: bool },
}

impl Format {
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

impl From<AnswerSchema> for Format {
    fn from(answer: AnswerSchema) -> Self {
        Self::Json {
            schema: answer.schema.0,
            strict: answer.strict.unwrap_or(false),
        }
    }
}

impl From<ResponseFormat> for Format {
    fn from(format: ResponseFormat) -> Self {
        match format {
            ResponseFormat::Plain(kind, _) => Self::plain(kind),
            ResponseFormat::Schema(_, nested) => nested.json_schema.into(),
        }
    }
}

impl From<TextFormat> for Format {
    fn from(format: TextFormat) -> Self {
        match format {
            TextFormat::Plain(kind, _) => Self::plain(kind),
            TextFormat::Schema(_, schema) => schema.into(),
        }
    }
}
