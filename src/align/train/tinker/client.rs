//! Requests to an engine: repeated while it does not answer, given up when the run ends.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error::TinkerError;
use super::{Patience, Tinker};
use super::{proto, wire};
use crate::train::run::{Observer, TrainError};

/// Engines hold a question for a result for up to five minutes.
const TIMEOUT: Duration = Duration::from_secs(330);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last request of a run is waited for.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often one who waits looks whether to give up.
const LOOK: Duration = Duration::from_millis(50);
/// How often an engine is told that the run goes on.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Largest answer.
const MAX_ANSWER: u64 = 8 << 30;

/// Requests of one run.
pub(super) struct Client<'a> {
    target: Arc<Target>,
    observer: &'a dyn Observer,
    patience: Patience,
    deadline: Instant,
    minutes: u64,
    session: RefCell<Option<String>>,
    beaten: Cell<Instant>,
}

/// Where requests go.
struct Target {
    url: String,
    agent: ureq::Agent,
    key: Option<String>,
}

impl fmt::Debug for Client<'_> {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.target.url)
    }
}

#[derive(Clone)]
struct Request {
    path: String,
    body: Body,
}

#[derive(Clone)]
enum Body {
    None,
    Json(Value),
    /// A message of [`proto`].
    Proto(Vec<u8>),
}

struct Answer {
    status: u16,
    wait: Option<Duration>,
    /// Whether the body is a message of [`proto`].
    is_proto: bool,
    body: Vec<u8>,
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`TinkerError::NoKey`].
    pub(super) fn new(tinker: &Tinker, observer: &'a dyn Observer) -> Result<Self, TinkerError> {
        let key = match &tinker.spec.key_env {
            None => None,
            Some(name) => match std::env::var(name) {
                Ok(key) if !key.is_empty() => Some(key),
                _ => return Err(TinkerError::NoKey(name.clone())),
            },
        };
        let url = tinker.spec.url.trim_end_matches('/');
        let url = url.strip_suffix("/api/v1").unwrap_or(url);
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            // The key would go along.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        let now = Instant::now();
        Ok(Self {
            target: Arc::new(Target {
                url: url.to_owned(),
                agent: config.into(),
                key,
            }),
            observer,
            patience: tinker.patience,
            deadline: now + tinker.max_time,
            minutes: tinker.max_time.as_secs().div_ceil(60),
            session: RefCell::new(None),
            beaten: Cell::new(now),
        })
    }

    /// From now on the engine is told that this session goes on.
    pub(super) fn keep_alive(&self, session: String) {
        *self.session.borrow_mut() = Some(session);
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, TrainError> {
        let request = Request {
            path: path.into(),
            body: Body::None,
        };
        Ok(parsed(&self.ask(&request, false)?)?)
    }

    pub(super) fn download(&self, path: &str) -> Result<Vec<u8>, TrainError> {
        let request = Request {
            path: path.into(),
            body: Body::None,
        };
        Ok(self.ask(&request, false)?.body)
    }

    pub(super) fn post(&self, path: &str, body: Value) -> Result<Value, TrainError> {
        self.post_request(path, Body::Json(body), false)
    }

    /// Asks for something that takes a while, and waits for the result.
    pub(super) fn run(&self, path: &str, body: Value) -> Result<Value, TrainError> {
        let begun = self.post(path, body)?;
        self.result(&begun)
    }

    /// [`Client::run`], for a body that is a message of [`proto`].
    pub(super) fn run_proto(&self, path: &str, body: Vec<u8>) -> Result<Value, TrainError> {
        let begun = self.post_request(path, Body::Proto(body), false)?;
        self.result(&begun)
    }

    /// Waits for the result of what was asked for.
    pub(super) fn result(&self, begun: &Value) -> Result<Value, TrainError> {
        let id = wire::text(begun, "request_id")?;
        loop {
            let body = Body::Json(json!({ "request_id": id }));
            let result = self.post_request("retrieve_future", body, true)?;
            if result["type"] == "try_again" {
                self.pause(LOOK)?;
                continue;
            }
            if let Some(error) = result["error"].as_str() {
                return Err(self.refused("retrieve_future", 400, error).into());
            }
            return Ok(result);
        }
    }

    /// Asks without waiting long, and without an answer: the run is over.
    pub(super) fn goodbye(&self, path: &str, body: Value) {
        let (done, answered) = channel();
        let target = self.target.clone();
        let request = Request {
            path: path.into(),
            body: Body::Json(body),
        };
        let ask = move || {
            let answer = target.ask(&request);
            // What was given up has no one to tell.
            let _given_up = done.send(answer.is_ok_and(|answer| answer.status < 300));
        };
        let thread = std::thread::Builder::new().name("tinker".into());
        let told = thread.spawn(ask).is_ok() && answered.recv_timeout(GOODBYE_TIMEOUT) == Ok(true);
        if !told {
            let url = &self.target.url;
            tracing::warn!(
                url,
                "the training engine could not be told that the run ended; it may keep its memory"
            );
        }
    }

    fn post_request(&self, path: &str, body: Body, polls: bool) -> Result<Value, TrainError> {
        let request = Request {
            path: path.into(),
            body,
        };
        Ok(parsed(&self.ask(&request, polls)?)?)
    }

    /// An answer, after repeated attempts if need be. If it `polls`, 408 means that there is no result
    /// yet.
    fn ask(&self, request: &Request, polls: bool) -> Result<Answer, TrainError> {
        let mut pause = self.patience.first_pause;
        let mut attempt = 1;
        loop {
            let (why, wait) = match self.attempt(request)? {
                Ok(answer) if (200..300).contains(&answer.status) => return Ok(answer),
                Ok(answer) if polls && answer.status == 408 => {
                    (attempt, pause) = (1, self.patience.first_pause);
                    self.pause(LOOK)?;
                    continue;
                }
                Ok(answer) => {
                    let body = shorten(&answer.body);
                    if !matches!(answer.status, 408 | 425 | 429 | 500..=599) {
                        return Err(self.refused(&request.path, answer.status, &body).into());
                    }
                    (format!("status {}: {body}", answer.status), answer.wait)
                }
                Err(why) => (why, None),
            };
            if attempt >= self.patience.attempts {
                return Err(TinkerError::Unreachable {
                    url: self.target.url.clone(),
                    attempts: attempt,
                    why,
                }
                .into());
            }
            let (url, path) = (&self.target.url, &request.path);
            tracing::warn!(
                url,
                path,
                attempt,
                why,
                "the training engine did not answer; it is asked again"
            );
            self.pause(wait.unwrap_or(pause).min(LONGEST_PAUSE))?;
            pause *= 2;
            attempt += 1;
        }
    }

    fn refused(&self, path: &str, status: u16, body: &str) -> TinkerError {
        TinkerError::Refused {
            url: self.target.url.clone(),
            path: path.into(),
            status,
            body: body.into(),
            advice: TinkerError::advice(status),
        }
    }

    /// One attempt, on a thread of its own, which is left behind if the run ends meanwhile.
    fn attempt(&self, request: &Request) -> Result<Result<Answer, String>, TrainError> {
        self.check()?;
        let (done, answer) = channel();
        let (target, request) = (self.target.clone(), request.clone());
        let ask = move || {
            // What was given up has no one to tell.
            let _given_up = done.send(target.ask(&request));
        };
        let thread = std::thread::Builder::new().name("tinker".into());
        if let Err(error) = thread.spawn(ask) {
            return Ok(Err(format!("no thread could be started: {error}")));
        }
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => {
                    self.check()?;
                    self.beat();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Err("internal error: the request panicked".into()));
                }
            }
        }
    }

    /// Whether the run is to go on.
    fn check(&self) -> Result<(), TrainError> {
        if !self.observer.is_wanted() {
            return Err(TrainError::Cancelled);
        }
        if Instant::now() >= self.deadline {
            let minutes = self.minutes;
            return Err(TinkerError::TooLong { minutes }.into());
        }
        Ok(())
    }

    fn pause(&self, wait: Duration) -> Result<(), TrainError> {
        let until = Instant::now() + wait;
        loop {
            self.check()?;
            self.beat();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a pause between attempts; nothing is awaited"
            )]
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// Tells the engine that the session goes on, if it is time to.
    fn beat(&self) {
        let session = self.session.borrow();
        let Some(session) = session
            .as_ref()
            .filter(|_| self.beaten.get().elapsed() >= HEARTBEAT)
        else {
            return;
        };
        self.beaten.set(Instant::now());
        let target = self.target.clone();
        let request = Request {
            path: "session_heartbeat".into(),
            body: Body::Json(json!({ "session_id": session, "type": "session_heartbeat" })),
        };
        let ask = move || {
            if let Err(why) = target.ask(&request) {
                tracing::debug!(why, "no heartbeat of the training session");
            }
        };
        let thread = std::thread::Builder::new().name("tinker-beat".into());
        if let Err(error) = thread.spawn(ask) {
            tracing::debug!(%error, "no heartbeat of the training session");
        }
    }
}

