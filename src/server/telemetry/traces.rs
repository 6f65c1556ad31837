//! OpenTelemetry traces over OTLP (HTTP with JSON): one span per client request, and one per
//! realignment and per stage.
//!
//! The protocol's JSON encoding is small enough to be implemented here; the usual libraries would
//! add a second HTTP client, Protobuf and their own async runtime to every build. Spans go through
//! a bounded queue to one thread; if the queue is full or the collector unreachable, they are
//! dropped and counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::event::{Event, Outcome, RequestFinished};
use realign_core::supervision::Vital;
use realign_core::{Thread, clock};

/// The longest that sending one message may take before the thread counts as hung.
const LONGEST_SENDING: Duration = Duration::from_secs(60);
/// Maximum number of queued spans.
const QUEUE: usize = 4096;
/// Maximum number of spans in one message.
const BATCH: usize = 512;
/// Maximum time before a message is sent.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often a waiting thread checks for shutdown.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Time limit for a request to the collector.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Identifies a span within its trace, as defined by W3C Trace Context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// 32 hex digits.
    pub(crate) trace_id: String,
    /// 16 hex digits.
    pub(crate) span_id: String,
    /// The caller's span, if any: 16 hex digits.
    pub(crate) parent_id: Option<String>,
}

/// Sends spans to a collector from a thread of its own.
#[derive(Debug)]
pub(crate) struct Exporter {
    share: f64,
    queue: SyncSender<Value>,
    dropped: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    vital: Arc<Vital>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Starts the sending thread. `share` (0 to 1) is the fraction of requests traced if the client
    /// sends no `traceparent`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start(endpoint: &str, service: &str, share: f64) -> std::io::Result<Self> {
        let (queue, inbox) = sync_channel(QUEUE);
        let (dropped, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let config = ureq::Agent::config_builder()
            .http_status_as_error(true)
            .timeout_global(Some(TIMEOUT));
        let vital = Arc::new(Vital::new(Thread::Traces, LONGEST_SENDING));
        let mut sender = Sender {
            vital: Arc::clone(&vital),
            url: format!("{endpoint}/v1/traces"),
            service: service.into(),
            agent: config.build().into(),
            dropped: Arc::clone(&dropped),
            failing: false,
        };
        let (stopping, own) = (Arc::clone(&stop), Arc::clone(&vital));
        let run = move || {
            let stopped = || stopping.load(Ordering::Acquire);
            own.run_restarting(stopped, || sender.run(&inbox, &stopping));
        };
        let thread = std::thread::Builder::new()
            .name(Thread::Traces.as_str().into())
            .spawn(run)?;
        Ok(Self {
            share,
            queue,
            dropped,
            stop,
            vital,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The signs of life of the sending thread.
    pub(crate) fn vital(&self) -> Arc<Vital> {
        Arc::clone(&self.vital)
    }

    /// The context of a new request: part of the caller's trace if it sent a valid `traceparent`,
    /// provided that trace is recorded; otherwise a new trace for a random share of the requests.
    pub(crate) fn context(&self, traceparent: Option<&str>) -> Option<TraceContext> {
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

    /// Creates a span from an event that marks the end of a request, stage or realignment.
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
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sends the queued spans and stops the thread.
    pub(crate) fn shutdown(&self) {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!("the trace thread panicked");
        }
    }
}

/// The state of the sending thread.
struct Sender {
    vital: Arc<Vital>,
    url: String,
    service: String,
    agent: ureq::Agent,
    dropped: Arc<AtomicU64>,
    failing: bool,
}

impl Sender {
    fn run(&mut self, inbox: &Receiver<Value>, stop: &AtomicBool) {
        let mut batch = Vec::new();
        let mut oldest = Instant::now();
        loop {
            self.vital.beat();
            let next = inbox.recv_timeout(POLL_INTERVAL);
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
                // Log an unreachable collector once, not for every message.
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(url = self.url, %error, "cannot send traces to the collector");
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

/// A span that ends now and took `took`, without ids.
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

/// Trace id and root span id of a realignment. They are derived from its id, so that no state is
/// needed between its stages and its end.
fn realignment_ids(id: &str) -> (String, String) {
    let digest = hex::encode(Sha256::digest(format!("realignment {id}")));
    (digest[..32].to_string(), digest[32..48].to_string())
}

/// Parses a `traceparent` header (W3C Trace Context, 3.2): trace id, parent span id, and whether
/// the trace is recorded.
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
