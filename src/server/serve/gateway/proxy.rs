//! A request's way to a target and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use hyper::body::Incoming;
use realign_fleet::{Event, TargetId, Unit, is_generation};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::Gateway;
use super::client::{self, Connection, SendError};
use super::desk::{NoLease, Wanted};
use super::judge::Recording;
use super::outcome::Watch;
use super::source::BASE;
use super::upload::Upload;
use crate::api::ApiError;

/// Targets that are asked at most.
const ATTEMPTS: usize = 3;
/// Longest body of a 404 that is looked at.
const MAX_REFUSAL: usize = 64 << 10;
/// Names the generation that answered.
const GENERATION: HeaderName = HeaderName::from_static("x-realign-generation");
/// Tells which requests belong together, before what the body says.
const SESSION: &str = "x-session-id";

/// Headers of requests that targets get.
const FORWARDED: [&str; 8] = [
    "content-type",
    "accept",
    "user-agent",
    "traceparent",
    "tracestate",
    "x-request-id",
    "anthropic-version",
    "anthropic-beta",
];
/// Headers of answers that clients do not get: those of one connection, and what a target says of
/// what it serves by itself.
const DROPPED: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-realign-alignment",
    "x-realign-generation",
];

/// What an answer holds until its last byte.
struct Held {
    watch: Watch,
    /// A copy, if the answer is judged.
    recording: Option<Recording>,
    _connection: Connection,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Drop for Held {
    /// A client may close the connection behind the mark of the end.
    fn drop(&mut self) {
        if self.watch.has_ended()
            && let Some(recording) = self.recording.take()
        {
            recording.end();
        }
    }
}

/// How an attempt at a target ended.
enum Attempt {
    Answered(Response),
    /// The target is gone or lacks what it had; another may be asked. Holds what else is answered.
    Gone(Response),
    /// The connection broke after the request was sent. It may be the request that does this to
    /// targets, so another one is asked once.
    Broken(Response),
}

/// Passes a request on to a target that answers by the generation it asks for.
pub(super) async fn proxy(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    match pass_on(&gateway, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn pass_on(gateway: &Arc<Gateway>, request: Request) -> Result<Response, ApiError> {
    if !gateway.is_open() {
        return Err(ApiError::Unavailable(
            "the gateway is shutting down; retry in a moment".into(),
        ));
    }
    let permit = Arc::new(gateway.access.enter(request.headers())?);
    let uri = request.uri().clone();
    let headers = request.headers().clone();
    let limits = &gateway.limits;
    let deadline = Instant::now() + limits.max_request;
    let session = headers.get(SESSION).and_then(|value| value.to_str().ok());
    let session = session.filter(|session| !session.is_empty());
    let keyed = session.is_none() && gateway.desk.has_canary();
    let (limit, time) = (limits.max_body_bytes, limits.body_timeout);
    let upload = Upload::read(request, limit, time, keyed).await?;
    let unit = gateway.unit(session.or(upload.belongs.as_deref()));
    let wanted = wanted(gateway, &upload.model, unit)?;
    let mut tried: Vec<TargetId> = Vec::new();
    let (mut last, mut broken) = (None, 0);
    for attempt in 0..ATTEMPTS {
        if !upload.can_be_sent(attempt) {
            break;
        }
        let lease = match gateway.desk.lease(&wanted, &tried) {
            Ok(lease) => lease,
            Err(NoLease::Unknown) => return Err(unknown(gateway, &upload.model)),
            Err(NoLease::NoTarget) => break,
        };
        tried.push(lease.target.clone());
        let parts = (&uri, &headers, deadline);
        let watch = Watch::new(lease, gateway.telemetry.clone());
        match attempt_at(gateway, watch, &upload, parts, &permit).await? {
            Attempt::Answered(response) => return Ok(response),
            Attempt::Gone(response) => last = Some(response),
            Attempt::Broken(response) => {
                last = Some(response);
                broken += 1;
                if broken > 1 {
                    break;
                }
            }
        }
    }
    match (upload.fault(), last) {
        (Some(fault), _) => Err(fault),
        (None, Some(response)) => Ok(response),
        (None, None) => Err(ApiError::Unavailable(format!(
            "no target answers by {} now; GET /ready says why",
            if upload.model.is_empty() {
                &*gateway.name
            } else {
                upload.model.as_str()
            }
        ))),
    }
}

/// The generation that `model` names.
fn wanted(gateway: &Gateway, model: &str, unit: Unit) -> Result<Wanted, ApiError> {
    let name = &*gateway.name;
    if model.is_empty() || model == name {
        return Ok(Wanted::Served(unit));
    }
    let generation = model
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('@'));
    match generation {
        Some(id) if is_generation(id) || id == BASE => Ok(Wanted::Generation(id.into())),
        _ => Err(unknown(gateway, model)),
    }
}

fn unknown(gateway: &Gateway, model: &str) -> ApiError {
    let name = &gateway.name;
    ApiError::ModelNotFound {
        model: model.chars().take(128).collect(),
        allowed: format!(
            "`{name}`, and `{name}@<generation>` with the current or the previous generation, or that of a canary"
        ),
    }
}

async fn attempt_at(
    gateway: &Arc<Gateway>,
    mut watch: Watch,
    upload: &Upload,
    (uri, headers, deadline): (&Uri, &HeaderMap, Instant),
    permit: &Arc<OwnedSemaphorePermit>,
) -> Result<Attempt, ApiError> {
    let lease = &watch.lease;
    let Some(endpoint) = gateway.endpoint(&lease.target) else {
        return Ok(Attempt::Gone(no_answer(
            &lease.target,
            "it is no target any more",
        )));
    };
    let (body, length) = upload.body(&lease.model);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = axum::http::Request::post(path).header(header::HOST, &endpoint.authority);
    for name in FORWARDED {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    if let Some(length) = length {
        request = request.header(header::CONTENT_LENGTH, length);
    }
    if let Some(key) = &endpoint.keys.requests {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let request = request
        .body(body)
        .map_err(|e| ApiError::Internal(e.to_string()))?;
    let sent = timeout_at(deadline, client::send(&endpoint.authority, request)).await;
    let (response, connection) = match sent {
        Ok(Ok(answered)) => answered,
        // The client's own fault is none of the target.
        Ok(Err(_)) | Err(_) if upload.fault().is_some() => {
            let fault = upload.fault();
            return Err(fault.unwrap_or_else(|| ApiError::Internal("a body was lost".into())));
        }
        Ok(Err(error)) => {
            let why = error.to_string();
            tracing::warn!(target = %lease.target, why, "a target did not answer");
            gateway.runner.deliver(Event::Suspect(lease.target.clone()));
            let answer = no_answer(&lease.target, &why);
            return Ok(match error {
                SendError::Connect(_) => Attempt::Gone(answer),
                SendError::Broken(_) => {
                    watch.broke();
                    Attempt::Broken(answer)
                }
            });
        }
        Err(_) => {
            watch.broke();
            return Err(gateway.too_long());
        }
    };
    if response.status() == StatusCode::NOT_FOUND {
        let refused = refused(gateway, watch, response, deadline).await;
        connection.close().await;
        return refused;
    }
    watch.answers(response.status(), response.headers());
    let recording = gateway.judge.as_ref().and_then(|judge| {
        let said = (response.status(), response.headers());
        judge.record(uri.path(), said, &watch.lease, || upload.sent())
    });
    let held = Held {
        watch,
        recording,
        _connection: connection,
        _permit: permit.clone(),
    };
    Ok(Attempt::Answered(answer(gateway, response, held, deadline)))
}

/// A 404: either a route that targets do not have, or an adapter that this one had.
async fn refused(
    gateway: &Gateway,
    watch: Watch,
    response: axum::http::Response<Incoming>,
    deadline: Instant,
) -> Result<Attempt, ApiError> {
    let lease = &watch.lease;
    let (parts, body) = response.into_parts();
    let read = timeout_at(deadline, to_bytes(Body::new(body), MAX_REFUSAL)).await;
    let bytes = read.ok().and_then(Result::ok).unwrap_or_default();
    let is_about_model = String::from_utf8_lossy(&bytes).contains(&lease.model);
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = parts.status;
    copy_headers(&parts.headers, response.headers_mut());
    name_generation(response.headers_mut(), &lease.generation);
    if !is_about_model {
        return Ok(Attempt::Answered(response));
    }
    tracing::warn!(target = %lease.target, model = lease.model, "a target lacks what it had");
    gateway.runner.deliver(Event::Suspect(lease.target.clone()));
    let why = "it does not have this generation any more";
    Ok(Attempt::Gone(no_answer(&lease.target, why)))
}

fn no_answer(target: &TargetId, why: &str) -> Response {
    let message = format!("the target {target} did not answer ({why}); retry in a moment");
    ApiError::Unavailable(message).into_response()
}

/// A target's answer as the client gets it, byte by byte as it arrives.
fn answer(
    gateway: &Gateway,
    response: axum::http::Response<Incoming>,
    held: Held,
    deadline: Instant,
) -> Response {
    let (parts, body) = response.into_parts();
    let generation = held.watch.lease.generation.clone();
    let seconds = gateway.limits.max_request.as_secs();
    let state = (Body::new(body).into_data_stream(), held);
    let stream = futures::stream::unfold(Some(state), move |state| async move {
        let (mut stream, mut held): (_, Held) = state?;
        match timeout_at(deadline, stream.next()).await {
            Ok(None) => {
                held.watch.ended();
                None
            }
            Ok(Some(Ok(bytes))) => {
                held.watch.passes(&bytes);
                if let Some(recording) = &mut held.recording {
                    recording.passes(&bytes);
                }
                Some((Ok::<Bytes, axum::Error>(bytes), Some((stream, held))))
            }
            // The connection breaks: the client sees that it has not got everything.
            Ok(Some(Err(error))) => {
                held.watch.broke();
                Some((Err(error), None))
            }
            Err(_) => {
                held.watch.broke();
                tracing::warn!(seconds, "an answer took longer than fleet.max_request_s");
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Some((Err(axum::Error::new(late)), None))
            }
        }
    });
    let mut answer = Response::new(Body::from_stream(stream));
    *answer.status_mut() = parts.status;
    copy_headers(&parts.headers, answer.headers_mut());
    name_generation(answer.headers_mut(), &generation);
    answer
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if !DROPPED.contains(&name.as_str()) {
            to.append(name, value.clone());
        }
    }
}

fn name_generation(headers: &mut HeaderMap, generation: &str) {
    // Ids are hex digits, or `base`.
    if let Ok(value) = HeaderValue::from_str(generation) {
        headers.insert(GENERATION, value);
    }
}

impl Gateway {
    /// What is decided about at once in a canary: all requests of a key, or one without.
    fn unit(&self, key: Option<&str>) -> Unit {
        match key {
            Some(key) => Unit::of_key(key),
            None => Unit::of_request(self.unkeyed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn too_long(&self) -> ApiError {
        ApiError::Timeout {
            seconds: self.limits.max_request.as_secs(),
        }
    }
}

/// Limits of requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_body_bytes: usize,
    pub(super) body_timeout: Duration,
    pub(super) max_request: Duration,
}
