//! A response as server-sent events: `response.created` to `response.completed`.

use std::convert::Infallible;

use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};

use super::super::answers::completions::Reason;
use super::super::answers::responses::{
    EventBody, Response as ResponseBody, ResponseError, ResponseEvent, Status,
};
use super::super::error::ApiError;
use super::super::run::ActiveRequest;
use super::super::streaming::{KEEP_ALIVE, data};
use super::answer::{Answer, Event, ResponseBase, status};

struct Stream {
    active: ActiveRequest,
    base: ResponseBase,
    answer: Answer,
    reason: Reason,
    sent: u64,
    ended: bool,
}

/// Streams a response. If the client disconnects, the body is dropped, which cancels the sequence.
pub(super) fn response(active: ActiveRequest, base: ResponseBase) -> Response {
    let stream = Stream {
        active,
        base,
        answer: Answer::default(),
        reason: Reason::Stop,
        sent: 0,
        ended: false,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let batch = stream.step().await?;
        Some((stream::iter(batch), stream))
    });
    let events = events.flatten().map(Ok::<SseEvent, Infallible>);
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

impl Stream {
    /// The next events; `None` after the last.
    async fn step(&mut self) -> Option<Vec<SseEvent>> {
        if self.ended {
            return None;
        }
        if self.sent == 0 {
            let response = self.base.response(Status::InProgress, Vec::new(), None);
            return Some(self.numbered(vec![
                whole("response.created", response.clone()),
                whole("response.in_progress", response),
            ]));
        }
        let next = self.active.next().await;
        let applied = next
            .map(|next| next.and_then(|(index, event)| self.active.progress.apply(index, event)));
        let events = match applied {
            None => self.ending(),
            Some(Ok(delta)) => {
                self.reason = delta.reason.unwrap_or(self.reason);
                self.base.schema_notice.clone_from(&delta.schema_notice);
                let tokenizer = &self.active.progress.settings.tokenizer;
                self.answer.take(&delta, tokenizer)
            }
            Some(Err(error)) => self.failed(&error),
        };
        Some(self.numbered(events))
    }

    fn ending(&mut self) -> Vec<Event> {
        self.ended = true;
        self.active.progress.finish();
        let status = status(self.reason);
        let mut events = self.answer.end(status);
        self.base.keep(&self.answer);
        let usage = Some(self.active.progress.usage);
        let response = self.base.response(status, self.answer.output(), usage);
        let kind = match self.reason {
            Reason::Stop | Reason::ToolCalls => "response.completed",
            Reason::Length => "response.incomplete",
        };
        events.push(whole(kind, response));
        events
    }

    /// Reports a failure as an event, as the status line has been sent already.
    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        self.ended = true;
        let observation = &self.active.progress.settings.observation;
        observation.set_status(error.status().as_u16());
        let mut response = self
            .base
            .response(Status::Failed, self.answer.output(), None);
        response.error = Some(ResponseError {
            code: "server_error",
            message: error.to_string(),
        });
        vec![whole("response.failed", response)]
    }

    fn numbered(&mut self, events: Vec<Event>) -> Vec<SseEvent> {
        let number = |(kind, body): Event| {
            let event = ResponseEvent {
                body,
                kind,
                sequence_number: self.sent,
            };
            self.sent += 1;
            data(SseEvent::default().event(kind), &event)
        };
        events.into_iter().map(number).collect()
    }
}

fn whole(kind: &'static str, response: ResponseBody) -> Event {
    let response = Box::new(response);
    (kind, EventBody::Response { response })
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            self.active
                .progress
                .settings
                .observation
                .set_closed_by_client();
        }
    }
}
