//! One record per request, reported when the last part of its answer has been sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::auth::Access;
use super::error::ApiError;
use super::exchanges::Exchanges;
use super::limits::Caller;
use super::routes::Labels;
use super::{AppState, nested};
use crate::telemetry::{
    Compliance, Event, IN_PROCESS, Refusal, RequestFinished, Telemetry, is_client_route,
};

/// Header with the request's id, also on errors.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Status of a request whose client disconnected early, as in nginx.
const CLIENT_CLOSED: u16 = 499;

/// Maximum length of a request id accepted from a client.
const REQUEST_ID_LIMIT: usize = 128;

/// The record of a running request. The middleware holds one clone of the `Arc`, a streamed answer
/// another; when the last one is dropped, the event is emitted and the answer is queued to be
/// judged.
pub(crate) struct Observation {
    telemetry: Arc<Telemetry>,
    /// Judges the answer; `None` if this one is not to be judged.
    compliance: Option<Arc<Compliance>>,
    body_timeout: Duration,
    started: Instant,
    record: Mutex<Record>,
}

struct Record {
    finished: RequestFinished,
    /// Time of each sequence's last token.
    last_token: Vec<Option<Instant>>,
    /// Prompts and answers, kept only if they are to be judged.
    exchange: Exchanges,
    admission: Option<Admission>,
    /// What the request has taken from its caller's limit and not settled.
    reservation: Option<Reservation>,
}

/// What a client's request holds until its last byte has been sent.
struct Admission {
    access: Arc<Access>,
    /// `None` in the process that the server is embedded in, where no limits apply.
    caller: Option<Caller>,
    _permit: OwnedSemaphorePermit,
}

/// Tokens taken from a caller's limit. Dropping it without settling gives them back.
struct Reservation {
    access: Arc<Access>,
    caller: Caller,
    tokens: usize,
    used: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.access.settle(&self.caller, self.tokens, self.used);
    }
}

impl Observation {
    fn new(state: &AppState, route: &'static str, request_id: &str) -> Self {
        let finished = RequestFinished {
            route,
            request_id: request_id.into(),
            caller: None,
            status: CLIENT_CLOSED,
            time_to_first_token: None,
            inter_token: Vec::new(),
            duration: Duration::ZERO,
            prompt_tokens: 0,
            completion_tokens: 0,
            generation: None,
            trace: None,
        };
        let judged = is_client_route(route) || route == IN_PROCESS;
        let compliance = state
            .compliance
            .as_ref()
            .filter(|c| judged && c.should_judge());
        Self {
            telemetry: Arc::clone(&state.telemetry),
            compliance: compliance.cloned(),
            body_timeout: state.body_timeout,
            started: Instant::now(),
            record: Mutex::new(Record {
                finished,
                last_token: Vec::new(),
                exchange: Exchanges::default(),
                admission: None,
                reservation: None,
            }),
        }
    }

    /// A request from the process that the server is embedded in, without an API key or trace.
    pub(crate) fn in_process(state: &AppState) -> Self {
        Self::new(state, IN_PROCESS, &new_id())
    }

    /// Counts the request as running until its record is reported, so that draining waits for it.
    pub(crate) fn hold(&self, access: Arc<Access>, permit: OwnedSemaphorePermit) {
        self.record().admission = Some(Admission {
            access,
            caller: None,
            _permit: permit,
        });
    }

    /// Timeout for the request's body.
    pub(crate) fn body_timeout(&self) -> Duration {
        self.body_timeout
    }

    /// Records that a client's request was admitted under `caller`'s name and holds a permit.
    pub(crate) fn admitted(
        &self,
        access: Arc<Access>,
        caller: Caller,
        permit: OwnedSemaphorePermit,
    ) {
        let mut record = self.record();
        record.finished.caller = Some(Arc::clone(&caller.name));
        record.admission = Some(Admission {
            access,
            caller: Some(caller),
            _permit: permit,
        });
    }

    /// The name of the key that the request carries; empty if it is not a client's.
    pub(crate) fn caller_name(&self) -> Arc<str> {
        let caller = self.record().finished.caller.clone();
        caller.unwrap_or_else(|| "".into())
    }

    /// The caller's limit of tokens per minute, if there is one.
    pub(crate) fn tokens_per_minute(&self) -> Option<u32> {
        let record = self.record();
        let caller = record.admission.as_ref()?.caller.as_ref()?;
        caller.rates.tokens
    }

    /// Takes from the caller's limit the tokens that the request may use at most. They are settled
    /// when the request ends: what it used is charged, also if the client does not wait for it.
    ///
    /// # Errors
    /// If the caller has not so many left.
    pub(crate) fn reserve(&self, tokens: usize) -> Result<(), ApiError> {
        let mut record = self.record();
        let Some(admission) = &record.admission else {
            return Ok(());
        };
        let Some(caller) = admission.caller.clone() else {
            return Ok(());
        };
        let access = Arc::clone(&admission.access);
        access.reserve(&caller, tokens)?;
        record.reservation = Some(Reservation {
            access,
            caller,
            tokens,
            used: 0,
        });
        Ok(())
    }

