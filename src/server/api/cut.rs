//! Ending requests that would not end by themselves: at the drain's deadline, and when the engine is
//! dead. Streams end with an error event, other requests with a 503.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use super::AppState;
use super::error::ApiError;

/// Why running requests are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The engine is dead: answers that are being generated will not be completed.
    EngineStopped,
    /// The server shuts down, and the time for running requests is over.
    Draining,
}

impl Cut {
    pub(crate) fn error(self) -> ApiError {
        ApiError::Unavailable(match self {
            Self::EngineStopped => {
                "the engine stopped because of an internal error; the answer is incomplete".into()
            }
            Self::Draining => {
                "the server is shutting down and gave this request up; send it again".into()
            }
        })
    }
}

/// Tells requests that they are given up.
#[derive(Clone, Debug)]
pub(crate) struct CutSignal(watch::Receiver<Option<Cut>>);

impl CutSignal {
    /// A signal that is not set, and what sets it.
    pub(crate) fn new() -> (watch::Sender<Option<Cut>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Waits until answers that are being generated are given up.
    pub(crate) async fn any(&mut self) -> Cut {
        self.wait(|_| true).await
    }

    /// Waits until all requests are given up.
    pub(crate) async fn drained(&mut self) -> Cut {
        self.wait(|cut| cut == Cut::Draining).await
    }

    async fn wait(&mut self, wanted: impl Fn(Cut) -> bool) -> Cut {
        let set = self.0.wait_for(|cut| cut.is_some_and(&wanted)).await;
        let cut = set.ok().and_then(|cut| *cut);
        match cut {
            Some(cut) => cut,
            // No client is left that could give a request up.
            None => std::future::pending().await,
        }
    }
}

/// Middleware that answers 503 in place of a handler that is not done at the drain's deadline.
pub(crate) async fn cut(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let mut signal = state.cut;
    tokio::select! {
        biased;
        cut = signal.drained() => cut.error().into_response(),
        response = next.run(request) => response,
    }
}
