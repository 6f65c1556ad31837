//! Compliance of what passes: answers are copied beside the way to the client, and a server that has the policies judges the
//! copies.
//!
//! Nothing waits for it. An answer is passed on byte by byte as ever; its copy goes into a bounded queue when it has come to
//! its end, or is dropped and counted. One thread reads the texts and asks `/v1/moderations` of `fleet.judge`.

mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use realign_core::Thread;
use realign_core::supervision::Vital;
use realign_fleet::Seen;
use serde_json::{Value, json};

use super::desk::{Desk, Lease, Sample};
use super::upload::Sent;
use crate::config::JudgeConfig;
use crate::telemetry::event::FleetJudged;
use crate::telemetry::{Event, Telemetry};
use text::Format;

/// The longest answer that is judged, in bytes as it arrives.
const MAX_ANSWER: usize = 1 << 20;
/// Maximum size of all that waits, in bytes.
const MAX_WAITING: usize = 64 << 20;
/// The most texts that one question may have.
const MAX_TEXTS: usize = 128;
/// How long the judge may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that one answer may take before the thread counts as hung.
const LONGEST: Duration = Duration::from_secs(120);
/// How often an idle thread looks whether it should end.
const IDLE: Duration = Duration::from_millis(200);

/// The judge of a gateway. Dropping it ends its thread.
#[derive(Debug)]
pub(super) struct Judge {
    shared: Arc<Shared>,
    share: f64,
    stop: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Copied>,
    waiting: AtomicUsize,
    telemetry: Arc<Telemetry>,
}

/// An answer that has passed.
#[derive(Debug)]
struct Copied {
    format: Format,
    is_stream: bool,
    request: Vec<Bytes>,
    answer: Vec<u8>,
    generation: String,
    sample: Option<Sample>,
}

impl Copied {
    fn bytes(&self) -> usize {
        self.answer.len() + self.request.iter().map(Bytes::len).sum::<usize>()
    }
}

/// An answer on its way, of which a copy is made.
#[derive(Debug)]
pub(super) struct Recording {
    shared: Arc<Shared>,
    format: Format,
    is_stream: bool,
    request: Sent,
    answer: Vec<u8>,
    generation: String,
    sample: Option<Sample>,
}

