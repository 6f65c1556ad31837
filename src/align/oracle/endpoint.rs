//! Client of an OpenAI-compatible chat endpoint, with retries; used by judges and the corrective
//! oracle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    url: String,
    agent: ureq::Agent,
    key: Option<String>,
    outage: Mutex<Outage>,
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
            url: url.to_owned(),
            agent: config.into(),
            key,
            outage: Mutex::default(),
        })
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreachable(&self, why: &str) -> EndpointError {
        EndpointError::Unreachable {
            url: self.url.clone(),
            attempts: ATTEMPTS,
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
            return Err(self.unreachable(why));
        }
        let mut pause = FIRST_PAUSE;
        let mut why = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.attempt(body) {
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
                        #[expect(
                            clippy::disallowed_methods,
                            reason = "a pause between attempts; nothing is awaited"
                        )]
                        std::thread::sleep(wait.unwrap_or(pause).min(LONGEST_PAUSE));
                        pause *= 2;
                    }
                }
            }
        }
        self.outage().unanswered(&why, Instant::now());
        Err(self.unreachable(&why))
    }

    fn attempt(&self, body: &Value) -> Result<Value, Failure> {
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
}
