//! From a checked request to an answer: leases a generation, submits the sequences, and returns
//! their output, collected or streamed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt};

use super::chat::ChatRequest;
use super::completions::CompletionRequest;
use super::error::ApiError;
use super::limits::default_max_tokens;
use super::observe::Observation;
use super::params::Params;
use super::progress::{CallOptions, Progress, ProgressSettings, choices};
use super::wire::{Endpoint, Envelope, WholeAnswer};
use super::{AppState, Cut, CutSignal, blocking, body, compile, models, streaming};
use realign_core::clock::unix_seconds;
use realign_engine::adapter::generation::Generation;
use realign_engine::grammar::Constraint;
use realign_engine::request::{GenerateEvent, GenerateRequest, GenerateStream};

/// Header that names the generation that answered.
const GENERATION: HeaderName = HeaderName::from_static("x-realign-generation");
/// Header that says whether what serves is aligned, as the exam measured it.
const ALIGNMENT: HeaderName = HeaderName::from_static("x-realign-alignment");

/// `POST /v1/chat/completions`.
pub(crate) async fn chat_completions(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    let request = ChatRequest::read(&body)?;
    let (tools, format) = (&request.tools, &request.format);
    let grammar = compile::constraint(&state, tools, format, "response_format").await?;
    let prepared = prepare_chat(&state, request, grammar).await?;
    respond(&state, Endpoint::Chat, prepared, observation).await
}

/// Leases the generation and encodes the conversation.
async fn prepare_chat(
    state: &AppState,
    mut request: ChatRequest,
    grammar: Option<Constraint>,
) -> Result<PreparedRequest, ApiError> {
    let state = state.clone();
    blocking(move || {
        let generation = models::lease(&state, &request.params.model)?;
        request.params.check_bias(&state.tokenizer)?;
        let prompt = request.encode(&state)?;
        let max_tokens = request.max_tokens(prompt.len(), state.engine.max_model_len());
        request.params.sampling.grammar = grammar;
        Ok(PreparedRequest {
            calls: CallOptions::new(&request.tools, &state),
            params: request.params,
            prompts: vec![(prompt, max_tokens)],
            generation,
            echo: Vec::new(),
        })
    })
    .await
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
            let generation = models::lease(&state, &request.params.model)?;
            request.params.check_bias(&state.tokenizer)?;
            let limit = state.engine.max_model_len();
            let with_max = |ids: Vec<u32>| {
                let max_tokens = request.max_tokens(ids.len(), limit);
                (ids, max_tokens)
            };
            let encoded = request.encode(&state)?;
            let echo = request.echo(&state.tokenizer, &encoded)?;
            let prompts = encoded.into_iter().map(with_max).collect();
            Ok(PreparedRequest {
                params: request.params,
                prompts,
                generation,
                calls: None,
                echo,
            })
        }
    })
    .await?;
    respond(&state, Endpoint::Text, prepared, observation).await
}

/// A request that is ready to be submitted.
pub(crate) struct PreparedRequest {
    pub(crate) params: Params,
    /// Token ids, and the maximum number of tokens to generate after them.
    pub(crate) prompts: Vec<(Vec<u32>, usize)>,
    pub(crate) generation: Arc<Generation>,
    /// How calls are parsed, if there may be any.
    pub(crate) calls: Option<CallOptions>,
    /// The text of each prompt, if it is to be repeated before the answer.
    pub(crate) echo: Vec<String>,
}

/// An answer that is being generated. Dropping it cancels its sequences.
pub(crate) struct ActiveRequest {
    pub(crate) envelope: Envelope,
    events: BoxStream<'static, (usize, Option<GenerateEvent>)>,
    cut: CutSignal,
    pub(crate) progress: Progress,
    pub(crate) choices: usize,
    pub(crate) include_usage: bool,
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        // A client that disconnects has not read everything that was generated for it.
        let mut unread = 0;
        while let Some(Some((_, event))) = self.events.next().now_or_never() {
            unread += usize::from(matches!(event, Some(GenerateEvent::Token { .. })));
        }
        if unread > 0 {
            self.progress.settings.observation.add_unread(unread);
        }
    }
}

impl ActiveRequest {
    /// The next event, with its choice's index; `None` after the last.
    ///
    /// # Errors
    /// If the engine stopped, or the time of a drain is over; nothing follows.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, GenerateEvent), ApiError>> {
        tokio::select! {
            biased;
            cut = self.cut.any() => Some(Err(cut.error())),
            next = self.events.next() => next.map(|(index, event)| match event {
                Some(event) => Ok((index, event)),
                None => Err(Cut::EngineStopped.error()),
            }),
        }
    }
}

