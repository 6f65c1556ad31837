//! OpenAI routes and wire types, streaming, errors, auth, and the operator's routes.
//!
//! The engine and the control loop stand behind the traits in [`doors`], so everything here is
//! tested with scripted ones.

mod admin;
mod auth;
mod body;
mod chat;
mod compile;
mod completions;
pub mod doors;
mod embeddings;
pub mod error;
mod fields;
mod models;
mod moderations;
mod observe;
mod openapi;
mod params;
mod progress;
mod responses;
mod run;
mod service;
mod streaming;
#[cfg(test)]
mod tests;
mod tokens;
mod tool_calls;
mod tools;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

pub use compile::Compiler;
pub use doors::{AdminDoor, AdminError, EmbeddingDoor, EngineDoor, ModerationDoor, Moderations};
pub use embeddings::Embeddings;
pub use error::ApiError;

use crate::adapter::Registry;
use crate::model::{ChatTemplate, Tokenizer};
use crate::telemetry::Telemetry;

/// What the routes share. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// The served name, which clients send as `model`.
    pub model_name: Arc<str>,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template.
    pub chat: Arc<ChatTemplate>,
    /// What compiles grammars for structured answers.
    pub compiler: Compiler,
    /// Where sequences go.
    pub engine: Arc<dyn EngineDoor>,
    /// What makes embeddings, and how many wait for it.
    pub embeddings: Embeddings,
    /// The policy oracle.
    pub moderation: Arc<dyn ModerationDoor>,
    /// Where generations are leased.
    pub registry: Arc<Registry>,
    /// What operators see and do.
    pub admin: Arc<dyn AdminDoor>,
    /// Request events and metrics.
    pub telemetry: Arc<Telemetry>,
    /// Key for `/v1`; `None` lets everybody in.
    pub api_key: Option<Arc<str>>,
    /// Key for `/admin/v1`; `None` lets this machine in and nobody else.
    pub admin_key: Option<Arc<str>>,
    /// False while loading and draining: completions are then refused with 503.
    pub ready: Arc<AtomicBool>,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// When the server started, in Unix seconds; see [`unix_seconds`].
    pub started_at: u64,
}

impl AppState {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

/// All routes. Serve it with `into_make_service_with_connect_info::<SocketAddr>()`: without the
/// peer's address the operator routes refuse everybody who has no admin key.
pub fn router(state: AppState) -> Router {
    let client = Router::new()
        .route("/v1/chat/completions", post(run::chat_completions))
        .route("/v1/completions", post(run::completions))
        .route("/v1/responses", post(responses::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/moderations", post(moderations::create))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .method_not_allowed_fallback(method_not_allowed)
        .route_layer(from_fn_with_state(state.clone(), auth::client));
    let operator = Router::new()
        .route("/admin/v1/policies", get(admin::policies))
        .route(
            "/admin/v1/realignments",
            get(admin::realignments).post(admin::start),
        )
        .route("/admin/v1/realignments/{id}", get(admin::realignment))
        .route("/admin/v1/realignments/{id}/cancel", post(admin::cancel))
        .route("/admin/v1/realignments/{id}/events", get(admin::events))
        .route("/admin/v1/generations", get(admin::generations))
        .route("/admin/v1/generations/activate", post(admin::activate))
        .route("/admin/v1/generations/rollback", post(admin::rollback))
        .method_not_allowed_fallback(method_not_allowed)
        .route_layer(from_fn_with_state(state.clone(), auth::admin));
    Router::new()
        .route("/health", get(service::health))
        .route("/ready", get(service::ready))
        .route("/metrics", get(service::metrics))
        .route("/openapi.json", get(openapi::document))
        .method_not_allowed_fallback(method_not_allowed)
        .merge(client)
        .merge(operator)
        .fallback(not_found)
        .layer(from_fn_with_state(state.clone(), observe::observe))
        .with_state(state)
}

/// Now, in Unix seconds.
pub fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Runs what may take long or read from disk off the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a request's work did not end well");
            Err(ApiError::Internal(
                "the server failed on this request; its log says why".into(),
            ))
        }
    }
}

fn not_ready() -> ApiError {
    ApiError::Unavailable("the server is loading or shutting down; retry in a moment".into())
}

async fn not_found(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(128).collect();
    ApiError::NotFound(format!("there is no route {} {path}", request.method()))
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed {
        method: request.method().to_string(),
        path: request.uri().path().chars().take(128).collect(),
    }
}
