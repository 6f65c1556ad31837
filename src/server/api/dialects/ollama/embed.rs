//! Ollama's `POST /api/embed`, and the older `/api/embeddings` with one text.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::super::super::embeddings::answered;
use super::super::super::observe::Observation;
use super::super::super::{AppState, error::ApiError};
use super::super::{read, whole, with_json};
use super::{options, other_than, plain, unsupported};

/// A request of `/api/embed`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaEmbedRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    /// A text, or a list of texts.
    input: Value,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
}

/// A request of `/api/embeddings`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OllamaEmbeddingsRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct OlderBody {
    prompt: String,
    #[serde(rename = "..common")]
    #[schemars(flatten)]
    common: Common,
}

/// What both requests have.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
struct Common {
    model: Option<String>,
    /// Only `false`, which is what happens: a text that does not fit is refused.
    truncate: Option<bool>,
    /// Not supported.
    dimensions: Option<Value>,
    /// Only those that say how Ollama computes; they have no effect.
    options: Option<Map<String, Value>>,
    /// Without effect: the model stays loaded.
    #[serde(rename = "keep_alive")]
    #[schemars(with = "Option<Value>")]
    _keep_alive: Option<IgnoredAny>,
}

/// `POST /api/embed`.
pub(crate) async fn embed(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let (body, unknown) = read::<Body>(&state, request).await?;
    let asked = asked(body.input, body.common)?;
    let name = asked["model"].clone();
    let (response, answer) = whole(answered(state, observation, &asked).await?).await?;
    let tokens = &answer["usage"]["prompt_tokens"];
    let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let embedded = json!({"model": name, "embeddings": vectors(&answer), "prompt_eval_count": tokens,
        "total_duration": took, "load_duration": 0});
    Ok(unknown.named_in(with_json(response, &embedded)))
}

/// `POST /api/embeddings`.
pub(crate) async fn older(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (body, unknown) = read::<OlderBody>(&state, request).await?;
    let asked = asked(body.prompt.into(), body.common)?;
    let answered = answered(state, observation, &asked).await;
    let answered = answered.map_err(|error| error.renamed(&[("input", "prompt")]))?;
    let (response, answer) = whole(answered).await?;
    let embedded = json!({"embedding": vectors(&answer).first()});
    Ok(unknown.named_in(with_json(response, &embedded)))
}

fn vectors(answer: &Value) -> Vec<&Value> {
    let entries = answer["data"].as_array().into_iter().flatten();
    entries.map(|entry| &entry["embedding"]).collect()
}

/// The body of our own route.
fn asked(input: Value, common: Common) -> Result<Value, ApiError> {
    if common.truncate == Some(true) {
        return Err(other_than("truncate", "`false`"));
    }
    if common.dimensions.is_some_and(|wanted| !wanted.is_null()) {
        return Err(unsupported("dimensions"));
    }
    // What is left after translation would change the answer of a chat, and has none to change here.
    let left = options::translated(common.options.unwrap_or_default())?;
    if let Some(name) = left.keys().next() {
        let theirs = options::NAMES.iter().find(|(ours, _)| ours == name);
        return Err(unsupported(
            theirs.map_or(name.as_str(), |(_, theirs)| *theirs),
        ));
    }
    let mut asked = json!({"input": input});
    if let Some(model) = common.model {
        asked["model"] = plain(&model).into();
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(fields: Value) -> Common {
        super::super::super::super::request::read(&fields).unwrap()
    }

    #[test]
    fn a_request_is_translated_and_what_cannot_be_done_is_named() {
        let given = json!({"model": "m:latest", "truncate": false, "options": {"num_ctx": 512}});
        let made = asked(json!(["a", "b"]), common(given)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(made, json!({"model": "m", "input": ["a", "b"]}));
        for (given, name) in [
            (json!({"truncate": true}), "truncate"),
            (json!({"dimensions": 64}), "dimensions"),
            (
                json!({"options": {"temperature": 0.5}}),
                "options.temperature",
            ),
        ] {
            let error = asked(json!("a"), common(given)).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let answer = json!({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]});
        assert_eq!(vectors(&answer), [&json!([1.0]), &json!([2.0])]);
    }
}
