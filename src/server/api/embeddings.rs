//! `POST /v1/embeddings`: mean-pooled final hidden states, scaled to length 1.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answers::client::{self as answers, EmbeddingEntry, EmbeddingUsage, Vector};
use super::completions::{Prompt, Texts};
use super::error::ApiError;
use super::observe::Observation;
use super::params::others::OtherFields;
use super::ports::EmbeddingPort;
use super::request::{self, FIELD, ModelName, Unknown, message, string_enum, unsupported};
use super::run::with_generation;
use super::{AppState, blocking, body, models, not_ready};
use realign_engine::PromptToken;
use realign_engine::adapter::generation::Generation;

/// Maximum number of texts in a request.
const MAX_INPUTS: usize = 256;
/// Maximum number of tokens in a request, over all texts: each needs a forward pass alongside the
/// engine.
const MAX_TOKENS: usize = 32_768;
/// Maximum number of requests that run or wait; further ones are refused.
const MAX_WAITING: usize = 32;

/// Computes embeddings, one request at a time because it shares the processor with the engine.
#[derive(Clone)]
pub struct Embeddings {
    port: Arc<dyn EmbeddingPort>,
    /// Held by the request that is being computed.
    running: Arc<Semaphore>,
    /// Held by every request that runs or waits.
    queue: Arc<Semaphore>,
}

impl Embeddings {
    /// Computes embeddings through `port`.
    pub(crate) fn new(port: Arc<dyn EmbeddingPort>) -> Self {
        Self {
            port,
            running: Arc::new(Semaphore::new(1)),
            queue: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    /// How likely the tokens of prompts are, prompt by prompt; see [`EmbeddingPort::prompt_logprobs`].
    ///
    /// # Errors
    /// If too many requests wait, or a pass fails.
    pub(crate) async fn prompt_logprobs(
        &self,
        generation: &Arc<Generation>,
        prompts: Vec<Vec<u32>>,
        top: usize,
    ) -> Result<Vec<Vec<PromptToken>>, ApiError> {
        let _place = self.enqueue()?;
        // The semaphore is never closed.
        let _turn = self.running.acquire().await;
        let (port, generation) = (Arc::clone(&self.port), Arc::clone(generation));
        blocking(move || {
            let score = |prompt: &Vec<u32>| port.prompt_logprobs(&generation, prompt, top);
            let scored: Result<Vec<_>, _> = prompts.iter().map(score).collect();
            scored.map_err(|error| ApiError::Internal(error.to_string()))
        })
        .await
    }

    fn enqueue(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.queue.try_acquire().map_err(|_| {
            ApiError::QueueFull(format!(
                "{MAX_WAITING} requests for embeddings are waiting already; retry in a moment"
            ))
        })
    }
}

string_enum! {
    /// The encoding of vectors.
    Encoding {
        Float = "float",
        Base64 = "base64",
    } else |_| message(format_args!("{FIELD} must be `float` or `base64`"))
}

/// `dimensions`, which is not supported: vectors have the model's own dimension.
#[derive(Debug)]
struct OtherDimensions;

impl<'de> Deserialize<'de> for OtherDimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Err(unsupported(""))
    }
}

/// A request's body.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "EmbeddingRequest", extend("additionalProperties" = {"type": "null"}))]
pub(crate) struct Body {
    #[serde(rename = "dimensions")]
    #[schemars(skip)]
    _dimensions: Option<OtherDimensions>,
    encoding_format: Option<Encoding>,
    input: Texts,
    model: Option<ModelName>,
    #[serde(rename = "user")]
    #[schemars(with = "Option<String>")]
    _user: Option<IgnoredAny>,
    #[serde(rename = "..others")]
    #[schemars(flatten)]
    _others: OtherFields,
}

/// A checked request.
struct EmbeddingRequest {
    model: String,
    inputs: Vec<Prompt>,
    base64: bool,
    unknown: Unknown,
}

