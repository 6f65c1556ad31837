//! Constraints on answers in the forms of vLLM, llama.cpp and SGLang, next to `response_format`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::error::ApiError;
use super::request::{CompiledText, Refused, SchemaOrText};
use super::tools::{AnswerFormat, ResponseFormat, ToolChoice, Tools};
use realign_engine::grammar::Grammar;

/// Maximum number of texts to choose from.
const MAX_CHOICES: usize = 1024;

/// The fields, as sent. An answer can follow one constraint.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ConstraintFields {
    /// vLLM's object: one of `json`, `regex`, `choice`, `grammar`, `json_object`.
    structured_outputs: Option<StructuredOutputs>,
    /// vLLM's older form of `structured_outputs.json`.
    guided_json: Option<SchemaOrText>,
    /// vLLM's older form of `structured_outputs.regex`.
    guided_regex: Option<CompiledText>,
    /// vLLM's older form of `structured_outputs.choice`.
    #[schemars(length(min = 1, max = MAX_CHOICES))]
    guided_choice: Option<Vec<String>>,
    /// vLLM's older form of `structured_outputs.grammar`.
    guided_grammar: Option<CompiledText>,
    /// As llama.cpp's: GBNF, or Lark. Empty is none.
    grammar: Option<CompiledText>,
    /// As llama.cpp's: the schema that the answer must match.
    json_schema: Option<SchemaOrText>,
    /// As SGLang's: a regular expression that the whole answer must match.
    regex: Option<CompiledText>,
}

/// `structured_outputs`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
struct StructuredOutputs {
    /// A schema that the answer must match.
    json: Option<SchemaOrText>,
    /// A regular expression that the whole answer must match.
    regex: Option<CompiledText>,
    /// The answers that are allowed.
    #[schemars(length(min = 1, max = MAX_CHOICES))]
    choice: Option<Vec<String>>,
    /// GBNF or Lark.
    grammar: Option<CompiledText>,
    /// Whether the answer must be a JSON object.
    json_object: Option<bool>,
    // JSON is always written with one space after `,` and `:` and no other white space.
    #[serde(rename = "disable_any_whitespace")]
    #[schemars(skip)]
    _disable_any_whitespace: Option<IgnoredAny>,
    #[serde(rename = "disable_additional_properties")]
    #[schemars(skip)]
    _disable_additional_properties: Option<Refused>,
    #[serde(rename = "whitespace_pattern")]
    #[schemars(skip)]
    _whitespace_pattern: Option<Refused>,
    #[serde(rename = "structural_tag")]
    #[schemars(skip)]
    _structural_tag: Option<Refused>,
}

/// A constraint and the field that it came in.
type Named = (&'static str, AnswerFormat);

impl ConstraintFields {
    /// The one constraint that a request has, and the name of its field.
    ///
    /// # Errors
    /// If there are several, one cannot be read, or it contradicts `tool_choice`.
    pub(crate) fn check(
        self,
        response_format: Option<ResponseFormat>,
        tools: &Tools,
    ) -> Result<(AnswerFormat, &'static str), ApiError> {
        const FORMAT: &str = "response_format";
        let format = match response_format {
            Some(format) => format.check()?,
            None => AnswerFormat::Text,
        };
        let mut all: Vec<Named> = Vec::new();
        if format != AnswerFormat::Text {
            all.push((FORMAT, format));
        }
        self.collect(&mut all)?;
        let mut all = all.into_iter();
        let Some((field, format)) = all.next() else {
            return Ok((AnswerFormat::Text, FORMAT));
        };
        if let Some((second, _)) = all.next() {
            let message = format!("`{second}` and `{field}` both constrain the answer; send one");
            return Err(ApiError::field(second, message));
        }
        contradiction(field, &format, tools).map_or(Ok((format, field)), Err)
    }

    fn collect(self, all: &mut Vec<Named>) -> Result<(), ApiError> {
        if let Some(outputs) = self.structured_outputs {
            outputs.collect(all)?;
        }
        all.extend(self.guided_json.map(|s| ("guided_json", json(s))));
        all.extend(self.json_schema.map(|s| ("json_schema", json(s))));
        for (field, regex) in [("guided_regex", self.guided_regex), ("regex", self.regex)] {
            all.extend(regex.map(|regex| (field, AnswerFormat::Regex(regex.0))));
        }
        if let Some(texts) = self.guided_choice {
            all.push(("guided_choice", choice(texts, "guided_choice")?));
        }
        if let Some(text) = self.guided_grammar {
            all.push(("guided_grammar", grammar(&text.0, "guided_grammar")?));
        }
        if let Some(text) = self.grammar.filter(|text| !text.0.is_empty()) {
            all.push(("grammar", grammar(&text.0, "grammar")?));
        }
        Ok(())
    }
}

impl StructuredOutputs {
    fn collect(self, all: &mut Vec<Named>) -> Result<(), ApiError> {
        all.extend(self.json.map(|s| ("structured_outputs.json", json(s))));
        if let Some(CompiledText(regex)) = self.regex {
            all.push(("structured_outputs.regex", AnswerFormat::Regex(regex)));
        }
        if let Some(texts) = self.choice {
            let field = "structured_outputs.choice";
            all.push((field, choice(texts, field)?));
        }
        if let Some(CompiledText(text)) = self.grammar {
            let field = "structured_outputs.grammar";
            all.push((field, grammar(&text, field)?));
        }
        if self.json_object.unwrap_or(false) {
            let any = SchemaOrText(json!({"type": "object"}));
            all.push(("structured_outputs.json_object", json(any)));
        }
        Ok(())
    }
}

/// Why a constraint cannot be followed together with the request's functions.
fn contradiction(field: &str, format: &AnswerFormat, tools: &Tools) -> Option<ApiError> {
    let peers = field != "response_format";
    let why = match (&tools.choice, format) {
        (ToolChoice::Required | ToolChoice::Named(_), _) if peers => {
            "`tool_choice` asks for a call instead of an answer"
        }
        (ToolChoice::None, _) => return None,
        (_, AnswerFormat::Grammar(_)) => {
            "calls of functions have a grammar of their own; send `tool_choice`: `none`, or no `tools`"
        }
        _ => return None,
    };
    let message = format!("`{field}` cannot be followed: {why}");
    Some(ApiError::field(field, message))
}

/// JSON that matches a schema.
pub(super) fn json(SchemaOrText(schema): SchemaOrText) -> AnswerFormat {
    AnswerFormat::Json {
        schema,
        strict: false,
    }
}

fn choice(texts: Vec<String>, field: &str) -> Result<AnswerFormat, ApiError> {
    if texts.is_empty() || texts.len() > MAX_CHOICES {
        let count = texts.len();
        let message = format!("`{field}` has {count} texts; allowed: 1 to {MAX_CHOICES}");
        return Err(ApiError::field(field, message));
    }
    Ok(AnswerFormat::Choice(texts))
}

/// A grammar in any form that is read.
pub(super) fn grammar(text: &str, field: &str) -> Result<AnswerFormat, ApiError> {
    let read = Grammar::read(text).map(AnswerFormat::Grammar);
    read.map_err(|e| ApiError::field(field, format!("`{field}` cannot be enforced: {e}")))
}
