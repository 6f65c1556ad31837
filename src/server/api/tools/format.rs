//! The required format of an answer: text, or JSON that matches a schema.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::constraints;
use super::super::error::ApiError;
use super::super::request::{
    CompiledText, JsonSchemaText, Name, SchemaOrText, TagOnly, string_enum, tagged,
};
use super::Notice;
use super::schema::resolve;
use realign_engine::grammar::Grammar;

string_enum! {
    /// The required format of a response's text.
    FormatKind {
        Text = "text",
        JsonObject = "json_object",
        JsonSchema = "json_schema",
    }
}

string_enum! {
    /// The required format of a chat completion's answer: OpenAI's kinds, then those of others.
    ChatFormatKind {
        Text = "text",
        JsonObject = "json_object",
        JsonSchema = "json_schema",
        Json = "json",
        Regex = "regex",
        Grammar = "grammar",
    }
}

tagged! {
    /// The required format of a chat completion's answer.
    ResponseFormat by "type": ChatFormatKind {
        [Text] => Plain(TagOnly),
        [JsonObject, Json] => Object(ObjectSchema),
        [JsonSchema] => Schema(NestedSchema),
        [Regex] => Regex(RegexText),
        [Grammar] => Grammar(GrammarText),
    }
}

tagged! {
    /// The required format of a response's text.
    TextFormat by "type": FormatKind {
        [Text, JsonObject] => Plain(TagOnly),
        [JsonSchema] => Schema(AnswerSchema),
    }
}

/// A schema next to the type, as llama.cpp's server has it, or as TGI's `value`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct ObjectSchema {
    schema: Option<SchemaOrText>,
    value: Option<SchemaOrText>,
}

/// A regular expression that the whole answer must match; `value` is TGI's name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline, extend("anyOf" = [
    {"required": ["regex"]}, {"required": ["pattern"]}, {"required": ["value"]},
]))]
pub(crate) struct RegexText {
    regex: Option<CompiledText>,
    pattern: Option<CompiledText>,
    value: Option<CompiledText>,
}

/// GBNF or Lark that the whole answer must match.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct GrammarText {
    grammar: CompiledText,
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
    /// May be missing: a schema needs no name to be enforced.
    #[serde(rename = "name")]
    _name: Option<Name>,
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
    /// A text that matches the regular expression as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar.
    Grammar(Grammar),
}

impl AnswerFormat {
    /// Makes the references of a schema pointers.
    ///
    /// # Errors
    /// A reference that leads nowhere.
    pub(crate) fn resolve(&mut self) -> Result<(), Notice> {
        if let Self::Json { schema, .. } = self {
            *schema = resolve(schema)?;
        }
        Ok(())
    }

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

impl ResponseFormat {
    /// The format that is asked for.
    ///
    /// # Errors
    /// For a grammar that cannot be read, or a type without its constraint.
    pub(crate) fn check(self) -> Result<AnswerFormat, ApiError> {
        match self {
            Self::Plain(..) => Ok(AnswerFormat::Text),
            Self::Object(_, ObjectSchema { schema, value }) => Ok(schema.or(value).map_or_else(
                || AnswerFormat::plain(FormatKind::JsonObject),
                constraints::json,
            )),
            Self::Schema(_, nested) => Ok(nested.json_schema.into()),
            Self::Regex(_, text) => {
                let regex = text.regex.or(text.pattern).or(text.value);
                let missing = "the field `response_format.regex` is required";
                let regex =
                    regex.ok_or_else(|| ApiError::field("response_format.regex", missing))?;
                Ok(AnswerFormat::Regex(regex.0))
            }
            Self::Grammar(_, text) => {
                constraints::grammar(&text.grammar.0, "response_format.grammar")
            }
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
