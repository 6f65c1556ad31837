//! One record per request, reported when the last part of its answer is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;
use crate::telemetry::{Event, RequestFinished, Telemetry};

/// Header with the request's id, also on errors.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Status of a request whose client went away before the end, as nginx counts it.
const CLIENT_CLOSED: u16 = 499;

/// Every route that is counted. Probes and scrapes are not: they would drown the rest.
pub(crate) const ROUTES: [&str; 17] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/moderations",
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/v1/models/{*id}",
    "/admin/v1/policies",
    "/admin/v1/realignments",
    "/admin/v1/realignments/{id}",
    "/admin/v1/realignments/{id}/cancel",
    "/admin/v1/realignments/{id}/events",
    "/admin/v1/generations",
    "/admin/v1/generations/activate",
    "/admin/v1/generations/rollback",
];
pub(crate) const PROBES: [&str; 4] = ["/health", "/ready", "/metrics", "/openapi.json"];

/// What is known of a running request. The middleware holds one clone of the `Arc`, a streamed
/// answer another; the event goes out when the last is dropped.
pub(crate) struct Observation {
    telemetry: Arc<Telemetry>,
    started: Instant,
    record: Mutex<Record>,
}

struct Record {
    finished: RequestFinished,
    /// When each sequence's last token came.
    last_token: Vec<Option<Instant>>,
}

impl Observation {
    fn new(telemetry: Arc<Telemetry>, route: &'static str) -> Self {
        let finished = RequestFinished {
            route,
            status: CLIENT_CLOSED,
            time_to_first_token: None,
            inter_token: Vec::new(),
            duration: Duration::ZERO,
            prompt_tokens: 0,
            completion_tokens: 0,
            generation: None,
        };
        Self {
            telemetry,
            started: Instant::now(),
            record: Mutex::new(Record {
                finished,
                last_token: Vec::new(),
            }),
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
        let mut finished = self.record().finished.clone();
        finished.duration = self.started.elapsed();
        self.telemetry.emit(Event::RequestFinished(finished));
    }
}

/// Gives every request an id and, unless it is a probe, a record.
pub(crate) async fn observe(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let matched = request.extensions().get::<MatchedPath>();
    let path = matched.map_or("unmatched", MatchedPath::as_str);
    let route = ROUTES.into_iter().find(|route| *route == path);
    let probe = PROBES.contains(&path);
    let observation = (!probe).then(|| {
        let route = route.unwrap_or("unmatched");
        Arc::new(Observation::new(Arc::clone(&state.telemetry), route))
    });
    if let Some(observation) = &observation {
        request.extensions_mut().insert(Arc::clone(observation));
    }
    let mut response = next.run(request).await;
    if let Some(observation) = observation {
        observation.set_status(response.status().as_u16());
    }
    let id = format!("req_{:024x}", rand::random::<u128>() >> 32);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