impl EmbeddingRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        let (body, unknown): (Body, Unknown) = request::read_all(body)?;
        let inputs = body.input.prompts("input")?;
        if inputs.len() > MAX_INPUTS {
            let message = format!(
                "`input` has {} texts; allowed: up to {MAX_INPUTS}",
                inputs.len()
            );
            return Err(ApiError::field("input", message));
        }
        Ok(Self {
            model: body.model.map_or_else(String::new, |model| model.0),
            inputs,
            base64: body.encoding_format == Some(Encoding::Base64),
            unknown,
        })
    }

    fn encode(&self, state: &AppState) -> Result<Vec<Vec<u32>>, ApiError> {
        let limit = state.engine.max_model_len();
        let mut total = 0;
        let encode = |input: &Prompt| {
            let tokens = input.encode(&state.tokenizer, "input")?;
            total += tokens.len();
            match tokens.len() {
                0 => Err(ApiError::field("input", "a text of `input` has no tokens")),
                n if n > limit => Err(ApiError::ContextLength {
                    param: "input",
                    message: format!(
                        "this model's maximum context length is {limit} tokens, but a text of \
                         `input` has {n}"
                    ),
                }),
                _ if total > MAX_TOKENS => Err(ApiError::field(
                    "input",
                    format!("`input` has more than {MAX_TOKENS} tokens in all; send less at once"),
                )),
                _ => Ok(tokens),
            }
        };
        self.inputs.iter().map(encode).collect()
    }
}

pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    answered(state, observation, &body).await
}

/// Answers a request's body.
///
/// # Errors
/// If the body is refused, or a pass fails.
pub(crate) async fn answered(
    state: AppState,
    observation: Arc<Observation>,
    body: &Value,
) -> Result<Response, ApiError> {
    let mut request = EmbeddingRequest::read(body)?;
    let unknown = std::mem::take(&mut request.unknown);
    unknown.check(state.unknown_fields)?;
    if !state.is_ready() {
        return Err(not_ready());
    }
    let _queued = state.embeddings.enqueue()?;
    let running = Arc::clone(&state.embeddings.running)
        .acquire_owned()
        .await
        .map_err(|_closed| not_ready())?;
    let (worker, observed) = (state.clone(), Arc::clone(&observation));
    let (generation, tokens, answer) = blocking(move || {
        // Held until the work is done, even if the client disconnects.
        let _running = running;
        let generation = models::lease(&worker, &request.model)?;
        let encoded = request.encode(&worker)?;
        let tokens: usize = encoded.iter().map(Vec::len).sum();
        observed.reserve(tokens)?;
        observed.prompt_accepted(tokens);
        let data = data(&worker, &generation, &encoded, request.base64)?;
        let answer = answers::Embeddings {
            object: "list",
            data,
            model: models::named(&worker, &request.model).into(),
            usage: EmbeddingUsage {
                prompt_tokens: tokens,
                total_tokens: tokens,
            },
        };
        Ok((generation, tokens, answer))
    })
    .await?;
    observation.set_generation(&generation.id.0);
    observation.set_tokens(tokens, 0);
    let response = Json(answer).into_response();
    let response = unknown.named_in(response);
    Ok(with_generation(&state, response, &generation))
}

fn data(
    state: &AppState,
    generation: &Generation,
    encoded: &[Vec<u32>],
    base64: bool,
) -> Result<Vec<EmbeddingEntry>, ApiError> {
    let entry = |(index, tokens): (usize, &Vec<u32>)| {
        let vector = state
            .embeddings
            .port
            .embed(generation, tokens)
            .map_err(|error| {
                tracing::error!(%error, "an embedding could not be computed");
                ApiError::Internal(format!("the embedding could not be computed: {error}"))
            })?;
        let embedding = if base64 {
            Vector::Base64(STANDARD.encode(little_endian(&vector)))
        } else {
            Vector::Numbers(vector.into_iter().map(f64::from).collect())
        };
        Ok(EmbeddingEntry {
            object: "embedding",
            index,
            embedding,
        })
    };
    encoded.iter().enumerate().map(entry).collect()
}

fn little_endian(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}
