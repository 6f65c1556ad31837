//! From a checked request to an answer: leases a generation, submits the sequences, and hands
//! their events on, collected or streamed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::Value;

use super::chat::ChatRequest;
use super::completions::CompletionRequest;
use super::error::ApiError;
use super::observe::Observation;
use super::params::Params;
use super::wire::{Envelope, Piece, Scored, Shape, Usage};
use super::{AppState, blocking, body, models, streaming, unix_seconds};
use crate::adapter::generation::Generation;
use crate::engine::request::{GenerateEvent, GenerateRequest, GenerateStream};
use crate::model::Tokenizer;

/// Header that names the generation that answered.
const GENERATION: HeaderName = HeaderName::from_static("x-realign-generation");

/// `POST /v1/chat/completions`.
pub(crate) async fn chat_completions(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let request = ChatRequest::read(&body)?;
    let prepared = blocking({
        let state = state.clone();
        move || {
            let generation = models::resolve(&state, &request.params.model)?;
            let prompt = request.encode(&state)?;
            let max_tokens = request.max_tokens(prompt.len(), state.engine.max_model_len());
            Ok(Prepared {
                params: request.params,
                prompts: vec![(prompt, max_tokens)],
                generation,
            })
        }
    })
    .await?;
    respond(&state, Shape::Chat, prepared, observation).await
}

/// `POST /v1/completions`.
pub(crate) async fn completions(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let request = CompletionRequest::read(&body)?;
    let prepared = blocking({
        let state = state.clone();
        move || {
            let generation = models::resolve(&state, &request.params.model)?;
            let limit = state.engine.max_model_len();
            let with_max = |ids: Vec<u32>| {
                let max_tokens = request.max_tokens(ids.len(), limit);
                (ids, max_tokens)
            };
            let prompts = request.encode(&state)?.into_iter().map(with_max).collect();
            Ok(Prepared {
                params: request.params,
                prompts,
                generation,
            })
        }
    })
    .await?;
    respond(&state, Shape::Text, prepared, observation).await
}

/// A request that can be submitted.
struct Prepared {
    params: Params,
    /// Token ids, and the most tokens to generate after them.
    prompts: Vec<(Vec<u32>, usize)>,
    generation: Arc<Generation>,
}

/// An answer that is being generated. Dropping it cancels its sequences.
pub(crate) struct Job {
    pub(crate) envelope: Envelope,
    pub(crate) events: BoxStream<'static, (usize, GenerateEvent)>,
    pub(crate) progress: Progress,
    pub(crate) choices: usize,
    pub(crate) include_usage: bool,
}

/// What has come so far.
pub(crate) struct Progress {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) observation: Arc<Observation>,
    pub(crate) usage: Usage,
    scored: bool,
    /// Choices per prompt: they share the prompt's tokens, which count once.
    n: usize,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
}

async fn respond(
    state: &AppState,
    shape: Shape,
    prepared: Prepared,
    observation: Arc<Observation>,
) -> Result<Response, ApiError> {
    let generation = Arc::clone(&prepared.generation);
    observation.set_generation(&generation.id.0);
    let stream = prepared.params.stream;
    let job = submit(state, shape, prepared, observation)?;
    let mut response = if stream {
        streaming::response(job)
    } else {
        Json(collect(job).await?).into_response()
    };
    if let Ok(id) = HeaderValue::from_str(&generation.id.0) {
        response.headers_mut().insert(GENERATION, id);
    }
    Ok(response)
}

