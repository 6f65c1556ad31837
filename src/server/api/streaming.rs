//! Answers as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde::Serialize;

use super::run::ActiveRequest;
use super::wire::{AnswerChunk, ChoiceOutput, Usage};

/// A comment is sent after this long without an event, so that proxies keep the connection open.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Keeps reverse proxies from holding back a stream: nginx reads this header.
pub(super) async fn unbuffered(mut response: Response) -> Response {
    let is_stream = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if is_stream {
        let headers = response.headers_mut();
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    response
}

/// The last event, which OpenAI's clients wait for.
const DONE: &str = "[DONE]";

/// The phase of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Running,
    Ended,
}

struct Stream {
    active: ActiveRequest,
    phase: Phase,
}

/// Streams an answer. If the client disconnects, the body is dropped, which cancels the sequences.
pub(crate) fn response(active: ActiveRequest) -> Response {
    let stream = Stream {
        active,
        phase: Phase::Opening,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let batch = stream.step().await?;
        Some((stream::iter(batch), stream))
    });
    let events = events.flatten().map(Ok::<Event, Infallible>);
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

impl Stream {
    /// The next events; `None` after the last.
    async fn step(&mut self) -> Option<Vec<Event>> {
        match self.phase {
            Phase::Opening => {
                self.phase = Phase::Running;
                Some(self.opening())
            }
            Phase::Running => Some(self.running().await),
            Phase::Ended => None,
        }
    }

    fn opening(&self) -> Vec<Event> {
        let active = &self.active;
        let echo = |index| {
            let (echo, prompt_ids) = (
                active.progress.echo(index),
                active.progress.prompt_ids(index),
            );
            if echo.is_none() && prompt_ids.is_none() {
                return None;
            }
            let output = ChoiceOutput {
                text: echo.unwrap_or_default().to_string(),
                prompt_ids: prompt_ids.cloned(),
                ..ChoiceOutput::default()
            };
            Some(self.part(index, &output))
        };
        let ids = |index| active.progress.prompt_ids(index);
        let opening = |index| active.envelope.opening(index, self.usage(), ids(index));
        let parts = (0..active.choices).filter_map(|index| opening(index).or_else(|| echo(index)));
        parts.map(|part| data(Event::default(), &part)).collect()
    }

    async fn running(&mut self) -> Vec<Event> {
        let Some(next) = self.active.next().await else {
            return self.ending();
        };
        let applied = next.and_then(|(index, event)| {
            let output = self.active.progress.apply(index, event)?;
            Ok((index, output))
        });
        let (index, output) = match applied {
            Ok(applied) => applied,
            Err(error) => {
                // The header has been sent already; OpenAI's clients look for `error` in the data.
                self.phase = Phase::Ended;
                let observation = &self.active.progress.settings.observation;
                observation.set_status(error.status().as_u16());
                return vec![data(Event::default(), &error.body())];
            }
        };
        if output.is_empty() {
            return Vec::new();
        }
        vec![data(Event::default(), &self.part(index, &output))]
    }

    fn ending(&mut self) -> Vec<Event> {
        self.phase = Phase::Ended;
        self.active.progress.finish();
        let mut events = Vec::new();
        if self.active.include_usage {
            let usage = self.active.progress.usage;
            events.push(data(Event::default(), &self.active.envelope.usage(usage)));
        }
        events.push(Event::default().data(DONE));
        events
    }

    fn part(&self, index: usize, output: &ChoiceOutput) -> AnswerChunk {
        let tokenizer = &self.active.progress.settings.tokenizer;
        self.active
            .envelope
            .part(index, output, self.usage(), tokenizer)
    }

    /// The usage field of all chunks but the last: `null` if usage was requested, the counts so far if
    /// they were requested of every chunk, otherwise absent.
    fn usage(&self) -> Option<Option<Usage>> {
        let so_far = self.active.continuous_usage;
        let so_far = so_far.then(|| self.active.progress.so_far());
        self.active.include_usage.then_some(so_far)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.phase != Phase::Ended {
            self.active
                .progress
                .settings
                .observation
                .set_closed_by_client();
        }
    }
}

/// Adds `value` as JSON to an event. JSON text has no raw line breaks, which event data must not
/// contain.
pub(crate) fn data(event: Event, value: &impl Serialize) -> Event {
    // Answers are structs and maps with string keys, which always serialise.
    event.data(serde_json::to_string(value).unwrap_or_default())
}
