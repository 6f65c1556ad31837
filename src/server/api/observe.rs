//! One record per request, reported when the last part of its answer is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::auth::Access;
use super::exchanges::Exchanges;
use super::routes::Labels;
use super::{AppState, nested};
use crate::telemetry::{Compliance, Event, IN_PROCESS, Refusal, RequestFinished, Telemetry};

/// Header with the request's id, also on errors.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Status of a request whose client went away before the end, as nginx counts it.
const CLIENT_CLOSED: u16 = 499;

/// Longest request id that is taken over from a client.
const REQUEST_ID_LIMIT: usize = 128;

/// What is known of a running request. The middleware holds one clone of the `Arc`, a streamed
/// answer another; the event goes out, and the answer is handed on to be judged, when the last is
/// dropped.
pub(crate) struct Observation {
    telemetry: Arc<Telemetry>,
    /// Who judges the answer, if this one is to be judged.
    compliance: Option<Arc<Compliance>>,
    body_timeout: Duration,
    started: Instant,
    record: Mutex<Record>,
}

struct Record {
    finished: RequestFinished,
    /// When each sequence's last token came.
    last_token: Vec<Option<Instant>>,
    /// What was asked and answered, kept only if it is to be judged.
    exchange: Exchanges,
    admission: Option<Admission>,
}

/// What a client's request holds until its last byte is gone.
struct Admission {
    access: Arc<Access>,
    _place: OwnedSemaphorePermit,
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
        let judged = route.starts_with("/v1/") || route == IN_PROCESS;
        let compliance = state.compliance.as_ref().filter(|c| judged && c.should_judge());
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
            }),
        }
    }

    /// A request from the process that the server is embedded in. It belongs to no key and is part
    /// of no trace.
    pub(crate) fn in_process(state: &AppState) -> Self {
        Self::new(state, IN_PROCESS, &new_id())
    }

    /// The request counts as running until its record is reported, so that draining waits for it.
    pub(crate) fn hold(&self, access: Arc<Access>, place: OwnedSemaphorePermit) {
        self.record().admission = Some(Admission {
            access,
            _place: place,
        });
    }

    /// Time in which the request's body must arrive.
    pub(crate) fn body_timeout(&self) -> Duration {
        self.body_timeout
    }

    /// A client's request was let in under `caller`'s name and holds a place.
    pub(crate) fn admitted(
        &self,
        access: Arc<Access>,
        caller: Arc<str>,
        place: OwnedSemaphorePermit,
    ) {
        let mut record = self.record();
        record.finished.caller = Some(caller);
        record.admission = Some(Admission {
            access,
            _place: place,
        });
    }

    /// The request's body, from which the prompts are taken if the answer is to be judged.
    pub(crate) fn asked(&self, body: &Value) {
        if self.compliance.is_some() {
            self.record().exchange.ask(body);
        }
    }

    /// Text that was added to a choice, and whether it ends there.
    pub(crate) fn answered(&self, index: usize, text: &str, ended: bool) {
        if self.compliance.is_some() {
            self.record().exchange.answer(index, text, ended);
        }
    }

    pub(crate) fn set_status(&self, status: u16) {
        self.record().finished.status = status;
    }

    /// The client went away in the middle of a stream.
    pub(crate) fn set_closed_by_client(&self) {
        self.set_status(CLIENT_CLOSED);
    }

    pub(crate) fn set_generation(&self, generation: &str) {
        self.record().finished.generation = Some(generation.to_string());
    }

    /// Sequence `index` has a new token.
    pub(crate) fn token(&self, index: usize) {
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

    /// Final figures, in place of those counted so far.
    pub(crate) fn set_tokens(&self, prompt: usize, completion: usize) {
        let mut record = self.record();
        record.finished.prompt_tokens = prompt;
        record.finished.completion_tokens = completion;
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing panics while the lock is held.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let (finished, exchange, admission) = {
            let mut record = self.record();
            record.finished.duration = self.started.elapsed();
            (
                record.finished.clone(),
                std::mem::take(&mut record.exchange),
                record.admission.take(),
            )
        };
        if let (Some(admission), Some(caller)) = (&admission, &finished.caller) {
            let tokens = finished.prompt_tokens + finished.completion_tokens;
            admission.access.charge(caller, tokens);
        }
        // The place is free before anything else is done for this request.
        drop(admission);
        if let Some(compliance) = &self.compliance {
            for answer in exchange.into_answers(&finished) {
                compliance.offer(answer);
            }
        }
        self.telemetry.emit(Event::RequestFinished(finished));
    }
}

/// What the observer of a listener needs.
#[derive(Clone)]
pub(crate) struct Observer {
    pub(crate) state: AppState,
    pub(crate) labels: Labels,
}

/// Gives every request an id and, unless it is a probe, a record.
pub(crate) async fn observe(
    State(Observer { state, labels }): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let label = labels.of(nested::route(request.extensions()));
    let id = request_id(request.headers());
    let observation = label.map(|route| {
        let observation = Observation::new(&state, route, &id);
        let parent = request.headers().get("traceparent");
        let parent = parent.and_then(|value| value.to_str().ok());
        let exporter = state.telemetry.exporter();
        let trace = exporter.and_then(|exporter| exporter.context(parent));
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

/// The id that the client sent, if it can stand in a log as it is; otherwise a new one.
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
