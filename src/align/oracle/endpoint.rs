//! Client of an OpenAI-compatible chat endpoint, with retries; used by judges and the corrective
//! oracle.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Maximum attempts per request.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(60);
/// Requests in a row without an answer after which the next ones are not sent for a while: each costs
/// all its attempts, and there may be thousands.
const UNANSWERED: u32 = 3;
/// How long they are not sent.
const REST: Duration = Duration::from_secs(10);
/// How often one who waits looks whether to give up.
const LOOK: Duration = Duration::from_millis(50);
/// Why a request was given up.
const CLOSING: &str = "it is not waited for any more: the server is shutting down";

/// Why an endpoint did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The environment variable with the API key is not set.
    #[error("the environment variable {0}, which holds the endpoint's key, is not set")]
    NoKey(String),
    /// The endpoint was unreachable or kept failing.
    #[error("{url} did not answer after {attempts} attempts: {why}")]
    Unreachable {
        /// Base URL.
        url: String,
        /// Number of attempts made.
        attempts: u32,
        /// The last failure, in words.
        why: String,
    },
    /// The endpoint rejected the request.
    #[error("{url} refused: status {status}: {body}")]
    Refused {
        /// Base URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// The first 200 characters of the response body.
        body: String,
    },
}

/// An endpoint with its API key; can be shared between threads.
#[derive(Debug)]
pub(crate) struct Endpoint {
    target: Arc<Target>,
    outage: Mutex<Outage>,
    closing: Option<Arc<AtomicBool>>,
}

/// Where requests go.
#[derive(Debug)]
struct Target {
    url: String,
    agent: ureq::Agent,
    key: Option<String>,
}

/// Requests in a row that got no answer.
#[derive(Debug, Default)]
struct Outage {
    unanswered: u32,
    since: Option<Instant>,
    why: String,
}

impl Outage {
    /// Why a request need not be sent now; `None` if it should be.
    fn rests(&self, now: Instant) -> Option<&str> {
        let since = self.since.filter(|_| self.unanswered >= UNANSWERED)?;
        (now < since + REST).then_some(&self.why)
    }

    fn unanswered(&mut self, why: &str, now: Instant) {
        self.unanswered = self.unanswered.saturating_add(1);
        self.since = Some(now);
        self.why = why.into();
    }
}

impl Endpoint {
    /// An endpoint with the API key from the environment variable `key_env`, if one is given.
    ///
    /// # Errors
    /// [`EndpointError::NoKey`] if that variable is not set.
    pub(crate) fn new(url: &str, key_env: Option<&str>) -> Result<Self, EndpointError> {
        let key = match key_env {
            Some(name) => {
                Some(std::env::var(name).map_err(|_| EndpointError::NoKey(name.to_owned()))?)
            }
            None => None,
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .build();
        Ok(Self {
            target: Arc::new(Target {
                url: url.to_owned(),
                agent: config.into(),
                key,
            }),
            outage: Mutex::default(),
            closing: None,
        })
    }

    /// The same endpoint; once `closing` is set, no answer is waited for.
    pub(crate) fn closing(self, closing: Option<Arc<AtomicBool>>) -> Self {
        Self { closing, ..self }
    }

    fn is_closing(&self) -> bool {
        let closing = self.closing.as_ref();
        closing.is_some_and(|closing| closing.load(Ordering::Acquire))
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreachable(&self, why: &str, attempts: u32) -> EndpointError {
        EndpointError::Unreachable {
            url: self.target.url.clone(),
            attempts,
            why: why.into(),
        }
    }

    /// Requests one chat completion. Transient failures are retried with exponential backoff, and
    /// counted in `retries`.
    ///
    /// # Errors
    /// [`EndpointError::Unreachable`] after the last attempt, or at once while it rests from requests
    /// that got no answer; [`EndpointError::Refused`] at once.
    pub(crate) fn chat(&self, body: &Value, retries: &AtomicU64) -> Result<Value, EndpointError> {
        if let Some(why) = self.outage().rests(Instant::now()) {
            return Err(self.unreachable(why, ATTEMPTS));
        }
        let mut pause = FIRST_PAUSE;
        let mut why = String::new();
        for attempt in 1..=ATTEMPTS {
            let asked = self.attempt(body);
            if asked.is_err() && self.is_closing() {
                return Err(self.unreachable(CLOSING, attempt));
            }
            match asked {
                Ok(answer) => {
                    *self.outage() = Outage::default();
                    return Ok(answer);
                }
                Err(Failure::Final(error)) => {
                    // It answers.
                    *self.outage() = Outage::default();
                    return Err(error);
                }
                Err(Failure::Transient(reason, wait)) => {
                    why = reason;
                    if attempt < ATTEMPTS {
                        retries.fetch_add(1, Ordering::Relaxed);
                        self.pause(wait.unwrap_or(pause).min(LONGEST_PAUSE));
                        pause *= 2;
                    }
                }
            }
        }
        self.outage().unanswered(&why, Instant::now());
        Err(self.unreachable(&why, ATTEMPTS))
    }

    /// Waits before the next attempt, unless there is to be none.
    fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while !self.is_closing() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a pause between attempts; nothing is awaited"
            )]
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// One attempt. Where it may have to be given up, it is made on a thread of its own, which is left
    /// behind then.
    fn attempt(&self, body: &Value) -> Result<Value, Failure> {
        if self.closing.is_none() {
            return self.target.ask(body);
        }
        let (done, answer) = channel();
        let (target, request) = (self.target.clone(), body.clone());
        let ask = move || {
            // What was given up has no one to tell.
            let _given_up = done.send(target.ask(&request));
        };
        let thread = std::thread::Builder::new().name("endpoint".into());
        if self.is_closing() || thread.spawn(ask).is_err() {
            let why = "no thread could be started";
            return Err(Failure::Transient(why.into(), None));
        }
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) if !self.is_closing() => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Failure::Transient(CLOSING.into(), None));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let why = "internal error: the request panicked";
                    return Err(Failure::Transient(why.into(), None));
                }
            }
        }
    }
}

