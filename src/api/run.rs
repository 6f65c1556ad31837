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
use super::tool_calls::{CallReader, Part};
use super::tools::{ToolChoice, Tools};
use super::wire::{CallDelta, Envelope, Piece, Reason, Scored, Shape, Usage};
use super::{AppState, blocking, body, compile, models, streaming, unix_seconds};
use crate::adapter::generation::Generation;
use crate::engine::grammar::Constraint;
use crate::engine::request::{FinishReason, GenerateEvent, GenerateRequest, GenerateStream};
use crate::model::{CallStyle, Tokenizer};

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
    let (tools, format) = (&request.tools, &request.format);
    let grammar = compile::constraint(&state, tools, format, "response_format").await?;
    let prepared = prepare_chat(&state, request, grammar).await?;
    respond(&state, Shape::Chat, prepared, observation).await
}

/// Leases the generation and lays the conversation out.
async fn prepare_chat(
    state: &AppState,
    mut request: ChatRequest,
    grammar: Option<Constraint>,
) -> Result<Prepared, ApiError> {
    let state = state.clone();
    blocking(move || {
        let generation = models::resolve(&state, &request.params.model)?;
        request.params.check_bias(&state.tokenizer)?;
        let prompt = request.encode(&state)?;
        let max_tokens = request.max_tokens(prompt.len(), state.engine.max_model_len());
        request.params.sampling.grammar = grammar;
        Ok(Prepared {
            calls: CallReading::new(&request.tools, &state),
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
            let generation = models::resolve(&state, &request.params.model)?;
            request.params.check_bias(&state.tokenizer)?;
            let limit = state.engine.max_model_len();
            let with_max = |ids: Vec<u32>| {
                let max_tokens = request.max_tokens(ids.len(), limit);
                (ids, max_tokens)
            };
            let encoded = request.encode(&state)?;
            let echo = request.echo(&state.tokenizer, &encoded)?;
            let prompts = encoded.into_iter().map(with_max).collect();
            Ok(Prepared {
                params: request.params,
                prompts,
                generation,
                calls: None,
                echo,
            })
        }
    })
    .await?;
    respond(&state, Shape::Text, prepared, observation).await
}

/// A request that can be submitted.
pub(crate) struct Prepared {
    pub(crate) params: Params,
    /// Token ids, and the most tokens to generate after them.
    pub(crate) prompts: Vec<(Vec<u32>, usize)>,
    pub(crate) generation: Arc<Generation>,
    /// How calls are read, if there may be any.
    pub(crate) calls: Option<CallReading>,
    /// The text of each prompt, if it is to stand before the answer.
    pub(crate) echo: Vec<String>,
}

/// How calls are found in an answer and reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallReading {
    style: CallStyle,
    /// The client named the function, so that the answer stops rather than calls.
    named: bool,
}

impl CallReading {
    pub(crate) fn new(tools: &Tools, state: &AppState) -> Option<Self> {
        tools.callable().then(|| Self {
            style: state.chat.call_style(),
            named: matches!(tools.choice, ToolChoice::Named(_)),
        })
    }
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
    calls: Option<CallReading>,
    /// One for each choice, if there may be calls.
    readers: Vec<CallReader>,
    /// Calls of each choice so far.
    called: Vec<usize>,
    /// The text of each prompt, if it is to stand before the answer.
    echo: Vec<String>,
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
    let response = if stream {
        streaming::response(job)
    } else {
        Json(collect(job).await?).into_response()
    };
    Ok(with_generation(response, &generation))
}

/// Names the generation that answers in the response's header.
pub(crate) fn with_generation(mut response: Response, generation: &Generation) -> Response {
    if let Ok(id) = HeaderValue::from_str(&generation.id.0) {
        response.headers_mut().insert(GENERATION, id);
    }
    response
}

