//! `POST /v1/moderations`: the policy oracle in the format of OpenAI's moderation API.

use std::borrow::Cow;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answers::client::{Moderation, ModerationResult};
use super::chat::{Content, Part};
use super::error::ApiError;
use super::request::{self, Unknown, without_effect, wrong_type};
use super::{AppState, Moderations, blocking, body};

/// Maximum number of texts in a request.
const MAX_TEXTS: usize = 128;

/// A request's body.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ModerationRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    input: Inputs,
    /// The prompt that the inputs answer, for rules that depend on it.
    prompt: Option<String>,
    #[serde(rename = "model")]
    _model: Option<String>,
    #[serde(rename = "..account")]
    #[schemars(flatten)]
    _account: AccountFields,
}

without_effect! {
    /// Who asks, and what for.
    AccountFields { "metadata", "user" }
}

/// Judges each input by the active policies as an assistant's answer to `prompt` (an extension of
/// OpenAI's API; empty if absent). `model` is ignored.
pub(crate) async fn create(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let (body, mut unknown): (Body, Unknown) = request::read_all(&body)?;
    let (texts, inside) = body.input.texts()?;
    unknown.extend(inside);
    unknown.check(state.unknown_fields)?;
    if let Some(why) = state.moderation.unavailable() {
        return Err(ApiError::Unavailable(why));
    }
    let prompt = body.prompt.unwrap_or_default();
    let judged = blocking(move || Ok(state.moderation.moderate(&prompt, &texts))).await?;
    let answer = Json(Moderation {
        id: format!("modr-{:024x}", rand::random::<u128>() >> 32),
        model: format!("policies-{}", judged.revision),
        results: results(&judged),
    });
    Ok(unknown.named_in(answer.into_response()))
}

/// The texts to be judged.
#[derive(Clone, Debug, Deserialize)]
struct Inputs(Value);

impl Inputs {
    /// The texts, and the unknown fields of their parts.
    fn texts(self) -> Result<(Vec<String>, Unknown), ApiError> {
        let expected = "a string, an array of strings, or an array of text parts";
        let texts = match self.0 {
            Value::String(text) => Ok(vec![text]),
            Value::Array(items) if items.len() > MAX_TEXTS => {
                let message = format!(
                    "`input` has {} texts; allowed: up to {MAX_TEXTS}",
                    items.len()
                );
                Err(ApiError::field("input", message))
            }
            // The parts together are one input.
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let parts = Value::Array(items);
                let (content, unknown): (Content, _) = request::read_field(&parts, "input")?;
                return Ok((vec![content.text()], unknown));
            }
            Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_string))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| ApiError::field("input", format!("`input` must be {expected}"))),
            other => Err(wrong_type("input", expected, &other)),
        };
        Ok((texts?, Unknown::default()))
    }
}

impl JsonSchema for Inputs {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Inputs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({"type": "string"});
        let parts = generator.subschema_for::<Vec<Part>>();
        json_schema!({"anyOf": [
            text,
            {"type": "array", "items": text, "maxItems": MAX_TEXTS},
            parts,
        ]})
    }
}

fn results(judged: &Moderations) -> Vec<ModerationResult> {
    let by_category = |value: &dyn Fn(usize) -> Value| {
        let categories = judged.categories.iter().enumerate();
        categories
            .map(|(i, name)| (name.clone(), value(i)))
            .collect::<Map<_, _>>()
    };
    let result = |violated: &Vec<bool>| {
        let is = |i: usize| violated.get(i).copied().unwrap_or(false);
        ModerationResult {
            flagged: violated.contains(&true),
            categories: by_category(&|i| Value::from(is(i))),
            category_scores: by_category(&|i| Value::from(f64::from(u8::from(is(i))))),
            category_applied_input_types: by_category(&|_| Value::from(vec!["text"])),
        }
    };
    judged.results.iter().map(result).collect()
}
