//! A load generator for any OpenAI-compatible server: streamed completions, a fixed number of
//! requests on a fixed number of connections.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{BenchError, Samples};

/// A load, and the server to put it on.
#[derive(Clone, Debug)]
pub struct Load {
    /// Address of the API, ending in `/v1`.
    pub url: String,
    /// Name of the model; the first one that the server lists if `None`.
    pub model: Option<String>,
    /// Bearer token.
    pub api_key: Option<String>,
    /// Words of each prompt, about as many tokens.
    pub prompt_words: usize,
    /// Tokens that each request generates.
    pub max_tokens: usize,
    /// Requests that each stream makes, one after another.
    pub requests_per_stream: usize,
    /// Temperature that tokens are drawn at; 0 takes the likeliest.
    pub temperature: f32,
}

/// Measurements of a server under a number of streams.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LoadReport {
    /// Concurrent requests.
    pub streams: usize,
    /// Requests made.
    pub(crate) requests: usize,
    /// Prompt tokens by the server's own count.
    pub(crate) prompt_tokens: u64,
    /// Completion tokens by the server's own count.
    pub(crate) completion_tokens: u64,
    /// Seconds from the first request to the last answer.
    pub(crate) seconds: f64,
    /// Completion tokens over seconds.
    pub tokens_per_second: f64,
    /// Milliseconds to the first token: median and 99th percentile.
    pub ttft_ms: [f64; 2],
    /// Milliseconds between tokens: median, 95th, 99th percentile, longest.
    pub inter_token_ms: [f64; 4],
}

/// Timings and counts of one request.
struct Answer {
    first_token: Duration,
    /// Seconds between tokens.
    waits: Vec<f64>,
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// A silent server is an error after this long.
const TIMEOUT: Duration = Duration::from_secs(120);

impl Load {
    /// Asks the server which model it serves, if none was named.
    ///
    /// # Errors
    /// [`BenchError::Server`].
    pub fn resolve_model(&mut self) -> Result<(), BenchError> {
        if self.model.is_some() {
            return Ok(());
        }
        let url = format!("{}/models", self.url);
        let failed = |reason: String| BenchError::Server {
            url: url.clone(),
            reason,
        };
        let mut request = agent().get(&url);
        if let Some(key) = &self.api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|e| failed(e.to_string()))?;
        let list: Value = response
            .body_mut()
            .read_json()
            .map_err(|e| failed(e.to_string()))?;
        let name = list["data"][0]["id"].as_str();
        self.model = Some(
            name.ok_or_else(|| failed("it lists no model".into()))?
                .into(),
        );
        Ok(())
    }

    /// Runs the load with `streams` concurrent requests. Prompts differ between values of `round`
    /// and are the same for all servers.
    ///
    /// # Errors
    /// [`BenchError`]; the first failed request ends the load.
    pub fn run(&self, streams: usize, round: usize) -> Result<LoadReport, BenchError> {
        let started = Instant::now();
        let outcomes: Vec<Result<Vec<Answer>, BenchError>> = std::thread::scope(|scope| {
            let worker = |stream: usize| {
                scope.spawn(move || {
                    (0..self.requests_per_stream)
                        .map(|request| PromptId {
                            round,
                            streams,
                            stream,
                            request,
                        })
                        .map(|id| self.ask(&prompt(self.prompt_words, id)))
                        .collect()
                })
            };
            let threads: Vec<_> = (0..streams).map(worker).collect();
            let joined = threads.into_iter().map(|t| {
                let panicked = || self.failed("the load generator panicked");
                t.join().unwrap_or_else(|_| Err(panicked()))
            });
            joined.collect()
        });
        let seconds = started.elapsed().as_secs_f64();
        let mut answers = Vec::new();
        for outcome in outcomes {
            answers.extend(outcome?);
        }
        Ok(report(streams, seconds, &answers))
    }

    fn failed(&self, reason: impl Into<String>) -> BenchError {
        BenchError::Server {
            url: format!("{}/completions", self.url),
            reason: reason.into(),
        }
    }