impl Judge {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(
        config: &JudgeConfig,
        key: Option<String>,
        (desk, telemetry): (Arc<Desk>, Arc<Telemetry>),
    ) -> std::io::Result<Self> {
        let (queue, inbox) = sync_channel(config.queue);
        let shared = Arc::new(Shared {
            queue,
            waiting: AtomicUsize::new(0),
            telemetry,
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (own, stopping) = (shared.clone(), stop.clone());
        let mut asked = Asked {
            url: format!("{}/v1/moderations", config.url),
            key,
            agent: ureq::Agent::config_builder()
                .http_status_as_error(false)
                .proxy(None)
                .max_redirects(0)
                .timeout_global(Some(PATIENCE))
                .build()
                .into(),
            desk,
            shared: own,
            has_failed: false,
        };
        let vital = Vital::new(Thread::Compliance, LONGEST);
        let run = move || {
            let stopped = || stopping.load(Ordering::Acquire);
            // An answer whose judgement panics is lost, and with it nothing else.
            vital.run_restarting(stopped, || asked.run(&inbox, &vital, &stopped));
        };
        std::thread::Builder::new()
            .name(Thread::Compliance.as_str().into())
            .spawn(run)?;
        Ok(Self {
            shared,
            share: config.share,
            stop,
        })
    }

    /// Begins a copy of an answer, if it is one of those that are judged.
    pub(super) fn record(
        &self,
        path: &str,
        (status, headers): (StatusCode, &HeaderMap),
        lease: &Lease,
        request: impl FnOnce() -> Sent,
    ) -> Option<Recording> {
        let format = Format::of(path)?;
        let is_drawn = self.share >= 1.0 || rand::random::<f64>() < self.share;
        // What is compressed is not read.
        if status != StatusCode::OK || !is_drawn || headers.contains_key(header::CONTENT_ENCODING) {
            return None;
        }
        let kind = headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        Some(Recording {
            shared: self.shared.clone(),
            format,
            is_stream: kind.starts_with("text/event-stream"),
            request: request(),
            answer: Vec::new(),
            generation: lease.generation.clone(),
            sample: lease.sample(),
        })
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Recording {
    /// A piece of the answer has passed.
    pub(super) fn passes(&mut self, bytes: &[u8]) {
        // One byte more says that it was too long.
        let room = (MAX_ANSWER + 1).saturating_sub(self.answer.len());
        self.answer
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// The answer has come to its end.
    pub(super) fn end(self) {
        let shared = self.shared;
        let request = self.request.whole();
        let Some(request) = request.filter(|_| self.answer.len() <= MAX_ANSWER) else {
            shared.dropped("too_long");
            return;
        };
        let copied = Copied {
            format: self.format,
            is_stream: self.is_stream,
            request,
            answer: self.answer,
            generation: self.generation,
            sample: self.sample,
        };
        let bytes = copied.bytes();
        let before = shared.waiting.fetch_add(bytes, Ordering::AcqRel);
        if before + bytes > MAX_WAITING || shared.queue.try_send(copied).is_err() {
            shared.waiting.fetch_sub(bytes, Ordering::AcqRel);
            shared.dropped("queue_full");
        }
    }
}

impl Shared {
    fn dropped(&self, why: &'static str) {
        let metrics = self.telemetry.metrics();
        metrics.record(&Event::FleetJudged(FleetJudged::Dropped(why)));
    }
}

/// The thread's own.
struct Asked {
    url: String,
    key: Option<String>,
    agent: ureq::Agent,
    desk: Arc<Desk>,
    shared: Arc<Shared>,
    /// Whether the judge did not answer last.
    has_failed: bool,
}

impl Asked {
    fn run(&mut self, inbox: &Receiver<Copied>, vital: &Vital, stopped: &dyn Fn() -> bool) {
        while !stopped() {
            vital.beat();
            match inbox.recv_timeout(IDLE) {
                Ok(copied) => {
                    self.shared
                        .waiting
                        .fetch_sub(copied.bytes(), Ordering::AcqRel);
                    self.judge(copied);
                }
                Err(RecvTimeoutError::Timeout) => vital.rest(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn judge(&mut self, copied: Copied) {
        let prompt = copied.format.prompt(&copied.request.concat());
        let texts = copied.format.texts(&copied.answer, copied.is_stream);
        let (Some(prompt), Some(texts)) = (prompt, texts) else {
            self.shared.dropped("unreadable");
            return;
        };
        if texts.is_empty() {
            return;
        }
        let answer = self.ask(&prompt, &texts[..texts.len().min(MAX_TEXTS)]);
        let violates = match answer {
            Ok(violates) => violates,
            Err(why) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::warn!(
                        url = self.url,
                        why,
                        "the judge of answers does not answer; they are not judged"
                    );
                }
                self.shared.dropped("judge");
                return;
            }
        };
        if std::mem::replace(&mut self.has_failed, false) {
            tracing::info!(url = self.url, "the judge of answers is back");
        }
        if let Some(sample) = copied.sample {
            self.desk.tell(sample, Seen::Verdict { violates });
        }
        let metrics = self.shared.telemetry.metrics();
        metrics.record(&Event::FleetJudged(FleetJudged::Verdict {
            generation: copied.generation,
            complies: !violates,
        }));
    }

    /// Whether one of the texts violates a policy.
    fn ask(&self, prompt: &str, texts: &[String]) -> Result<bool, String> {
        let mut request = self.agent.post(&self.url);
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let sent = request.send_json(json!({ "input": texts, "prompt": prompt }));
        let mut response = sent.map_err(|error| error.to_string())?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(format!("status {status}"));
        }
        let body: Value = response.body_mut().read_json().map_err(|e| e.to_string())?;
        let results = body["results"]
            .as_array()
            .filter(|r| r.len() == texts.len());
        let results = results.ok_or("it does not answer as /v1/moderations does")?;
        let flagged = results.iter().map(|result| result["flagged"].as_bool());
        let flagged: Option<Vec<bool>> = flagged.collect();
        Ok(flagged.ok_or("a result has no `flagged`")?.contains(&true))
    }
}
