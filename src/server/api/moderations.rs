//! `POST /v1/moderations`: the policy oracle in the shape of OpenAI's moderation.

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use super::chat::content;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::{AppState, Moderations, blocking, body};

/// Most texts in a request.
const MAX_TEXTS: usize = 128;

/// Judges each input as an assistant's answer to `prompt` (our own field; empty if it is absent) by
/// the active policies.
pub(crate) async fn create(
    State(state): State<AppState>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let fields = Fields::root(&body)?;
    let texts = texts(fields.required("input")?)?;
    let prompt = match fields.get("prompt") {
        Some(_) => fields.string("prompt")?.to_string(),
        None => String::new(),
    };
    // Named by the policies themselves, whatever model the client thinks of.
    if fields.get("model").is_some() {
        fields.string("model")?;
    }
    let judged = blocking(move || Ok(state.moderation.moderate(&prompt, &texts))).await?;
    Ok(Json(json!({
        "id": format!("modr-{:024x}", rand::random::<u128>() >> 32),
        "model": format!("policies-{}", judged.revision),
        "results": results(&judged),
    })))
}

fn texts(value: &Value) -> Result<Vec<String>, ApiError> {
    let expected = "a string, an array of strings, or an array of text parts";
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(items) if items.len() > MAX_TEXTS => {
            let message = format!(
                "`input` has {} texts; allowed: up to {MAX_TEXTS}",
                items.len()
            );
            Err(ApiError::field("input", message))
        }
        // Parts make one input together.
        Value::Array(items) if items.iter().any(Value::is_object) => {
            Ok(vec![content(value, "input")?])
        }
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_string))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| ApiError::field("input", format!("`input` must be {expected}"))),
        other => Err(wrong_type("input", expected, other)),
    }
}

fn results(judged: &Moderations) -> Vec<Value> {
    let by_category = |value: &dyn Fn(usize) -> Value| {
        let categories = judged.categories.iter().enumerate();
        Value::Object(
            categories
                .map(|(i, name)| (name.clone(), value(i)))
                .collect::<Map<_, _>>(),
        )
    };
    let result = |violated: &Vec<bool>| {
        let is = |i: usize| violated.get(i).copied().unwrap_or(false);
        json!({
            "flagged": violated.contains(&true),
            "categories": by_category(&|i| json!(is(i))),
            // Rules hold or do not: there is nothing between.
            "category_scores": by_category(&|i| json!(f64::from(u8::from(is(i))))),
            "category_applied_input_types": by_category(&|_| json!(["text"])),
        })
    };
    judged.results.iter().map(result).collect()
}
