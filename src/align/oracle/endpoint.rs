//! An OpenAI-compatible endpoint that is asked one chat at a time, with retries. Judges and the
//! corrective oracle share it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

/// Attempts at one request.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why an endpoint did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The key's variable is not set.
    #[error("the environment variable {0}, which holds the endpoint's key, is not set")]
    NoKey(String),
    /// It could not be reached or went on failing.
    #[error("{url} did not answer after {attempts} attempts: {why}")]
    Unreachable {
        /// Base URL.
        url: String,
        /// Attempts made.
        attempts: u32,
        /// The last failure.
        why: String,
    },
    /// It refused the request.
    #[error("{url} refused: status {status}: {body}")]
    Refused {
        /// Base URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// The body's beginning.
        body: String,
    },
}

/// An endpoint with its key; shared by threads.
#[derive(Debug)]
pub struct Endpoint {
    url: String,
    agent: ureq::Agent,
    key: Option<String>,
}

impl Endpoint {
    /// An endpoint whose key, if it needs one, stands in an environment variable.
    ///
    /// # Errors
    /// [`EndpointError::NoKey`].
    pub fn new(url: &str, key_env: Option<&str>) -> Result<Self, EndpointError> {
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
        })
    }

    /// One answered chat completion; failures that may pass are tried again, ever more slowly, and
    /// counted.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn chat(&self, body: &Value, retries: &AtomicU64) -> Result<Value, EndpointError> {
        let mut pause = FIRST_PAUSE;
        let mut why = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.attempt(body) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason, wait)) => {
                    why = reason;
                    if attempt < ATTEMPTS {
                        retries.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(wait.unwrap_or(pause).min(LONGEST_PAUSE));
                        pause *= 2;
                    }
                }
            }
        }
        Err(EndpointError::Unreachable {
            url: self.url.clone(),
            attempts: ATTEMPTS,
            why,
        })
    }

    fn attempt(&self, body: &Value) -> Result<Value, Failure> {
        let passing = |error: ureq::Error| Failure::Passing(error.to_string(), None);
        let mut request = self.agent.post(format!("{}/chat/completions", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(body).map_err(passing)?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|v| v.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let text = response.body_mut().read_to_string().map_err(passing)?;
        match status {
            200..=299 => serde_json::from_str(&text)
                .map_err(|error| Failure::Passing(format!("not JSON: {error}"), None)),
            408 | 409 | 425 | 429 | 500..=599 => Err(Failure::Passing(
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

/// How an attempt failed.
enum Failure {
    /// It may go better next time, perhaps after the wait that the server named.
    Passing(String, Option<Duration>),
    /// It will not.
    Final(EndpointError),
}

/// A text's beginning, for messages.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}
