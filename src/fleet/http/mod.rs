//! Targets over HTTP: vLLM's routes, which realign and mistral.rs have too, and SGLang's.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::target::{Kind, Listing, Target, TargetError};

mod mistralrs;
#[cfg(test)]
mod tests;

/// A small question.
const LOOK: Duration = Duration::from_secs(10);
/// Reading, checking and placing an adapter; a first answer on a busy engine.
const LOAD: Duration = Duration::from_secs(300);
/// Longest answer that is read.
const MAX_ANSWER: u64 = 4 << 20;
/// The probe's prompt.
const PROMPT: &str = "The capital of France is";
/// Longest part of a target's message that is passed on.
const SHOWN: usize = 300;

/// An engine over HTTP.
pub struct HttpTarget {
    kind: Kind,
    base: String,
    key: Option<String>,
    admin_key: Option<String>,
    agent: ureq::Agent,
}

impl std::fmt::Debug for HttpTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpTarget")
            .field("kind", &self.kind)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// Status and body of an answer.
struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// What the target says, in one line.
    fn refused(&self, what: &str) -> TargetError {
        let body = self.json();
        let said = [
            &body["error"]["message"],
            &body["message"],
            &body["error_message"],
        ];
        let said = said.iter().find_map(|m| m.as_str()).unwrap_or(&self.text);
        let said: String = said.chars().take(SHOWN).collect();
        TargetError::Refused(format!("{what}: status {}: {}", self.status, said.trim()))
    }
}

impl HttpTarget {
    /// The engine at `authority` (host and port). `key` goes with probes and questions, `admin_key`
    /// with loading and unloading.
    pub fn new(
        kind: Kind,
        authority: &str,
        key: Option<String>,
        admin_key: Option<String>,
    ) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            // A connection that idled may be of a process that is gone.
            .max_idle_connections(0);
        Self {
            kind,
            base: format!("http://{authority}"),
            admin_key: admin_key.or_else(|| key.clone()),
            key,
            agent: config.build().into(),
        }
    }

    fn send(
        &self,
        path: &str,
        key: &Option<String>,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, TargetError> {
        let url = format!("{}{path}", self.base);
        let bearer = key.as_ref().map(|key| format!("Bearer {key}"));
        let sent = match body {
            None => {
                let mut request = self.agent.get(&url);
                if let Some(bearer) = &bearer {
                    request = request.header("authorization", bearer);
                }
                request.config().timeout_global(Some(limit)).build().call()
            }
            Some(body) => {
                let mut request = self.agent.post(&url);
                if let Some(bearer) = &bearer {
                    request = request.header("authorization", bearer);
                }
                let request = request.config().timeout_global(Some(limit)).build();
                request.send_json(body)
            }
        };
        let unreachable = |error: ureq::Error| TargetError::Unreachable(error.to_string());
        let mut response = sent.map_err(unreachable)?;
        let status = response.status().as_u16();
        let read = response.body_mut().with_config().limit(MAX_ANSWER);
        let text = read.read_to_string().map_err(unreachable)?;
        Ok(Answer { status, text })
    }

    fn change(&self, path: &str, body: &Value) -> Result<Answer, TargetError> {
        let path = match self.kind {
            Kind::Vllm | Kind::Realign | Kind::Mistralrs => format!("/v1{path}"),
            Kind::Sglang => path.to_owned(),
        };
        self.send(&path, &self.admin_key, Some(body), LOAD)
    }

    /// Whether the target did what was asked. SGLang says so in the body, too.
    fn done(&self, answer: &Answer) -> bool {
        let said = self.kind != Kind::Sglang || answer.json()["success"] != json!(false);
        answer.status == 200 && said
    }

    fn listing(&self, models: &[Value]) -> Result<Listing, TargetError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let has_parent = |m: &&Value| m["parent"].is_string();
        let bases = models.iter().filter(|m| !has_parent(m));
        let mut names = bases.filter_map(|m| m["id"].as_str());
        let base = match self.kind {
            // Its served name is whatever generation it serves by itself.
            Kind::Realign => names.find(|id| id.ends_with("@base")),
            // Its first name stands for whichever model is the default one.
            Kind::Mistralrs => names.find(|id| *id != mistralrs::DEFAULT),
            Kind::Vllm | Kind::Sglang => names.next(),
        };
        let base = base.ok_or_else(|| {
            TargetError::Refused(
                "GET /v1/models lists no base model: is it this kind of engine?".into(),
            )
        })?;
        let adapters: BTreeMap<String, Option<String>> = match self.kind {
            Kind::Mistralrs => self.mistralrs_adapters()?.into_paths(),
            Kind::Vllm | Kind::Realign | Kind::Sglang => models
                .iter()
                .filter(has_parent)
                .filter_map(|m| Some((text(&m["id"])?, text(&m["root"]))))
                .collect(),
        };
        let prefix = match self.kind {
            Kind::Sglang => format!("{base}:"),
            Kind::Vllm | Kind::Realign | Kind::Mistralrs => String::new(),
        };
        Ok(Listing {
            base: base.to_owned(),
            prefix,
            adapters,
        })
    }
}