impl Target {
    fn ask(&self, body: &Value) -> Result<Value, Failure> {
        let transient = |error: ureq::Error| Failure::Transient(error.to_string(), None);
        let mut request = self.agent.post(format!("{}/chat/completions", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(body).map_err(transient)?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|v| v.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let text = response.body_mut().read_to_string().map_err(transient)?;
        match status {
            200..=299 => serde_json::from_str(&text)
                .map_err(|error| Failure::Transient(format!("not JSON: {error}"), None)),
            408 | 409 | 425 | 429 | 500..=599 => Err(Failure::Transient(
                format!("status {status}: {}", shorten(&text)),
                wait,
            )),
            status => Err(Failure::Final(EndpointError::Refused {
                url: self.url.clone(),
                status,
                body: shorten(&text),
            })),
        }
    }
}

/// A failed attempt.
enum Failure {
    /// Worth a retry, after the `Retry-After` wait if the server gave one.
    Transient(String, Option<Duration>),
    /// Not worth a retry.
    Final(EndpointError),
}

/// The first 200 characters of a text, for messages.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_rest_after_several_without_an_answer() {
        let mut outage = Outage::default();
        let now = Instant::now();
        for _ in 1..UNANSWERED {
            outage.unanswered("refused", now);
            assert_eq!(outage.rests(now), None);
        }
        outage.unanswered("refused", now);
        assert_eq!(outage.rests(now), Some("refused"));
        assert_eq!(outage.rests(now + REST), None, "one is sent again");
        outage.unanswered("still refused", now + REST);
        assert_eq!(outage.rests(now + REST), Some("still refused"));
    }

    #[test]
    fn an_answer_that_does_not_come_is_given_up_when_the_server_closes() {
        // Connections are accepted by the system, and never answered.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", silent.local_addr().unwrap());
        let closing = Arc::new(AtomicBool::new(false));
        let endpoint = Endpoint::new(&url, None).unwrap();
        let endpoint = endpoint.closing(Some(closing.clone()));
        let started = Instant::now();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| endpoint.chat(&Value::Null, &AtomicU64::new(0)));
            // It is asked by now.
            let _connection = silent.accept().unwrap();
            closing.store(true, Ordering::Release);
            let error = asking.join().unwrap().unwrap_err().to_string();
            assert!(error.contains("shutting down"), "{error}");
        });
        assert!(endpoint.chat(&Value::Null, &AtomicU64::new(0)).is_err());
        endpoint.pause(LONGEST_PAUSE);
        assert!(started.elapsed() < TIMEOUT / 2, "{:?}", started.elapsed());
    }
}