impl Target {
    fn ask(&self, request: &Request) -> Result<Answer, String> {
        let url = format!("{}/api/v1/{}", self.url, request.path);
        let failed = |error: ureq::Error| error.to_string();
        let sent = match &request.body {
            Body::None => self.keyed(self.agent.get(&url)).call(),
            Body::Json(body) => self.keyed(self.agent.post(&url)).send_json(body),
            Body::Proto(body) => self
                .keyed(self.agent.post(&url))
                .content_type(proto::CONTENT_TYPE)
                .send(&body[..]),
        };
        let mut response = sent.map_err(failed)?;
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let wait = header("retry-after").and_then(|value| value.trim().parse().ok());
        let is_proto =
            header("content-type").is_some_and(|kind| kind.starts_with(proto::CONTENT_TYPE));
        let status = response.status().as_u16();
        let mut body = Vec::new();
        let reader = response.body_mut().with_config().limit(MAX_ANSWER).reader();
        let read = reader.take(MAX_ANSWER).read_to_end(&mut body);
        read.map_err(|error| error.to_string())?;
        Ok(Answer {
            status,
            wait: wait.map(Duration::from_secs),
            is_proto,
            body,
        })
    }

    fn keyed<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.key {
            None => request,
            Some(key) => request
                .header("x-api-key", key)
                .header("authorization", format!("Bearer {key}")),
        }
    }
}

fn parsed(answer: &Answer) -> Result<Value, TinkerError> {
    if answer.is_proto {
        let broken = |why| TinkerError::Answer(format!("a message that cannot be read: {why}"));
        return proto::outputs(&answer.body).map_err(broken);
    }
    let not_json = |_| TinkerError::Answer(format!("no JSON: {}", shorten(&answer.body)));
    serde_json::from_slice(&answer.body).map_err(not_json)
}

/// The first 200 characters, for messages.
fn shorten(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(800)])
        .chars()
        .take(200)
        .collect()
}