async fn respond(
    state: &AppState,
    endpoint: Endpoint,
    prepared: PreparedRequest,
    observation: Arc<Observation>,
) -> Result<Response, ApiError> {
    let generation = Arc::clone(&prepared.generation);
    observation.set_generation(&generation.id.0);
    let stream = prepared.params.stream;
    let active = submit(state, endpoint, prepared, observation)?;
    let response = if stream {
        streaming::response(active)
    } else {
        Json(collect(active).await?).into_response()
    };
    Ok(with_generation(state, response, &generation))
}

/// Adds the headers that name the generation that answered, and say whether what serves is aligned.
pub(crate) fn with_generation(
    state: &AppState,
    mut response: Response,
    generation: &Generation,
) -> Response {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&generation.id.0) {
        headers.insert(GENERATION, id);
    }
    let alignment = state.admin.alignment().state.as_str();
    headers.insert(ALIGNMENT, HeaderValue::from_static(alignment));
    response
}

/// Submits the sequences of a request to the engine.
///
/// # Errors
/// If the server is not ready or the engine refuses a sequence; the others are cancelled then.
pub(crate) fn submit(
    state: &AppState,
    endpoint: Endpoint,
    prepared: PreparedRequest,
    observation: Arc<Observation>,
) -> Result<ActiveRequest, ApiError> {
    if !state.is_ready() {
        return Err(super::not_ready());
    }
    let mut prepared = prepared;
    let prompt_tokens = reserve(state, &mut prepared, &observation)?;
    let PreparedRequest {
        params,
        prompts,
        generation,
        calls,
        echo,
    } = prepared;
    let (field, prefix) = endpoint.names();
    let mut streams = Vec::new();
    for (prompt, max_tokens) in prompts {
        for choice in 0..params.n {
            let request = GenerateRequest {
                prompt: prompt.clone(),
                sampling: params.sampling_of(choice, max_tokens),
                generation: Arc::clone(&generation),
            };
            // On an error the previous streams are dropped, which cancels their sequences.
            let stream = state
                .engine
                .submit(request)
                .map_err(|error| ApiError::from_submit(&error, field))?;
            streams.push(stream);
        }
    }
    observation.prompt_accepted(prompt_tokens);
    Ok(ActiveRequest {
        envelope: Envelope {
            endpoint,
            id: format!("{prefix}{:024x}", rand::random::<u128>() >> 32),
            created: unix_seconds(),
            model: params.model,
            fingerprint: generation.fingerprint(),
        },
        progress: Progress::new(ProgressSettings {
            tokenizer: Arc::clone(&state.tokenizer),
            observation,
            scored: params.sampling.top_logprobs.is_some(),
            choices: streams.len(),
            n: params.n,
            calls,
            echo,
        }),
        choices: streams.len(),
        include_usage: params.include_usage,
        events: merge(streams),
        cut: state.cut.clone(),
    })
}

/// Reserves the tokens that a request may use, and bounds answers that the client did not. Returns
/// the number of tokens of its prompts.
fn reserve(
    state: &AppState,
    prepared: &mut PreparedRequest,
    observation: &Observation,
) -> Result<usize, ApiError> {
    let (params, prompts) = (&prepared.params, &mut prepared.prompts);
    let prompt_tokens: usize = prompts.iter().map(|(prompt, _)| prompt.len()).sum();
    let Some(per_minute) = observation.tokens_per_minute() else {
        return Ok(prompt_tokens);
    };
    if params.max_tokens.is_none() {
        let answers = prompts.len() * params.n;
        let longest = default_max_tokens(per_minute, prompt_tokens, answers);
        for (_, max_tokens) in prompts.iter_mut() {
            *max_tokens = longest.min(*max_tokens);
        }
    }
    let context = state.engine.max_model_len();
    let answer = |(prompt, max_tokens): &(Vec<u32>, usize)| {
        params.n * context.saturating_sub(prompt.len()).min(*max_tokens)
    };
    let answers: usize = prompts.iter().map(answer).sum();
    observation.reserve(prompt_tokens + answers)?;
    Ok(prompt_tokens)
}

/// Merges the events of all sequences, each with its sequence's index. Every sequence ends with
/// `Finished` or `Failed`, or with `None` if the engine drops its channel.
fn merge(streams: Vec<GenerateStream>) -> BoxStream<'static, (usize, Option<GenerateEvent>)> {
    let tagged = |(index, stream): (usize, GenerateStream)| {
        stream::unfold(Some(stream), move |open| async move {
            let mut open = open?;
            let event = open.next().await;
            let goes_on = matches!(event, Some(GenerateEvent::Token { .. }));
            let open = goes_on.then_some(open);
            Some(((index, event), open))
        })
        .boxed()
    };
    stream::select_all(streams.into_iter().enumerate().map(tagged)).boxed()
}

async fn collect(mut active: ActiveRequest) -> Result<WholeAnswer, ApiError> {
    let choices = choices(&mut active).await?;
    let progress = &active.progress;
    Ok(active
        .envelope
        .whole(&choices, progress.usage, &progress.settings.tokenizer))
}