    /// One streamed completion. `ignore_eos` is what vLLM, llama.cpp and this server call it.
    fn ask(&self, prompt: &str) -> Result<Answer, BenchError> {
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": true,
            "stream_options": {"include_usage": true},
            "ignore_eos": true,
        });
        let url = format!("{}/completions", self.url);
        let mut request = agent().post(&url);
        if let Some(key) = &self.api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let started = Instant::now();
        let response = request
            .send_json(&body)
            .map_err(|e| self.failed(e.to_string()))?;
        let mut reader = BufReader::new(response.into_body().into_reader());
        let mut times = Vec::with_capacity(self.max_tokens);
        let mut usage = Value::Null;
        let mut line = String::new();
        loop {
            line.clear();
            let read = reader.read_line(&mut line);
            if read.map_err(|e| self.failed(e.to_string()))? == 0 {
                break;
            }
            let Some(data) = line.trim_end().strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                break;
            }
            let at = Instant::now();
            let chunk: Value =
                serde_json::from_str(data).map_err(|e| self.failed(format!("{e} in {data}")))?;
            if chunk["choices"][0]["text"].is_string() {
                times.push(at);
            }
            if chunk["usage"].is_object() {
                usage = chunk["usage"].clone();
            }
        }
        self.answer(started, &times, &usage)
    }

    fn answer(
        &self,
        started: Instant,
        times: &[Instant],
        usage: &Value,
    ) -> Result<Answer, BenchError> {
        let Some(first) = times.first() else {
            return Err(self.failed("it streamed no token"));
        };
        let count = |key: &str| {
            let counted = usage[key].as_u64();
            counted.ok_or_else(|| self.failed(format!("its usage lacks {key}: {usage}")))
        };
        Ok(Answer {
            first_token: *first - started,
            waits: times
                .windows(2)
                .map(|t| (t[1] - t[0]).as_secs_f64())
                .collect(),
            prompt_tokens: count("prompt_tokens")?,
            completion_tokens: count("completion_tokens")?,
        })
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .proxy(None)
        .timeout_global(Some(TIMEOUT))
        .build()
        .into()
}

fn report(streams: usize, seconds: f64, answers: &[Answer]) -> LoadReport {
    let ms = |s: f64| s * 1e3;
    let first = Samples(
        answers
            .iter()
            .map(|a| ms(a.first_token.as_secs_f64()))
            .collect(),
    );
    let waits = Samples(
        answers
            .iter()
            .flat_map(|a| &a.waits)
            .map(|s| ms(*s))
            .collect(),
    );
    let completion_tokens = answers.iter().map(|a| a.completion_tokens).sum();
    LoadReport {
        streams,
        requests: answers.len(),
        prompt_tokens: answers.iter().map(|a| a.prompt_tokens).sum(),
        completion_tokens,
        seconds,
        tokens_per_second: completion_tokens as f64 / seconds.max(1e-9),
        ttft_ms: [first.median(), first.quantile(0.99)],
        inter_token_ms: [
            waits.median(),
            waits.quantile(0.95),
            waits.quantile(0.99),
            waits.max(),
        ],
    }
}

const WORDS: [&str; 24] = [
    "river", "stone", "bright", "market", "winter", "quiet", "engine", "paper", "garden", "window",
    "silver", "music", "bridge", "letter", "summer", "forest", "coffee", "number", "island",
    "simple", "village", "orange", "morning", "travel",
];

/// Identifies a prompt within a benchmark.
#[derive(Clone, Copy)]
struct PromptId {
    round: usize,
    /// Concurrent requests of the round.
    streams: usize,
    stream: usize,
    /// Number of the request in its stream.
    request: usize,
}

/// A text that begins differently for every id, so that no prefix cache helps.
fn prompt(words: usize, id: PromptId) -> String {
    let PromptId {
        round,
        streams,
        stream,
        request,
    } = id;
    let mut state = (((round * 64 + streams) * 64 + stream) * 1024 + request) as u64 + 1;
    let mut text = String::new();
    for _ in 0..words.max(1) {
        // A linear congruential generator: its high bits are random enough for prose.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 33) as usize % WORDS.len()]);
        text.push(' ');
    }
    text.push_str("and");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_the_same_for_the_same_id_and_differ_otherwise() {
        let text = |round, streams, stream| {
            let request = 0;
            let id = PromptId {
                round,
                streams,
                stream,
                request,
            };
            prompt(30, id)
        };
        assert_eq!(text(1, 8, 2), text(1, 8, 2));
        let mut starts = std::collections::BTreeSet::new();
        for round in 0..3 {
            for stream in 0..16 {
                starts.insert(text(round, 16, stream));
            }
        }
        assert_eq!(starts.len(), 48);
    }

    #[test]
    fn a_report_counts_what_the_server_counted() {
        let answer = |ms: u64| Answer {
            first_token: Duration::from_millis(ms),
            waits: vec![0.010, 0.020],
            prompt_tokens: 5,
            completion_tokens: 3,
        };
        let report = report(2, 2.0, &[answer(10), answer(30)]);
        assert_eq!((report.requests, report.completion_tokens), (2, 6));
        assert_eq!(report.tokens_per_second, 3.0);
        assert_eq!(report.ttft_ms, [20.0, 30.0]);
        assert_eq!(report.inter_token_ms, [15.0, 20.0, 20.0, 20.0]);
    }
}
