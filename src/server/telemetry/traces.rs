//! OpenTelemetry traces over OTLP (HTTP with JSON): one span for each client request, one for each
//! realignment and its stages.
//!
//! The protocol's JSON form is small enough to be written here; the usual libraries would bring a
//! second HTTP client, Protobuf and an async runtime of their own into every build. Spans go
//! through a bounded queue to one thread; what finds no place or no collector is dropped and counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::event::{Event, Outcome, RequestFinished};
use realign_core::clock;

/// Spans that may wait.
const QUEUE: usize = 4096;
/// Spans in one message.
const BATCH: usize = 512;
/// Longest wait before a message goes out.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often a waiting thread looks whether the server goes down.
const LOOK: Duration = Duration::from_millis(200);
/// Time for the collector to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A span's place in its trace, by W3C Trace Context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// The caller's span, 16 hex digits.
    pub parent_id: Option<String>,
}

/// Sends spans to a collector.
#[derive(Debug)]
pub struct Exporter {
    share: f64,
    queue: SyncSender<Value>,
    dropped: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Starts the sending thread. `share` of the requests is traced where the client does not say.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(endpoint: &str, service: &str, share: f64) -> std::io::Result<Self> {
        let (queue, inbox) = sync_channel(QUEUE);
        let (dropped, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let config = ureq::Agent::config_builder()
            .http_status_as_error(true)
            .timeout_global(Some(TIMEOUT));
        let sender = Sender {
            url: format!("{endpoint}/v1/traces"),
            service: service.into(),
            agent: config.build().into(),
            dropped: Arc::clone(&dropped),
            failing: false,
        };
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("traces".into())
            .spawn(move || sender.run(&inbox, &stopping))?;
        Ok(Self {
            share,
            queue,
            dropped,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The context of a new request: within its caller's trace, if the `traceparent` that it sent
    /// is valid and says that the trace is recorded; a new trace for a share of the others.
    pub fn context(&self, traceparent: Option<&str>) -> Option<TraceContext> {
        let (trace_id, parent_id) = match traceparent.and_then(parse) {
            Some((_, _, false)) => return None,
            Some((trace, parent, true)) => (trace, Some(parent)),
            None if rand::random::<f64>() < self.share => {
                (hex::encode(rand::random::<[u8; 16]>()), None)
            }
            None => return None,
        };
        Some(TraceContext {
            trace_id,
            span_id: hex::encode(rand::random::<[u8; 8]>()),
            parent_id,
        })
    }

    /// Turns an event that ends something into a span.
    pub(super) fn record(&self, event: &Event) {
        let span = match event {
            Event::RequestFinished(request) => request_span(request),
            Event::StageFinished { id, stage, took } => {
                let (trace, root) = realignment_ids(id);
                let attributes = json!([text("realign.realignment", id)]);
                let name = format!("stage {stage}");
                let mut span = span(&name, *took, attributes);
                span["traceId"] = trace.into();
                span["spanId"] = hex::encode(rand::random::<[u8; 8]>()).into();
                span["parentSpanId"] = root.into();
                Some(span)
            }
            Event::RealignmentFinished {
                id,
                outcome,
                detail,
                took,
                ..
            } => {
                let (trace, root) = realignment_ids(id);
                let attributes = json!([
                    text("realign.realignment", id),
                    text("realign.outcome", outcome.as_str()),
                ]);
                let mut span = span("realignment", *took, attributes);
                span["traceId"] = trace.into();
                span["spanId"] = root.into();
                if matches!(outcome, Outcome::Failed | Outcome::Rejected) {
                    span["status"] = json!({"code": 2, "message": detail});
                }
                Some(span)
            }
            _ => None,
        };
        if let Some(span) = span
            && self.queue.try_send(span).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Spans that did not reach the collector.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sends what waits and ends the thread.
    pub fn shutdown(&self) {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the trace thread panicked");
        }
    }
}

/// What the thread owns.
struct Sender {
    url: String,
    service: String,
    agent: ureq::Agent,
    dropped: Arc<AtomicU64>,
    failing: bool,
}

impl Sender {
    fn run(mut self, inbox: &Receiver<Value>, stop: &AtomicBool) {
        let mut batch = Vec::new();
        let mut oldest = Instant::now();
        loop {
            let next = inbox.recv_timeout(LOOK);
            let ended = match next {
                Ok(span) => {
                    if batch.is_empty() {
                        oldest = Instant::now();
                    }
                    batch.push(span);
                    false
                }
                Err(RecvTimeoutError::Timeout) => stop.load(Ordering::Acquire),
                Err(RecvTimeoutError::Disconnected) => true,
            };
            let due = batch.len() >= BATCH || oldest.elapsed() >= INTERVAL || ended;
            if due && !batch.is_empty() {
                self.send(std::mem::take(&mut batch));
            }
            if ended {
                return;
            }
        }
    }

    fn send(&mut self, spans: Vec<Value>) {
        let count = spans.len() as u64;
        let message = json!({"resourceSpans": [{
            "resource": {"attributes": [text("service.name", &self.service)]},
            "scopeSpans": [{
                "scope": {"name": "realign", "version": env!("CARGO_PKG_VERSION")},
                "spans": spans,
            }],
        }]});
        match self.agent.post(&self.url).send_json(&message) {
            Ok(_) => self.failing = false,
            Err(error) => {
                self.dropped.fetch_add(count, Ordering::Relaxed);
                // A collector that is down is told of once, not with every message.
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(url = self.url, %error, "traces do not reach their collector");
                }
            }
        }
    }
}

fn request_span(request: &RequestFinished) -> Option<Value> {
    let trace = request.trace.as_ref()?;
    let number = |key: &str, n: usize| json!({"key": key, "value": {"intValue": n.to_string()}});
    let mut attributes = vec![
        text("http.route", request.route),
        number("http.response.status_code", usize::from(request.status)),
        text("realign.request_id", &request.request_id),
        number("gen_ai.usage.input_tokens", request.prompt_tokens),
        number("gen_ai.usage.output_tokens", request.completion_tokens),
    ];
    if let Some(generation) = &request.generation {
        attributes.push(text("realign.generation", generation));
    }
    if let Some(first) = request.time_to_first_token {
        attributes.push(json!({
            "key": "realign.time_to_first_token_seconds",
            "value": {"doubleValue": first.as_secs_f64()},
        }));
    }
    let mut span = span(request.route, request.duration, Value::Array(attributes));
    span["kind"] = 2.into();
    span["traceId"] = trace.trace_id.as_str().into();
    span["spanId"] = trace.span_id.as_str().into();
    if let Some(parent) = &trace.parent_id {
        span["parentSpanId"] = parent.as_str().into();
    }
    if request.status >= 500 {
        span["status"] = json!({"code": 2});
    }
    Some(span)
}

/// A span that ends now.
fn span(name: &str, took: Duration, attributes: Value) -> Value {
    let end = clock::since_1970();
    let start = end.saturating_sub(took);
    json!({
        "name": name,
        "kind": 1,
        "startTimeUnixNano": start.as_nanos().to_string(),
        "endTimeUnixNano": end.as_nanos().to_string(),
        "attributes": attributes,
    })
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// Trace and root span of a realignment: computed from its id, so that stages and end need not
/// know of each other.
fn realignment_ids(id: &str) -> (String, String) {
    let digest = hex::encode(Sha256::digest(format!("realignment {id}")));
    (digest[..32].to_string(), digest[32..48].to_string())
}

/// Trace, parent and whether the trace is recorded, of a `traceparent` (W3C Trace Context, 3.2).
fn parse(header: &str) -> Option<(String, String, bool)> {
    let mut parts = header.trim().split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let digits = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    let valid = digits(version, 2)
        && version != "ff"
        && digits(trace, 32)
        && !zero(trace)
        && digits(parent, 16)
        && !zero(parent)
        && digits(flags, 2);
    let flags = u8::from_str_radix(flags, 16).ok().filter(|_| valid)?;
    Some((trace.into(), parent.into(), flags & 1 == 1))
}

#[cfg(test)]
mod tests;