/// Queues the sequences of a request.
///
/// # Errors
/// If the server is not ready or the engine refuses; nothing is left behind then.
pub(crate) fn submit(
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
        calls,
        echo,
    } = prepared;
    let (field, prefix) = shape.names();
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
            id: format!("{prefix}{:024x}", rand::random::<u128>() >> 32),
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
            readers: match calls {
                Some(calls) => vec![CallReader::new(calls.style); streams.len()],
                None => Vec::new(),
            },
            called: vec![0; streams.len()],
            calls,
            echo,
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
    /// The text that stands before a choice's answer, if it was asked for.
    pub(crate) fn echo(&self, index: usize) -> Option<&str> {
        self.echo.get(index / self.n).map(String::as_str)
    }

    /// What an event adds to its choice.
    ///
    /// # Errors
    /// If the engine could not go on.
    pub(crate) fn piece(&mut self, index: usize, event: GenerateEvent) -> Result<Piece, ApiError> {
        let mut piece = Piece {
            offset: self.offsets[index],
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
                self.read(index, &text, &mut piece);
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
                self.read(index, &text, &mut piece);
                self.end(index, reason, &mut piece)?;
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
        Ok(piece)
    }

    /// New text of a choice: text, or calls in it.
    fn read(&mut self, index: usize, text: &str, piece: &mut Piece) {
        let Some(reader) = self.readers.get_mut(index) else {
            piece.text.push_str(text);
            return;
        };
        let parts = reader.push(text);
        self.take(index, parts, piece);
    }

    fn take(&mut self, index: usize, parts: Vec<Part>, piece: &mut Piece) {
        for part in parts {
            let called = &mut self.called[index];
            match part {
                Part::Text(text) => piece.text.push_str(&text),
                Part::Call(name) => {
                    let id = format!("call_{:024x}", rand::random::<u128>() >> 32);
                    piece.calls.push(CallDelta {
                        index: *called,
                        opens: Some((id, name)),
                        arguments: String::new(),
                    });
                    *called += 1;
                }
                Part::Arguments(arguments) => piece.calls.push(CallDelta {
                    index: called.saturating_sub(1),
                    opens: None,
                    arguments,
                }),
            }
        }
    }

    fn end(
        &mut self,
        index: usize,
        reason: FinishReason,
        piece: &mut Piece,
    ) -> Result<(), ApiError> {
        if let Some(reader) = self.readers.get_mut(index) {
            let parts = reader.finish();
            self.take(index, parts, piece);
        }
        let called = self.called[index] > 0 && self.calls.is_some_and(|calls| !calls.named);
        piece.reason = Some(match reason {
            FinishReason::Stop if called => Reason::ToolCalls,
            FinishReason::Stop => Reason::Stop,
            FinishReason::Length => Reason::Length,
            FinishReason::Grammar => {
                let param = match self.calls {
                    Some(_) => "tools",
                    None => "response_format",
                };
                let message = "the schema became too complex while the answer was generated; \
                               make it simpler";
                return Err(ApiError::field(param, message));
            }
        });
        Ok(())
    }

    /// Reports the figures of a request that ran to its end.
    pub(crate) fn finish(&self) {
        self.observation
            .set_tokens(self.usage.prompt, self.usage.completion);
    }
}

/// Reads a job to its end: its choices, whole.
///
/// # Errors
/// If the engine could not go on.
pub(crate) async fn choices(job: &mut Job) -> Result<Vec<Piece>, ApiError> {
    let empty = |index| Piece {
        text: job.progress.echo(index).unwrap_or_default().to_string(),
        scored: job.progress.scored.then(Vec::new),
        ..Piece::default()
    };
    let mut choices: Vec<Piece> = (0..job.choices).map(empty).collect();
    while let Some((index, event)) = job.events.next().await {
        let piece = job.progress.piece(index, event)?;
        choices[index].extend(piece);
    }
    job.progress.finish();
    Ok(choices)
}

async fn collect(mut job: Job) -> Result<Value, ApiError> {
    let choices = choices(&mut job).await?;
    let shape = job.envelope.shape;
    let tokenizer = &job.progress.tokenizer;
    let choices = choices.iter().enumerate();
    let choices = choices.map(|(i, piece)| shape.choice(i, piece, tokenizer));
    Ok(job.envelope.whole(choices.collect(), job.progress.usage))
}
