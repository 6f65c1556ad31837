//! HTTP/2: many requests on one connection.
//!
//! Each request counts against the listener's limit as a connection does, so that a few connections
//! cannot take more of the server than as many clients with HTTP/1 could.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use super::answers::{Answering, WAITS_FOR_CLIENT};
use super::connections::Slot;
use super::{EVICTION_GRACE, Listening, wait_until_closing};

/// Most requests in progress on a connection.
const STREAMS: u32 = 128;
/// Most bytes of a request's header.
const HEADER_BYTES: u32 = 32 << 10;
/// Bytes of a body, and of all bodies of a connection, that may come before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Most bytes of an answer that wait for its client after the answer counts as taken.
pub(super) const PIECE: usize = 8 << 10;
/// How long a connection that waited too long for a request may take to close.
const IDLE_GRACE: Duration = Duration::from_secs(2);

/// Serves a connection until its client closes it, it waits too long for a request, or the server
/// closes.
pub(super) async fn serve<S>(mut listening: Listening, stream: S, slot: Slot, answering: Answering)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = answering.peer;
    let service = service_fn(move |request| answering.answer(request));
    let io = TokioIo::new(stream);
    let mut connection = pin!(builder(&listening).serve_connection(io, service));
    let patience = tokio::select! {
        ended = &mut connection => {
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "connection failed");
            }
            return;
        }
        () = slot.idle(listening.timeouts.header) => IDLE_GRACE,
        () = slot.evicted() => EVICTION_GRACE,
        // The server's own limits hold.
        _ = wait_until_closing(&mut listening.closing) => Duration::MAX,
    };
    connection.as_mut().graceful_shutdown();
    if timeout(patience, connection).await.is_err() {
        tracing::debug!(%peer, "connection cut off");
    }
}

fn builder(listening: &Listening) -> http2::Builder<Streams> {
    let timeouts = listening.timeouts;
    let mut builder = http2::Builder::new(Streams {
        write: timeouts.write,
    });
    let limit = listening.connections.most_requests();
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS.min(u32::try_from(limit).unwrap_or(STREAMS)))
        .max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // A client that is gone without a word is noticed although nothing is written to it.
        .keep_alive_interval(timeouts.write)
        .keep_alive_timeout(timeouts.write);
    builder
}

/// Runs the requests of a connection, each as a task.
#[derive(Clone, Copy)]
struct Streams {
    /// For a client that takes none of an answer.
    write: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let watched = until_stalled(stream, self.write);
        tokio::spawn(WAITS_FOR_CLIENT.scope(Cell::new(None), watched));
    }
}

/// Runs a request and gives it up when its client takes nothing of the answer for `limit`: it may
/// keep the connection's other answers moving.
async fn until_stalled(stream: impl Future<Output = ()>, limit: Duration) {
    let mut stream = pin!(stream);
    loop {
        let since = WAITS_FOR_CLIENT
            .with(Cell::get)
            .unwrap_or_else(Instant::now);
        tokio::select! {
            () = &mut stream => return,
            () = sleep_until(since + limit) => {}
        }
        let waits = WAITS_FOR_CLIENT.with(Cell::get);
        if waits.is_some_and(|since| since.elapsed() >= limit) {
            tracing::debug!("the client took none of its answer for too long");
            return;
        }
    }
}
