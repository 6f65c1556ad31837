//! Accepting connections: limited in number, encrypted if configured, with timeouts for slow
//! clients, and closed gracefully at shutdown.

mod connections;
mod linger;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, timeout};
use tower_service::Service;

use super::tls::Tls;
use crate::api::BeyondLimit;
pub(super) use connections::Connections;
use connections::{InProgress, Requests, Slot};

/// Pause after a failed `accept`: without it, a process out of file descriptors would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the last bytes of an answer may take on a connection that another one replaces.
const EVICTION_GRACE: Duration = Duration::from_millis(200);

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For a TLS handshake, a request's header, and an idle connection.
    pub(super) header: Duration,
    /// For a client that reads none of its response.
    pub(super) write: Duration,
}

/// Settings of a listener.
#[derive(Clone)]
pub(super) struct Listening {
    pub(super) timeouts: Timeouts,
    pub(super) tls: Option<Arc<Tls>>,
    /// The listener's open connections.
    pub(super) connections: Arc<Connections>,
    /// Becomes true when connections should close after their current request.
    pub(super) closing: watch::Receiver<bool>,
}

impl Listening {
    /// Serves `app` until `closing` is true, then waits for open connections to finish.
    pub(super) async fn serve(self, listener: TcpListener, app: Router) {
        let mut closing = self.closing.clone();
        let mut open = tokio::task::JoinSet::new();
        loop {
            while open.try_join_next().is_some() {}
            let accepted = tokio::select! {
                _ = wait_until_closing(&mut closing) => break,
                accepted = self.accept(&listener) => accepted,
            };
            match accepted {
                Ok((stream, peer, slot)) => {
                    let connection = self.clone().connection(stream, (peer, slot), app.clone());
                    open.spawn(connection);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // The process may be out of file descriptors, and waiting connections have some.
                    self.connections.make_room();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while open.join_next().await.is_some() {}
    }

    async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr, Slot)> {
        let (stream, peer) = listener.accept().await?;
        let slot = self.connections.enter(peer.ip()).await;
        Ok((stream, peer, slot))
    }

    async fn connection(self, stream: TcpStream, (peer, slot): (SocketAddr, Slot), app: Router) {
        // Streamed tokens are small packets; Nagle's algorithm would delay each of them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let stream = WriteTimeout::new(stream, self.timeouts.write);
        let Some(acceptor) = self.tls.as_ref().map(|tls| tls.acceptor()) else {
            return self.http(stream, (peer, slot), app).await;
        };
        let handshake = timeout(self.timeouts.header, acceptor.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = slot.evicted() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.http(stream, (peer, slot), app).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
        }
    }

    async fn http<S>(mut self, stream: S, (peer, slot): (SocketAddr, Slot), app: Router)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let requests = slot.requests();
        let service = service_fn(move |request| answer(&requests, peer, &app, request));
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.header)
            // A client that has sent all it wants may close its side and wait for the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
            _ = wait_until_closing(&mut self.closing) => {
                Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| connection.poll_without_shutdown(context)).await
            }
            () = slot.evicted() => {
                Pin::new(&mut connection).graceful_shutdown();
                let rest = poll_fn(|context| connection.poll_without_shutdown(context));
                // Whether it was enough or not, the place belongs to another connection.
                let _done_or_late = timeout(EVICTION_GRACE, rest).await;
                return;
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection failed");
            return;
        }
        let stream = connection.into_parts().io.into_inner();
        tokio::select! {
            () = linger::close(stream) => {}
            () = slot.evicted() => {}
            _ = wait_until_closing(&mut self.closing) => {}
        }
    }
}

type Answered = Pin<Box<dyn Future<Output = Result<hyper::Response<Answer>, Infallible>> + Send>>;

/// Passes a request to the application. It is in progress until the last part of its answer has
/// been taken.
fn answer(
    requests: &Requests,
    peer: SocketAddr,
    app: &Router,
    request: hyper::Request<Incoming>,
) -> Answered {
    let in_progress = requests.begin();
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    if in_progress.beyond_limit {
        request.extensions_mut().insert(BeyondLimit);
    }
    // A router is always ready.
    let answered = app.clone().call(request);
    Box::pin(async move {
        let response: Response = answered.await?;
        Ok(response.map(|body| Answer {
            body,
            _in_progress: in_progress,
        }))
    })
}

/// The body of an answer.
struct Answer {
    body: Body,
    _in_progress: InProgress,
}

impl HttpBody for Answer {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Waits until connections should close, or until the sender is gone.
async fn wait_until_closing(closing: &mut watch::Receiver<bool>) {
    let _sender_dropped = closing.wait_for(|closing| *closing).await;
}

/// A stream whose writes fail with `TimedOut` once the peer has accepted no data for `timeout`.
struct WriteTimeout<S> {
    stream: S,
    timeout: Duration,
    /// Set while a write is pending.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    fn new(stream: S, timeout: Duration) -> Self {
        Self {
            stream,
            timeout,
            deadline: None,
        }
    }

    /// Starts, checks or clears the deadline according to the result of a write.
    fn check_deadline<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.deadline = None;
            return outcome;
        }
        let until = Instant::now() + self.timeout;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client took none of its answer for too long",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check_deadline(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.check_deadline(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.check_deadline(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.check_deadline(context, outcome)
    }
}

#[cfg(test)]
mod tests;
