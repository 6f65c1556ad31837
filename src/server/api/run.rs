//! From a checked request to an answer: leases a generation, submits the sequences, and returns
//! their output, collected or streamed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::Value;

use super::chat::ChatRequest;
use super::compile::Said;
use super::completions::CompletionRequest;
use super::error::ApiError;
use super::limits::default_max_tokens;
use super::observe::Observation;
use super::params::Params;
use super::progress::{CallOptions, Progress, ProgressSettings, choices};
use super::prompt_scores::PromptScores;
use super::thinking::Thinking;
use super::tools::Tools;
use super::wire::{Endpoint, Envelope};
use super::{AppState, Cut, CutSignal, blocking, body, compile, models, streaming, thinking};
use realign_core::clock::unix_seconds;
use realign_core::thoughts::{OPENS, opened_by};
use realign_engine::PromptToken;
use realign_engine::adapter::generation::Generation;
use realign_engine::grammar::Constraint;
use realign_engine::request::{FinishReason, GenerateEvent, GenerateRequest, GenerateStream};

/// Header that names the generation that answered.
const GENERATION: HeaderName = HeaderName::from_static("x-realign-generation");
/// Header that says whether what serves is aligned, as the exam measured it.
const ALIGNMENT: HeaderName = HeaderName::from_static("x-realign-alignment");
/// Header that says how many tokens an answer may have, where the client asked for more than fit.
const MAX_TOKENS: HeaderName = HeaderName::from_static("x-realign-max-tokens");

/// `POST /v1/chat/completions`.
pub(crate) async fn chat_completions(
    State(state): State<AppState>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::json(request, state.max_body_bytes).await?;
    chat(state, observation, &body).await
}

/// Answers a chat completion's body.
///
/// # Errors
/// As the route.
pub(crate) async fn chat(
    state: AppState,
    observation: Arc<Observation>,
    body: &Value,
) -> Result<Response, ApiError> {
    chat_with(state, observation, body, None).await
}

/// As [`chat`], answered by `generation`, whatever `model` says; `None` leases what `model` names.
///
/// # Errors
/// As the route.
pub(crate) async fn chat_with(
    state: AppState,
    observation: Arc<Observation>,
    body: &Value,
    generation: Option<Arc<Generation>>,
) -> Result<Response, ApiError> {
    let mut request = ChatRequest::read(body)?;
    let unknown = request.check_unknown(&state)?;
    let (tools, format) = (&request.tools, &request.format);
    let mut enforced = compile::constraint(&state, tools, format, request.format_field).await?;
    let said = enforced.said();
    request.params.checks = enforced.checks;
    request.params.constraint_field = request.format_field;
    let top = request.prompt_logprobs;
    let mut prepared = prepare_chat(&state, request, enforced.constraint, generation).await?;
    if let Some(top) = top {
        score_prompts(&state, Endpoint::Chat, &mut prepared, top).await?;
    }
    let response = respond(&state, Endpoint::Chat, prepared, observation).await?;
    Ok(unknown.named_in(said.in_header(response)))
}

