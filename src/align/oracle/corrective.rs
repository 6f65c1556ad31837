//! The corrective oracle of TRACE: for pairs whose responses both violate, an OpenAI-compatible
//! endpoint writes a response that complies. The policy oracle judges that response before it is
//! used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Oracle;
use super::endpoint::{Endpoint, EndpointError, shorten};
use crate::policy::{Exchange, PolicySet};

/// The built-in template of the request.
const TEMPLATE: &str = "You write the answers of an assistant that keeps to this policy:\n\
<<<\n{{ policy }}\n>>>\n\
Answer the following message so that the policy is kept and the person is helped as far as it \
allows. Be brief. Write the answer and nothing else.\n\n{{ prompt }}";

/// Settings of the corrective endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct CorrectiveSpec {
    /// Base URL, e.g. `https://host/v1`.
    pub url: String,
    /// Model name, as the endpoint expects it.
    pub model: String,
    /// Environment variable that holds the API key; `None` sends no key.
    pub key_env: Option<String>,
    /// Jinja template of the request, over `policy` and `prompt`; `None` is the built-in one.
    pub template: Option<String>,
    /// Maximum tokens of a response.
    pub max_tokens: usize,
    /// Attempts at a compliant response, per prompt.
    pub attempts: usize,
    /// Maximum number of concurrent requests.
    pub concurrency: usize,
}

impl CorrectiveSpec {
    /// JSON of the settings that its responses depend on, for the hash of a realignment's inputs.
    pub(crate) fn identity(&self) -> String {
        json!([
            self.url,
            self.model,
            self.template,
            self.max_tokens,
            self.attempts
        ])
        .to_string()
    }
}

/// Why the endpoint wrote no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CorrectiveError {
    /// The endpoint failed.
    #[error("the corrective endpoint (train.corrective): {0}")]
    Endpoint(#[from] EndpointError),
    /// The template cannot be rendered.
    #[error("train.corrective.template: {0}")]
    Template(String),
    /// The answer has no text; the first 200 characters of the answer.
    #[error("the corrective endpoint (train.corrective) answered without a text: {0}")]
    NoText(String),
}

/// Cache of written responses, by hash of the request.
pub trait ResponseCache: Send + Sync + std::fmt::Debug {
    /// The response stored under a key.
    fn get(&self, key: &[u8; 32]) -> Option<String>;
    /// Stores a response. A failed write is ignored; the request is then repeated later.
    fn put(&self, key: &[u8; 32], response: &str);
}

#[cfg(test)]
/// A response cache in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryResponseCache(
    std::sync::Mutex<std::collections::HashMap<[u8; 32], String>>,
);

#[cfg(test)]
impl ResponseCache for MemoryResponseCache {
    fn get(&self, key: &[u8; 32]) -> Option<String> {
        self.0.lock().ok()?.get(key).cloned()
    }

    fn put(&self, key: &[u8; 32], response: &str) {
        if let Ok(mut known) = self.0.lock() {
            known.insert(*key, response.to_owned());
        }
    }
}

/// Requests since the oracle was prepared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CorrectiveUsage {
    /// Requests that were answered.
    pub calls: u64,
    /// Answers found in the cache.
    pub cached: u64,
    /// Failed attempts that were retried.
    pub(crate) retries: u64,
    /// Responses that the policy oracle rejected.
    pub(crate) refused: u64,
}

/// A prepared corrective oracle; can be shared between threads.
#[derive(Debug)]
pub(crate) struct Corrective {
    spec: CorrectiveSpec,
    endpoint: Endpoint,
    policy: String,
    cache: Arc<dyn ResponseCache>,
    calls: AtomicU64,
    cached: AtomicU64,
    retries: AtomicU64,
    refused: AtomicU64,
}

impl Corrective {
    /// Prepares a corrective oracle for a policy set, with its key from the environment.
    ///
    /// # Errors
    /// [`EndpointError::NoKey`] if the key's environment variable is not set.
    pub(crate) fn prepare(
        spec: CorrectiveSpec,
        set: &PolicySet,
        cache: Arc<dyn ResponseCache>,
    ) -> Result<Self, CorrectiveError> {
        Ok(Self {
            endpoint: Endpoint::new(&spec.url, spec.key_env.as_deref())?,
            policy: policy_text(set),
            spec,
            cache,
            calls: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// A compliant response for each prompt, in order; `None` if no attempt complied.
    ///
    /// # Errors
    /// The first failure of the endpoint. Earlier answers stay in the cache.
    pub(crate) fn write_all(
        &self,
        prompts: &[&str],
        oracle: &dyn Oracle,
    ) -> Result<Vec<Option<String>>, CorrectiveError> {
        let written = super::scores::in_parallel(prompts, self.spec.concurrency.max(1), |prompt| {
            self.write(prompt, oracle)
        });
        written.into_iter().collect()
    }

    fn write(&self, prompt: &str, oracle: &dyn Oracle) -> Result<Option<String>, CorrectiveError> {
        for attempt in 0..self.spec.attempts.max(1) {
            let response = self.ask(prompt, attempt)?;
            let exchange = Exchange {
                prompt,
                response: &response,
                labels: &[],
            };
            if !response.is_empty() && oracle.judge(&exchange).complies() {
                return Ok(Some(response));
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(None)
    }

    /// Requests since the oracle was prepared.
    pub(crate) fn usage(&self) -> CorrectiveUsage {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CorrectiveUsage {
            calls: get(&self.calls),
            cached: get(&self.cached),
            retries: get(&self.retries),
            refused: get(&self.refused),
        }
    }

    /// One attempt, from the cache if it was made earlier. The first is greedy, later ones sample.
    fn ask(&self, prompt: &str, attempt: usize) -> Result<String, CorrectiveError> {
        let message = self.render(prompt)?;
        let key = self.key(&message, attempt);
        if let Some(response) = self.cache.get(&key) {
            self.cached.fetch_add(1, Ordering::Relaxed);
            return Ok(response);
        }
        let body = json!({
            "model": self.spec.model, "messages": [{"role": "user", "content": message}],
            "max_tokens": self.spec.max_tokens, "seed": attempt,
            "temperature": if attempt == 0 { 0.0 } else { 0.8 },
        });
        let answer = self.endpoint.chat(&body, &self.retries)?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        let text = answer
            .pointer("/choices/0/message/content")
            .and_then(Value::as_str)
            .ok_or_else(|| CorrectiveError::NoText(shorten(&answer.to_string())))?
            .trim()
            .to_owned();
        self.cache.put(&key, &text);
        Ok(text)
    }

    fn key(&self, message: &str, attempt: usize) -> [u8; 32] {
        let mut hash = Sha256::new();
        let (tokens, attempt) = (self.spec.max_tokens.to_string(), attempt.to_string());
        for part in [&self.spec.url, &self.spec.model, message, &tokens, &attempt] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn render(&self, prompt: &str) -> Result<String, CorrectiveError> {
        let source = self.spec.template.as_deref().unwrap_or(TEMPLATE);
        let values = minijinja::context! { policy => self.policy, prompt => prompt };
        minijinja::Environment::new()
            .render_str(source, values)
            .map_err(|error| CorrectiveError::Template(error.to_string()))
    }
}

/// Descriptions of the enforced policies and their rules, one per line.
fn policy_text(set: &PolicySet) -> String {
    let enforced = set.policies().iter().filter(|policy| policy.is_enforced());
    let lines = enforced.flat_map(|policy| {
        let rules = policy.rules.iter().map(|rule| rule.description.trim());
        std::iter::once(policy.description.trim()).chain(rules)
    });
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;
