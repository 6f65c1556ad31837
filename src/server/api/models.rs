//! The served model names, and the generations they refer to.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::address::Segment;
use super::answers::client::{Model, ModelList};
use super::error::ApiError;
use super::{AppState, blocking};
use realign_engine::adapter::generation::Generation;
use realign_engine::adapter::{Named, ResolveError};

/// Leases the generation that `model` refers to: `<name>`, `<name>@base`, `<name>@<generation>`, or the
/// name of an adapter that an operator loaded.
/// An empty `model`, as of a request without one, stands for `<name>`. May load it from disk.
///
/// # Errors
/// [`ApiError::ModelNotFound`], also if the generation cannot be loaded; [`ApiError::Unavailable`] if
/// nothing may answer for what serves.
pub(crate) fn resolve(state: &AppState, model: &str) -> Result<Arc<Generation>, ApiError> {
    // An adapter with a name of its own; these are never names of what serves.
    if let Some(generation) = state.registry.named(model) {
        return Ok(generation);
    }
    let name = state.model_name.as_ref();
    let not_found = || ApiError::ModelNotFound {
        model: model.chars().take(128).collect(),
        allowed: format!("`{name}`, `{name}@base` and `{name}@<generation>`"),
    };
    let rest = named(state, model).strip_prefix(name);
    let rest = rest.ok_or_else(not_found)?;
    let selector = match rest.strip_prefix('@') {
        Some(selector) => Some(selector),
        None if rest.is_empty() => None,
        None => return Err(not_found()),
    };
    state.registry.resolve(selector).map_err(|error| {
        match error {
            ResolveError::Unknown { .. } => {}
            ResolveError::Withheld { .. } => return ApiError::Unavailable(error.to_string()),
            // To a client, a generation that cannot be loaded does not exist. The reason may
            // contain file names, so it goes to the log only.
            ResolveError::Load { id, reason } => {
                tracing::warn!(generation = %id, reason, "a pinned generation did not load");
            }
        }
        not_found()
    })
}

/// `model`, or the served name if that is empty.
pub(crate) fn named<'a>(state: &'a AppState, model: &'a str) -> &'a str {
    if model.is_empty() {
        return &state.model_name;
    }
    model
}

/// As [`resolve`], to generate with: where the operator wants it so, what serves is refused while it
/// is not aligned.
///
/// # Errors
/// Those of [`resolve`], or [`ApiError::Unavailable`].
pub(crate) fn lease(state: &AppState, model: &str) -> Result<Arc<Generation>, ApiError> {
    if named(state, model) == state.model_name.as_ref()
        && let Some(why) = state.admin.refuses_clients()
    {
        return Err(ApiError::Unavailable(why));
    }
    resolve(state, model)
}

/// `GET /v1/models`.
pub(crate) async fn list(State(state): State<AppState>) -> Json<ModelList> {
    let name = &state.model_name;
    let mut data = vec![
        entry(&state, name, &state.registry.lease_current()),
        entry(&state, &format!("{name}@base"), state.registry.base()),
    ];
    for generation in state.registry.loaded() {
        if generation.id != state.registry.base().id {
            data.push(entry(
                &state,
                &format!("{name}@{}", generation.id),
                &generation,
            ));
        }
    }
    for named in state.registry.names() {
        data.retain(|entry| *entry.id != *named.name);
        data.push(named_entry(&state, &named));
    }
    Json(ModelList {
        object: "list",
        data,
    })
}

/// `GET /v1/models/{id}`.
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Segment(id): Segment,
) -> Result<Json<Model>, ApiError> {
    blocking(move || {
        if let Some(named) = state.registry.names().iter().find(|n| *n.name == *id) {
            return Ok(Json(named_entry(&state, named)));
        }
        let generation = resolve(&state, &id)?;
        Ok(Json(entry(&state, &id, &generation)))
    })
    .await
}

fn entry(state: &AppState, id: &str, generation: &Generation) -> Model {
    Model {
        id: id.into(),
        object: "model",
        created: state.started_at,
        owned_by: "realign",
        generation: generation.id.to_string(),
        policy_revision: generation.policy_revision.clone(),
        system_fingerprint: generation.fingerprint(),
        max_model_len: state.engine.max_model_len(),
        root: None,
        parent: None,
    }
}

/// An adapter with a name of its own, as vLLM lists it.
fn named_entry(state: &AppState, named: &Named) -> Model {
    Model {
        root: Some(named.path.clone()),
        parent: Some(state.model_name.to_string()),
        ..entry(state, &named.name, &named.generation)
    }
}
