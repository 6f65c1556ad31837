//! Passing requests to the application, and their answers to the connection.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::Instant;
use tower_service::Service;

use super::connections::{InProgress, Requests, Room};
use crate::api::{ApiError, BeyondLimit};

tokio::task_local! {
    /// Since when the part of an answer that was handed over last waits for its client; `None` while
    /// the application works on the next one. Set for the streams of HTTP/2.
    pub(super) static WAITS_FOR_CLIENT: Cell<Option<Instant>>;
}

/// How a connection's requests are answered.
pub(super) struct Answering {
    pub(super) requests: Requests,
    pub(super) peer: SocketAddr,
    pub(super) app: Router,
    /// Most bytes of an answer that are handed over at once.
    pub(super) piece: usize,
}

type Answered = Pin<Box<dyn Future<Output = Result<hyper::Response<Answer>, Infallible>> + Send>>;

impl Answering {
    /// Passes a request to the application. It is in progress until the last part of its answer has
    /// been taken.
    pub(super) fn answer(&self, request: hyper::Request<Incoming>) -> Answered {
        let in_progress = self.requests.begin();
        let mut request = request.map(Body::new);
        if let Some(uri) = plain_path(request.uri()) {
            *request.uri_mut() = uri;
        }
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let room = in_progress.room;
        if room == Room::Spare {
            request.extensions_mut().insert(BeyondLimit);
        }
        // A router is always ready.
        let answered = (room != Room::None).then(|| self.app.clone().call(request));
        if answered.is_none() {
            // The application, which counts others, does not see it.
            in_progress.refused();
        }
        let piece = self.piece;
        Box::pin(async move {
            let response: Response = match answered {
                Some(answered) => answered.await?,
                None => full().into_response(),
            };
            Ok(response.map(|body| Answer {
                body,
                rest: None,
                piece,
                _in_progress: in_progress,
            }))
        })
    }
}

fn full() -> ApiError {
    ApiError::Unavailable("too many requests are in progress; retry in a moment".into())
}

/// A URI whose path has neither double slashes nor one at its end, as clients make them from a base
/// URL; `None` if it is like that already.
pub(super) fn plain_path(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let ends = path.len() > 1 && path.ends_with('/');
    if !ends && !path.contains("//") {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let query = uri.query().map(|query| format!("?{query}"));
    let plain = format!("/{}{}", parts.join("/"), query.unwrap_or_default());
    let mut all = uri.clone().into_parts();
    all.path_and_query = Some(plain.parse().ok()?);
    Uri::from_parts(all).ok()
}

/// The body of an answer.
pub(super) struct Answer {
    body: Body,
    /// What is left of a part that was longer than a piece.
    rest: Option<Bytes>,
    piece: usize,
    _in_progress: InProgress,
}

impl Answer {
    fn hand_over(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if data.len() > self.piece {
            self.rest = Some(data.split_off(self.piece));
        }
        waits_for_client(Some(Instant::now()));
        Frame::data(data)
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        waits_for_client(None);
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(self.hand_over(rest))));
        }
        let polled = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(polled.map(|frame| match frame?.into_data() {
            Ok(data) => Ok(self.hand_over(data)),
            Err(trailers) => Ok(trailers),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.as_ref().map_or(0, Bytes::len) as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

fn waits_for_client(since: Option<Instant>) {
    let _elsewhere = WAITS_FOR_CLIENT.try_with(|waits| waits.set(since));
}
