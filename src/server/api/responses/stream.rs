//! A response as server-sent events: `response.created` to `response.completed`.

use std::convert::Infallible;

use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};

use super::super::answers::completions::Reason;
use super::super::answers::responses::{
    EventBody, Response as Shown, ResponseError, ResponseEvent, Status,
};
use super::super::error::ApiError;
use super::super::run::Job;
use super::super::streaming::{KEEP_ALIVE, data};
use super::answer::{Answer, Event, Frame, status};

struct Stream {
    job: Job,
    frame: Frame,
    answer: Answer,
    reason: Reason,
    sent: u64,
    ended: bool,
}

/// Streams a job. If the client goes away the body is dropped, and the job's sequence with it.
pub(super) fn response(job: Job, frame: Frame) -> Response {
    let stream = Stream {
        job,
        frame,
        answer: Answer::default(),
        reason: Reason::Stop,
        sent: 0,
        ended: false,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let batch = stream.step().await?;
        Some((stream::iter(batch), stream))
    });
    let events = events.flatten().map(Ok::<Sent, Infallible>);
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

impl Stream {
    /// The next events; `None` after the last.
    async fn step(&mut self) -> Option<Vec<Sent>> {
        if self.ended {
            return None;
        }
        if self.sent == 0 {
            let response = self.frame.response(Status::InProgress, Vec::new(), None);
            return Some(self.numbered(vec![
                whole("response.created", response.clone()),
                whole("response.in_progress", response),
            ]));
        }
        let events = match self.job.events.next().await {
            None => self.ending(),
            Some((index, event)) => match self.job.progress.piece(index, event) {
                Ok(piece) => {
                    self.reason = piece.reason.unwrap_or(self.reason);
                    self.answer.take(&piece)
                }
                Err(error) => self.failed(&error),
            },
        };
        Some(self.numbered(events))
    }

    fn ending(&mut self) -> Vec<Event> {
        self.ended = true;
        self.job.progress.finish();
        let status = status(self.reason);
        let mut events = self.answer.end(status);
        let usage = Some(self.job.progress.usage);
        let response = self.frame.response(status, self.answer.output(), usage);
        let kind = match self.reason {
            Reason::Stop | Reason::ToolCalls => "response.completed",
            Reason::Length => "response.incomplete",
        };
        events.push(whole(kind, response));
        events
    }

    /// The status line is gone already, so the failure is an event.
    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        self.ended = true;
        let observation = &self.job.progress.observation;
        observation.set_status(error.status().as_u16());
        let mut response = self
            .frame
            .response(Status::Failed, self.answer.output(), None);
        response.error = Some(ResponseError {
            code: "server_error",
            message: error.to_string(),
        });
        vec![whole("response.failed", response)]
    }

    fn numbered(&mut self, events: Vec<Event>) -> Vec<Sent> {
        let number = |(kind, body): Event| {
            let event = ResponseEvent {
                body,
                kind,
                sequence_number: self.sent,
            };
            self.sent += 1;
            data(Sent::default().event(kind), &event)
        };
        events.into_iter().map(number).collect()
    }
}

fn whole(kind: &'static str, response: Shown) -> Event {
    let response = Box::new(response);
    (kind, EventBody::Response { response })
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            self.job.progress.observation.set_closed_by_client();
        }
    }
}