fn submit(
    state: &AppState,
    shape: Shape,
    prepared: Prepared,
    observation: Arc<Observation>,
) -> Result<Job, ApiError> {
    if !state.is_ready() {
        return Err(super::not_ready());
    }
    let Prepared {
        params,
        prompts,
        generation,
    } = prepared;
    let (field, prefix) = match shape {
        Shape::Chat => ("messages", "chatcmpl"),
        Shape::Text => ("prompt", "cmpl"),
    };
    let mut streams = Vec::new();
    for (prompt, max_tokens) in prompts {
        for choice in 0..params.n {
            let request = GenerateRequest {
                prompt: prompt.clone(),
                sampling: params.sampling_of(choice, max_tokens),
                generation: Arc::clone(&generation),
            };
            // On an error the streams so far are dropped, which cancels their sequences.
            let stream = state.engine.submit(request);
            streams.push(stream.map_err(|e| ApiError::from_submit(&e, field))?);
        }
    }
    Ok(Job {
        envelope: Envelope {
            shape,
            id: format!("{prefix}-{:024x}", rand::random::<u128>() >> 32),
            created: unix_seconds(),
            model: params.model,
            fingerprint: generation.fingerprint(),
        },
        progress: Progress {
            tokenizer: Arc::clone(&state.tokenizer),
            observation,
            usage: Usage::default(),
            scored: params.sampling.top_logprobs.is_some(),
            n: params.n,
            offsets: vec![0; streams.len()],
        },
        choices: streams.len(),
        include_usage: params.include_usage,
        events: merge(streams),
    })
}

/// The events of all sequences as they come, each with its sequence's index. Every sequence ends
/// with `Finished` or `Failed`, also if the engine stops without a word.
fn merge(streams: Vec<GenerateStream>) -> BoxStream<'static, (usize, GenerateEvent)> {
    let tagged = |(index, stream): (usize, GenerateStream)| {
        stream::unfold(Some(stream), move |open| async move {
            let mut open = open?;
            let (event, open) = match open.next().await {
                Some(event @ GenerateEvent::Token { .. }) => (event, Some(open)),
                Some(last) => (last, None),
                None => (GenerateEvent::Failed("the engine stopped".into()), None),
            };
            Some(((index, event), open))
        })
        .boxed()
    };
    stream::select_all(streams.into_iter().enumerate().map(tagged)).boxed()
}

impl Progress {
    /// What an event adds to its choice.
    ///
    /// # Errors
    /// If the engine could not go on.
    pub(crate) fn piece(&mut self, index: usize, event: GenerateEvent) -> Result<Piece, ApiError> {
        let mut piece = Piece {
            offset: self.offsets[index],
            scored: None,
            ..Piece::default()
        };
        match event {
            GenerateEvent::Token {
                id,
                text,
                logprob,
                top,
            } => {
                self.observation.token(index);
                piece.text = text;
                // The end of the turn is not part of the text.
                let ends = self.tokenizer.end_of_generation_ids().contains(&id);
                if let Some(token) = logprob.filter(|_| self.scored && !ends) {
                    self.offsets[index] += token.text.chars().count();
                    piece.scored = Some(vec![Scored { token, top }]);
                }
            }
            GenerateEvent::Finished {
                reason,
                text,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => {
                piece.text = text;
                piece.reason = Some(reason);
                self.usage.completion += completion_tokens;
                if index.is_multiple_of(self.n) {
                    self.usage.prompt += prompt_tokens;
                    self.usage.cached += cached_tokens;
                }
            }
            GenerateEvent::Failed(message) => {
                tracing::error!(message, "generation failed");
                return Err(ApiError::Internal(format!("generation failed: {message}")));
            }
        }
        let ended = piece.reason.is_some();
        self.observation.answered(index, &piece.text, ended);
        Ok(piece)
    }

    /// Reports the figures of a request that ran to its end.
    pub(crate) fn finish(&self) {
        self.observation
            .set_tokens(self.usage.prompt, self.usage.completion);
    }
}

async fn collect(mut job: Job) -> Result<Value, ApiError> {
    let empty = || Piece {
        scored: job.progress.scored.then(Vec::new),
        ..Piece::default()
    };
    let mut choices: Vec<Piece> = (0..job.choices).map(|_| empty()).collect();
    while let Some((index, event)) = job.events.next().await {
        let piece = job.progress.piece(index, event)?;
        let whole = &mut choices[index];
        whole.text.push_str(&piece.text);
        whole.reason = whole.reason.or(piece.reason);
        if let (Some(all), Some(new)) = (&mut whole.scored, piece.scored) {
            all.extend(new);
        }
    }
    job.progress.finish();
    let shape = job.envelope.shape;
    let tokenizer = &job.progress.tokenizer;
    let choices = choices.iter().enumerate();
    let choices = choices.map(|(i, piece)| shape.choice(i, piece, tokenizer));
    Ok(job.envelope.whole(choices.collect(), job.progress.usage))
}