    /// Records that the model is given `tokens` tokens of prompts, which are charged from here on.
    pub(crate) fn prompt_accepted(&self, tokens: usize) {
        self.record().finished.prompt_tokens = tokens;
    }

    /// Records tokens that were generated for a client that did not wait for them.
    pub(crate) fn add_unread(&self, tokens: usize) {
        self.record().finished.completion_tokens += tokens;
    }

    /// Extracts the prompts from the request's body, if the answer is to be judged.
    pub(crate) fn set_prompts(&self, body: &Value) {
        if self.compliance.is_some() {
            self.record().exchange.set_prompts(body);
        }
    }

    /// Records text added to a choice, and whether the choice ends there.
    pub(crate) fn add_text(&self, index: usize, text: &str, ended: bool) {
        if self.compliance.is_some() {
            self.record().exchange.add_text(index, text, ended);
        }
    }

    /// Records thoughts of a choice.
    pub(crate) fn add_thoughts(&self, index: usize, thoughts: &str) {
        if self.compliance.is_some() && !thoughts.is_empty() {
            self.record().exchange.add_thoughts(index, thoughts);
        }
    }

    /// Reports that a choice violates the schema that was asked for.
    pub(crate) fn add_invalid_answer(&self, choice: usize, found: &str) {
        let found = found.to_owned();
        self.telemetry.emit(Event::SchemaViolated { choice, found });
    }

    /// Sets the HTTP status to report.
    pub(crate) fn set_status(&self, status: u16) {
        self.record().finished.status = status;
    }

    /// Records that the client disconnected during a stream.
    pub(crate) fn set_closed_by_client(&self) {
        self.set_status(CLIENT_CLOSED);
    }

    /// Sets the generation that answers.
    pub(crate) fn set_generation(&self, generation: &str) {
        self.record().finished.generation = Some(generation.to_string());
    }

    /// Records a new token of sequence `index`.
    pub(crate) fn add_token(&self, index: usize) {
        let now = Instant::now();
        let mut record = self.record();
        if record.last_token.len() <= index {
            record.last_token.resize(index + 1, None);
        }
        if let Some(before) = record.last_token[index].replace(now) {
            record.finished.inter_token.push(now - before);
        }
        let first = now - self.started;
        record.finished.time_to_first_token.get_or_insert(first);
        record.finished.completion_tokens += 1;
    }

    /// Sets the final token counts, replacing those counted so far, and charges the caller.
    pub(crate) fn set_tokens(&self, prompt: usize, completion: usize) {
        let mut record = self.record();
        record.finished.prompt_tokens = prompt;
        record.finished.completion_tokens = completion;
        record.settle();
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing panics while the lock is held.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// Charges the caller for the tokens counted, instead of those reserved.
    fn settle(&mut self) {
        if let Some(mut reservation) = self.reservation.take() {
            reservation.used = self.finished.prompt_tokens + self.finished.completion_tokens;
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let (finished, exchange, admission) = {
            let mut record = self.record();
            record.finished.duration = self.started.elapsed();
            record.settle();
            (
                record.finished.clone(),
                std::mem::take(&mut record.exchange),
                record.admission.take(),
            )
        };
        // Release the permit before doing anything else for this request.
        drop(admission);
        if let Some(compliance) = &self.compliance {
            for answer in exchange.into_answers(&finished) {
                compliance.offer(answer);
            }
        }
        self.telemetry.emit(Event::RequestFinished(finished));
    }
}

/// State of the observing middleware.
#[derive(Clone)]
pub(crate) struct Observer {
    pub(crate) state: AppState,
    pub(crate) labels: Labels,
}

/// Middleware that gives every request an id and, unless its route is not counted, a record.
pub(crate) async fn observe(
    State(Observer { state, labels }): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let label = labels.of(nested::route(request.extensions()));
    let id = request_id(request.headers());
    let observation = label.map(|route| {
        let observation = Observation::new(&state, route, &id);
        let parent = request
            .headers()
            .get("traceparent")
            .and_then(|value| value.to_str().ok());
        let trace = state
            .telemetry
            .exporter()
            .and_then(|exporter| exporter.context(parent));
        observation.record().finished.trace = trace;
        Arc::new(observation)
    });
    if let Some(observation) = &observation {
        request.extensions_mut().insert(Arc::clone(observation));
    }
    let mut response = next.run(request).await;
    if let Some(observation) = observation {
        observation.set_status(response.status().as_u16());
        if let Some(refusal) = response.extensions().get::<Refusal>() {
            let reason = *refusal;
            state.telemetry.emit(Event::RequestRefused { reason });
        }
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The id that the client sent, if it is safe to log; otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |id: &&str| {
        let fits = !id.is_empty() && id.len() <= REQUEST_ID_LIMIT;
        fits && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b))
    };
    let sent = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match sent.filter(plain) {
        Some(id) => id.to_string(),
        None => new_id(),
    }
}

fn new_id() -> String {
    format!("req_{:024x}", rand::random::<u128>() >> 32)
}