/// Leases the generation and encodes the conversation.
async fn prepare_chat(
    state: &AppState,
    mut request: ChatRequest,
    grammar: Option<Constraint>,
    generation: Option<Arc<Generation>>,
) -> Result<PreparedRequest, ApiError> {
    let state = state.clone();
    blocking(move || {
        let generation = match generation {
            Some(generation) => generation,
            None => models::lease(&state, &request.params.model)?,
        };
        request.params.bind(&state.tokenizer)?;
        let mut prompt = request.encode(&state)?;
        let limit = state.engine.max_model_len();
        request.params.truncate(&mut prompt, limit);
        let max_tokens = request.max_tokens(prompt.len(), limit);
        let calls = CallOptions::new(&request.tools, &state);
        // Under a grammar there is no room for thoughts, unless it is only for calls.
        let room = grammar.is_none() || request.tools.leave_text_free(&request.format);
        let thinks = room && state.chat.thinks();
        let thinking = thinks.then(|| match request.continued() {
            Some(text) => Thinking::within(text),
            None => Thinking::after(&state.tokenizer.tail(&prompt)),
        });
        // A template without a variable for it is not asked, but thoughts are ended at once.
        let off = request.template.must_not_think(&state.chat).then_some(0);
        let budget = off.or(request.params.thinking_budget);
        let thinking_budget = thinking::budget(&state.tokenizer, thinking.as_ref(), budget);
        let sampling = &mut request.params.sampling;
        sampling.thinking = thinking_budget?;
        sampling.grammar = grammar;
        sampling.end_on_repeat_of = calls.and_then(|calls| calls.repeatable());
        Ok(PreparedRequest {
            calls,
            params: request.params,
            prompts: vec![(prompt, max_tokens)],
            generation,
            echo: Vec::new(),
            thinking,
            scored: Vec::new(),
            prompt_logprobs: request.prompt_logprobs,
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
    let mut request = CompletionRequest::read(&body)?;
    let unknown = std::mem::take(&mut request.unknown);
    unknown.check(state.unknown_fields)?;
    let (format, field) = (&request.format, request.format_field);
    let mut enforced = compile::constraint(&state, &Tools::default(), format, field).await?;
    let said = enforced.said();
    request.params.sampling.grammar = enforced.constraint;
    request.params.checks = enforced.checks;
    request.params.constraint_field = request.format_field;
    let top = request.scores_prompt();
    let prompt_logprobs = request.prompt_logprobs;
    let mut prepared = blocking({
        let state = state.clone();
        move || {
            let generation = models::lease(&state, &request.params.model)?;
            request.params.bind(&state.tokenizer)?;
            let limit = state.engine.max_model_len();
            let with_max = |ids: Vec<u32>| {
                let max_tokens = request.max_tokens(ids.len(), limit);
                (ids, max_tokens)
            };
            let mut encoded = request.encode(&state)?;
            for prompt in &mut encoded {
                request.params.truncate(prompt, limit);
            }
            let echo = request.echo(&state.tokenizer, &encoded)?;
            let prompts = encoded.into_iter().map(with_max).collect();
            Ok(PreparedRequest {
                params: request.params,
                prompts,
                generation,
                calls: None,
                echo,
                thinking: None,
                scored: Vec::new(),
                prompt_logprobs,
            })
        }
    })
    .await?;
    if let Some(top) = top {
        score_prompts(&state, Endpoint::Text, &mut prepared, top).await?;
    }
    let response = respond(&state, Endpoint::Text, prepared, observation).await?;
    Ok(unknown.named_in(said.in_header(response)))
}

/// Computes how likely the tokens of the prompts are, and `top` alternatives to each.
async fn score_prompts(
    state: &AppState,
    endpoint: Endpoint,
    prepared: &mut PreparedRequest,
    top: usize,
) -> Result<(), ApiError> {
    check_lengths(state, endpoint, prepared)?;
    let prompts = prepared.prompts.iter();
    let prompts = prompts.map(|(prompt, _)| prompt.clone()).collect();
    let scored = state
        .embeddings
        .prompt_logprobs(&prepared.generation, prompts, top);
    prepared.scored = scored.await?;
    Ok(())
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
    /// How thoughts are told from the answer.
    pub(crate) thinking: Option<Thinking>,
    /// How likely the tokens of each prompt are, all but the first; empty if that is not wanted.
    pub(crate) scored: Vec<Vec<PromptToken>>,
    /// Alternatives to the prompt's tokens that are reported for themselves.
    pub(crate) prompt_logprobs: Option<usize>,
}

/// An answer that is being generated. Dropping it cancels its sequences.
pub(crate) struct ActiveRequest {
    pub(crate) envelope: Envelope,
    events: BoxStream<'static, (usize, Option<GenerateEvent>)>,
    cut: CutSignal,
    pub(crate) progress: Progress,
    pub(crate) choices: usize,
    pub(crate) include_usage: bool,
    /// Whether every chunk has the counts so far.
    pub(crate) continuous_usage: bool,
    /// The tokens that an answer may have, if fewer than the client asked for.
    pub(crate) clamped: Option<usize>,
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
    let clamped = active.clamped;
    let response = if stream {
        streaming::response(active)
    } else {
        collect(active).await?
    };
    let response = with_max_tokens(response, clamped);
    Ok(with_generation(state, response, &generation))
}

/// Says how many tokens an answer may have, where the client asked for more.
pub(crate) fn with_max_tokens(mut response: Response, clamped: Option<usize>) -> Response {
    if let Some(most) = clamped {
        let most = HeaderValue::from(most as u64);
        response.headers_mut().insert(MAX_TOKENS, most);
    }
    response
}

/// Lowers what the client asked for to what fits behind each prompt. A prompt that leaves no room is
/// left to the engine, which refuses it. Returns the lowest new limit, if there is one.
fn clamp(state: &AppState, prepared: &mut PreparedRequest) -> Option<usize> {
    if !state.clamp_max_tokens {
        return None;
    }
    let context = state.engine.max_model_len();
    let mut lowest: Option<usize> = None;
    for (prompt, max_tokens) in &mut prepared.prompts {
        let room = context.saturating_sub(prompt.len());
        if room > 0 && *max_tokens > room {
            *max_tokens = room;
            lowest = Some(lowest.map_or(room, |known| known.min(room)));
        }
    }
    lowest
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
    let clamped = clamp(state, &mut prepared);
    let prompt_tokens = reserve(state, &mut prepared, &observation)?;
    let PreparedRequest {
        params,
        prompts,
        generation,
        calls,
        echo,
        thinking,
        scored,
        prompt_logprobs,
    } = prepared;
    let (field, prefix) = endpoint.names();
    let mut streams = Vec::new();
    let scored = PromptScores::new(&prompts, scored, prompt_logprobs);
    let ids = |(prompt, _): &(Vec<u32>, usize)| prompt.clone();
    let prompt_ids = params.token_ids.then(|| prompts.iter().map(ids).collect());
    for (prompt, max_tokens) in prompts {
        let opened = endpoint == Endpoint::Text && opened_by(&state.tokenizer.tail(&prompt));
        for choice in 0..params.n {
            if opened {
                // To policies it is thoughts, as if a template had opened them.
                observation.add_text(streams.len(), OPENS, false);
            }
            if max_tokens == 0 {
                streams.push(nothing(prompt.len()));
                continue;
            }
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
            model: models::named(state, &params.model).to_string(),
            fingerprint: generation.fingerprint(),
        },
        progress: Progress::new(ProgressSettings {
            tokenizer: Arc::clone(&state.tokenizer),
            observation,
            scored: params.sampling.top_logprobs.is_some(),
            top: params.sampling.top_logprobs.unwrap_or(0),
            choices: streams.len(),
            n: params.n,
            calls,
            echo,
            thinking,
            prompt: scored,
            checks: params.checks,
            constraint_field: params.constraint_field,
            prompt_ids,
            prompt_tokens,
        }),
        choices: streams.len(),
        include_usage: params.include_usage,
        continuous_usage: params.continuous_usage,
        clamped,
        events: merge(streams),
        cut: state.cut.clone(),
    })
}

/// A sequence of which no token is wanted.
fn nothing(prompt_tokens: usize) -> GenerateStream {
    let (events, stream) = tokio::sync::mpsc::unbounded_channel();
    // The receiver is open.
    let _sent = events.send(GenerateEvent::Finished {
        reason: FinishReason::Length,
        stopped_by: None,
        text: String::new(),
        prompt_tokens,
        cached_tokens: 0,
        completion_tokens: 0,
    });
    GenerateStream::new(stream)
}

/// Prompts that are only scored do not reach the engine, which would refuse those that do not fit.
fn check_lengths(
    state: &AppState,
    endpoint: Endpoint,
    prepared: &PreparedRequest,
) -> Result<(), ApiError> {
    let (param, _) = endpoint.names();
    let context = state.engine.max_model_len();
    match prepared
        .prompts
        .iter()
        .find(|(prompt, _)| prompt.len() > context)
    {
        Some((prompt, _)) => Err(ApiError::ContextLength {
            param,
            message: format!(
                "this model's maximum context length is {context} tokens, but the prompt has {}",
                prompt.len()
            ),
        }),
        None if prepared.prompts.iter().any(|(prompt, _)| prompt.is_empty()) => Err(
            ApiError::field(param, format!("`{param}` must not be empty")),
        ),
        None => Ok(()),
    }
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

async fn collect(mut active: ActiveRequest) -> Result<Response, ApiError> {
    let choices = choices(&mut active).await?;
    let progress = &active.progress;
    let answer = active
        .envelope
        .whole(&choices, progress.usage, &progress.settings.tokenizer);
    let said = Said::of_choices(choices.iter().map(|choice| choice.schema_notice.as_deref()));
    Ok(said.in_header(Json(answer).into_response()))
}
