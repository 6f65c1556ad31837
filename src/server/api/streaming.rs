//! Answers as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use serde::Serialize;

use super::run::Job;
use super::wire::{Part, Piece, Usage};

/// A comment goes out after this much silence, so that proxies keep the connection.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What OpenAI's clients wait for at the end.
const DONE: &str = "[DONE]";

/// Where a stream stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Running,
    Ended,
}

struct Stream {
    job: Job,
    phase: Phase,
}

/// Streams a job. If the client goes away the body is dropped, and the job's sequences with it.
pub(crate) fn response(job: Job) -> Response {
    let stream = Stream {
        job,
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
        let job = &self.job;
        let echo = |index| {
            let piece = Piece {
                text: job.progress.echo(index)?.to_string(),
                ..Piece::default()
            };
            Some(self.part(index, &piece))
        };
        let opening = |index| job.envelope.opening(index, self.no_usage());
        let parts = (0..job.choices).filter_map(|index| opening(index).or_else(|| echo(index)));
        parts.map(|part| data(Event::default(), &part)).collect()
    }

    async fn running(&mut self) -> Vec<Event> {
        let Some((index, event)) = self.job.events.next().await else {
            return self.ending();
        };
        let piece = match self.job.progress.piece(index, event) {
            Ok(piece) => piece,
            Err(error) => {
                // The header is gone already; clients of OpenAI look for `error` in the data.
                self.phase = Phase::Ended;
                let observation = &self.job.progress.observation;
                observation.set_status(error.status().as_u16());
                return vec![data(Event::default(), &error.body())];
            }
        };
        if piece.is_empty() {
            return Vec::new();
        }
        vec![data(Event::default(), &self.part(index, &piece))]
    }

    fn ending(&mut self) -> Vec<Event> {
        self.phase = Phase::Ended;
        self.job.progress.finish();
        let mut events = Vec::new();
        if self.job.include_usage {
            let usage = self.job.progress.usage;
            events.push(data(Event::default(), &self.job.envelope.usage(usage)));
        }
        events.push(Event::default().data(DONE));
        events
    }

    fn part(&self, index: usize, piece: &Piece) -> Part {
        let tokenizer = &self.job.progress.tokenizer;
        self.job
            .envelope
            .part((index, piece), self.no_usage(), tokenizer)
    }

    /// `null` in place of the usage, if that was asked for: only the last chunk tells it.
    fn no_usage(&self) -> Option<Option<Usage>> {
        self.job.include_usage.then_some(None)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.phase != Phase::Ended {
            self.job.progress.observation.set_closed_by_client();
        }
    }
}

/// An event with its data. JSON text has no raw line breaks, which an event's data must not have.
pub(crate) fn data(event: Event, value: &impl Serialize) -> Event {
    // Answers are structs and maps with text keys: they always become JSON.
    event.data(serde_json::to_string(value).unwrap_or_default())
}
