//! The HTTP API: OpenAI-compatible routes, operator routes, authentication, streaming and errors.
//!
//! The engine and the control loop are used through the traits in [`ports`], so everything here is
//! tested with fakes.

mod address;
mod admin;
pub mod answers;
pub mod auth;
mod body;
mod chat;
mod compile;
mod completions;
mod constraints;
mod cors;
mod cut;
mod dialects;
mod embeddings;
pub mod error;
mod exchanges;
mod explain;
mod extend;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod in_process;
pub mod limits;
mod lora;
mod models;
mod moderations;
mod nested;
mod observe;
mod openapi;
mod overview;
mod page;
mod params;
mod playground;
pub mod ports;
mod progress;
mod prompt_scores;
mod request;
mod responses;
mod routes;
mod run;
mod sent;
mod service;
mod streaming;
mod template;
#[cfg(test)]
mod tests;
mod thinking;
mod tokens;
mod tool_calls;
mod tools;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{OriginalUri, Request};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::routing::MethodRouter;
use axum::{Extension, Router};
use tokio::sync::watch;

pub use auth::Access;
pub(crate) use auth::BeyondLimit;
pub use compile::Compiler;
pub(crate) use cut::{Cut, CutSignal};
pub use embeddings::Embeddings;
pub use error::ApiError;
pub use in_process::{
    ChatMessage, ChatRole, FinishReason, Generate, GenerateError, Generated, TextStream,
    TokenCounts,
};
pub(crate) use in_process::{generate, generate_blocking, generate_stream, start};
pub use limits::Rates;
pub use ports::{
    AdminError, AdminPort, CollectOptions, EmbeddingError, EmbeddingPort, EnginePort, HealthPort,
    LogFilterError, LogPort, ModerationPort, Moderations, NewName, RealignmentEvent,
};
pub(crate) use responses::ResponseStore;
pub(crate) use tools::Bounds;

use routes::{Audience, Route};

use crate::config::UnknownFields;
use crate::telemetry::{Compliance, Telemetry};
use realign_core::supervision::panic_message;
use realign_engine::adapter::Registry;
use realign_model::{ChatTemplate, Tokenizer};

/// The state that all routes share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AppState {
    /// The served name, which clients send as `model`.
    pub(crate) model_name: Arc<str>,
    /// The model's tokenizer.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// The model's chat template.
    pub(crate) chat: Arc<ChatTemplate>,
    /// Compiles grammars for structured answers.
    pub(crate) compiler: Compiler,
    /// The engine that generates answers.
    pub(crate) engine: Arc<dyn EnginePort>,
    /// Computes embeddings, with a bounded queue.
    pub(crate) embeddings: Embeddings,
    /// The policy oracle.
    pub(crate) moderation: Arc<dyn ModerationPort>,
    /// The registry that generations are leased from.
    pub(crate) registry: Arc<Registry>,
    /// The operations behind the operator routes.
    pub(crate) admin: Arc<dyn AdminPort>,
    /// Request events and metrics.
    pub(crate) telemetry: Arc<Telemetry>,
    /// API keys and their limits.
    pub(crate) access: Arc<Access>,
    /// Judges answers; `None` if judging is disabled.
    pub(crate) compliance: Option<Arc<Compliance>>,
    /// The log filter.
    pub(crate) logs: Arc<dyn LogPort>,
    /// Web origins that browsers may call from.
    pub(crate) cors_origins: Arc<[String]>,
    /// Timeout for a request's body.
    pub(crate) body_timeout: Duration,
    /// False while loading and draining, when requests for generation are refused with 503.
    pub(crate) ready: Arc<AtomicBool>,
    /// Becomes true when the server shuts down, which ends the streams of events.
    pub(crate) closing: watch::Sender<bool>,
    /// The threads behind the routes.
    pub(crate) health: Arc<dyn HealthPort>,
    /// Ends requests that would not end by themselves.
    pub(crate) cut: CutSignal,
    /// Largest request body in bytes.
    pub(crate) max_body_bytes: usize,
    /// Whether `max_tokens` beyond the context is lowered; otherwise it is refused.
    pub(crate) clamp_max_tokens: bool,
    /// Sizes of arrays and strings whose JSON schema sets none.
    pub(crate) schema_bounds: Bounds,
    /// What happens to fields of requests that a route does not know.
    pub(crate) unknown_fields: UnknownFields,
    /// Whether `/tokenizer_info` answers.
    pub(crate) tokenizer_info: bool,
    /// Responses that requests may continue, if they are kept.
    pub(crate) responses: Option<Arc<ResponseStore>>,
    /// When the server started, in Unix seconds.
    pub(crate) started_at: u64,
    /// Open connections on all listeners.
    pub(crate) connections: Arc<AtomicUsize>,
}

