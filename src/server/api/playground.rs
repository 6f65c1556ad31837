//! `POST /admin/v1/playground`: an answer of any generation, for operators who compare them. It is
//! neither judged nor counted as traffic, and the limits of clients do not apply.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::error::ApiError;
use super::observe::Observation;
use super::{AppState, blocking, body, models, run};
use realign_engine::adapter::generation::Generation;

/// Tokens of an answer whose length is not given.
const MAX_TOKENS: u64 = 256;

/// A prompt to answer.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "PlaygroundRequest")]
pub(crate) struct Body {
    /// Which generation answers: `base`, `current`, `previous`, `candidate` (one that sits its exam),
    /// or an id.
    generation: String,
    /// The user message.
    prompt: String,
    /// A system message before it.
    system: Option<String>,
    /// Most tokens of the answer. Default 256.
    max_tokens: Option<u64>,
    /// 0, the default, always takes the likeliest token.
    temperature: Option<f64>,
    /// Of the random numbers, where `temperature` is not 0.
    seed: Option<i64>,
    /// Whether the answer comes as events, as that of a chat completion does.
    stream: Option<bool>,
}

/// Answers a prompt in the form of a chat completion.
pub(crate) async fn ask(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body: Body = body::of_operator(request, state.max_body_bytes).await?;
    let generation = blocking({
        let (state, name) = (state.clone(), body.generation.clone());
        move || lease(&state, &name)
    })
    .await?;
    let system = body.system.iter().filter(|text| !text.is_empty());
    let system = system.map(|text| json!({ "role": "system", "content": text }));
    let user = json!({ "role": "user", "content": body.prompt });
    let messages: Vec<_> = system.chain([user]).collect();
    let chat = json!({
        "model": format!("{}@{}", state.model_name, generation.id),
        "messages": messages,
        "max_completion_tokens": body.max_tokens.unwrap_or(MAX_TOKENS),
        "temperature": body.temperature.unwrap_or_default(),
        "seed": body.seed,
        "stream": body.stream.unwrap_or_default(),
    });
    run::chat_with(state, observation, &chat, Some(generation)).await
}

/// Leases a generation by its role or its id.
fn lease(state: &AppState, name: &str) -> Result<Arc<Generation>, ApiError> {
    let registry = &state.registry;
    let found = match name {
        "base" => Some(Arc::clone(registry.base())),
        // Operators may look at what clients are refused.
        "current" => Some(registry.lease_current()),
        "previous" => registry.previous(),
        "candidate" => registry.candidate(),
        id => {
            let candidate = registry.candidate().filter(|shown| shown.id.0 == id);
            match candidate {
                Some(candidate) => Some(candidate),
                None => return models::resolve(state, &format!("{}@{id}", state.model_name)),
            }
        }
    };
    found.ok_or_else(|| {
        ApiError::field(
            "generation",
            format!("there is no {name} generation now; `GET /admin/v1/generations` lists all"),
        )
    })
}