impl Target for HttpTarget {
    fn list(&self) -> Result<Listing, TargetError> {
        let answer = self.send("/v1/models", &self.key, None, LOOK)?;
        let body = answer.json();
        match body["data"].as_array() {
            Some(models) if answer.status == 200 => self.listing(models),
            // One that is starting or ending.
            _ if answer.status >= 500 => Err(TargetError::Unreachable(
                answer.refused("GET /v1/models").to_string(),
            )),
            _ => Err(answer.refused("GET /v1/models")),
        }
    }

    fn load(&self, name: &str, path: &str) -> Result<(), TargetError> {
        let body = json!({ "lora_name": name, "lora_path": path });
        let answer = self.change("/load_lora_adapter", &body)?;
        if self.done(&answer) {
            return Ok(());
        }
        // An earlier attempt may have come about although its answer was lost.
        let there = self.list()?.adapters.get(name).cloned();
        match there {
            Some(from) if from.as_deref().is_none_or(|from| from == path) => Ok(()),
            Some(from) => Err(TargetError::Refused(format!(
                "the name {name} is taken by the adapter in {}; unload it there",
                from.unwrap_or_default()
            ))),
            None => Err(answer.refused(&format!("loading {name} from {path}"))),
        }
    }

    fn probe(&self, model: &str) -> Result<(), TargetError> {
        let body = json!({
            "model": model, "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 1,
        });
        let answer = self.send("/v1/completions", &self.key, Some(&body), LOAD)?;
        let what = format!("the probe of {model}");
        if answer.status != 200 {
            return Err(answer.refused(&what));
        }
        let said = answer.json();
        let wrong = |why: String| Err(TargetError::Refused(format!("{what}: {why}")));
        if said["model"] != model {
            return wrong(format!("it was answered by {}", said["model"]));
        }
        if said["usage"]["completion_tokens"].as_u64().unwrap_or(0) == 0 {
            return wrong("the answer is empty".into());
        }
        let logprobs = &said["choices"][0]["logprobs"];
        let is_number = |p: &Value| p.as_f64().is_some_and(f64::is_finite);
        let all_numbers = match self.kind {
            // In the form of chat completions.
            Kind::Mistralrs => logprobs["content"]
                .as_array()
                .map(|all| all.iter().all(|token| is_number(&token["logprob"]))),
            Kind::Vllm | Kind::Realign | Kind::Sglang => logprobs["token_logprobs"]
                .as_array()
                .map(|all| all.iter().all(is_number)),
        };
        match all_numbers {
            Some(true) => Ok(()),
            Some(false) => wrong("a log-probability is no number".into()),
            None => wrong("the answer has no log-probabilities".into()),
        }
    }

    fn unload(&self, name: &str) -> Result<(), TargetError> {
        let mut body = json!({ "lora_name": name });
        if self.kind == Kind::Mistralrs {
            // Another program may give the name to another adapter meanwhile.
            let Some(generation) = self.mistralrs_adapters()?.generation(name) else {
                return Ok(());
            };
            body["expected_generation"] = generation.into();
        }
        let answer = self.change("/unload_lora_adapter", &body)?;
        if self.done(&answer) || answer.status == 404 {
            return Ok(());
        }
        if self.list()?.adapters.contains_key(name) {
            return Err(answer.refused(&format!("unloading {name}")));
        }
        Ok(())
    }
}