impl AppState {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

/// All routes on one listener.
pub(crate) fn router(state: AppState) -> Router {
    build(
        &[
            Audience::Everyone,
            Audience::Clients,
            Audience::Operators,
            Audience::OperatorsUnguarded,
        ],
        state,
    )
}

/// Only the clients' routes, for a server with a separate listener for operators.
pub(crate) fn client_router(state: AppState) -> Router {
    build(&[Audience::Everyone, Audience::Clients], state)
}

/// Only the operators' routes, the metrics and the operators' page.
pub(crate) fn operator_router(state: AppState) -> Router {
    build(
        &[
            Audience::Everyone,
            Audience::Operators,
            Audience::OperatorsUnguarded,
        ],
        state,
    )
}

/// The operators' routes of a server that serves no clients: none of them is about what clients see.
pub(crate) fn control_router(state: AppState) -> Router {
    let mut routes = routes::of(&[
        Audience::Everyone,
        Audience::Operators,
        Audience::OperatorsUnguarded,
    ]);
    // Names that adapters are loaded under are for clients.
    routes.retain(|route| !route.path.starts_with("/v1/"));
    build_with(&routes, state, axum::routing::any(no_clients))
}

/// A router with the routes for these audiences, their authentication, answers for unknown routes,
/// and an observer of all requests.
fn build(audiences: &[Audience], state: AppState) -> Router {
    build_with(&routes::of(audiences), state, axum::routing::any(not_found))
}

fn build_with(routes: &[Route], state: AppState, unknown: MethodRouter<AppState>) -> Router {
    let has = |audience| routes.iter().any(|route| route.audience == audience);
    let of =
        |audience| routes::router(routes, audience).method_not_allowed_fallback(method_not_allowed);
    let mut all = of(Audience::Everyone).merge(of(Audience::OperatorsUnguarded));
    if has(Audience::Clients) {
        let clients = of(Audience::Clients)
            .route_layer(from_fn_with_state(state.clone(), cut::cut))
            .route_layer(from_fn_with_state(state.clone(), auth::client))
            // Outside of authentication, because a browser's preflight request carries no key.
            .route_layer(from_fn_with_state(state.clone(), cors::cors));
        all = all.merge(clients);
    }
    if has(Audience::Operators) {
        let guard = from_fn_with_state(state.clone(), auth::admin);
        all = all.merge(of(Audience::Operators).route_layer(guard));
    }
    let observer = observe::Observer {
        state: state.clone(),
        labels: routes::Labels::new(routes),
    };
    let document = openapi::Document::new(routes, &state.model_name, state.unknown_fields);
    all.fallback(unknown)
        .layer(map_response(streaming::unbuffered))
        .layer(Extension(document))
        // Outside of authentication, whose errors have the same form as the route's own.
        .layer(from_fn(dialects::own_errors))
        .layer(from_fn_with_state(observer, observe::observe))
        .with_state(state)
}

/// Runs slow work, or work that reads from disk, on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match spawn_blocking(work).await {
        Some(result) => result,
        None => Err(ApiError::Internal(
            "the server failed on this request; its log says why".into(),
        )),
    }
}

/// What `work` returns on a blocking thread; `None`, which is logged, if it panics or the system
/// refuses a thread.
async fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    // Tokio panics where the system refuses the first thread of its pool.
    let spawned = catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(work)));
    let ended = match spawned {
        Ok(running) => running.await.map_err(|error| error.to_string()),
        Err(panic) => Err(panic_message(&*panic).to_owned()),
    };
    ended
        .inspect_err(|error| tracing::error!(error, "a request's blocking task failed"))
        .ok()
}

fn not_ready() -> ApiError {
    ApiError::Unavailable("the server is loading or shutting down; retry in a moment".into())
}

async fn not_found(OriginalUri(uri): OriginalUri, request: Request) -> ApiError {
    let path: String = uri.path().chars().take(128).collect();
    let hint = match meant(uri.path()) {
        Some(route) => {
            // Where an application puts the routes.
            let prefix = uri.path().strip_suffix(request.uri().path());
            let prefix = prefix.unwrap_or_default();
            format!(
                "; did you mean {prefix}{route}? The client's base URL may have too little or too much"
            )
        }
        None => String::new(),
    };
    ApiError::NotFound(format!(
        "there is no route {} {path}{hint}",
        request.method()
    ))
}

/// What clients get from a server that serves none.
async fn no_clients(uri: OriginalUri, request: Request) -> ApiError {
    let path = uri.0.path();
    let is_for_clients = routes::of(&[Audience::Clients])
        .iter()
        .any(|route| route.path == path);
    if !is_for_clients && !path.starts_with("/v1/") {
        return not_found(uri, request).await;
    }
    ApiError::NotFound(
        "this server runs `realign control` and serves no clients: ask a server that follows the \
         store (`realign serve --follow`), or the gateway"
            .into(),
    )
}

/// The route of clients that an address most likely means: it ends in the same way.
fn meant(path: &str) -> Option<&'static str> {
    const ENDS: [(&str, &str); 12] = [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/completion", "/v1/completions"),
        ("/responses", "/v1/responses"),
        ("/embeddings", "/v1/embeddings"),
        ("/moderations", "/v1/moderations"),
        ("/models", "/v1/models"),
        ("/messages", "/v1/messages"),
        ("/tokenize", "/tokenize"),
        ("/api/chat", "/api/chat"),
        ("/api/generate", "/api/generate"),
        ("/api/tags", "/api/tags"),
    ];
    let found = ENDS.iter().find(|(end, _)| path.ends_with(end));
    found.map(|(_, route)| *route)
}

async fn method_not_allowed(OriginalUri(uri): OriginalUri, request: Request) -> ApiError {
    ApiError::MethodNotAllowed {
        method: request.method().to_string(),
        path: uri.path().chars().take(128).collect(),
    }
}
