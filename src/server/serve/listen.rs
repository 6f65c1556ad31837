//! Accepting connections: limited in number, encrypted if configured, with timeouts for slow
//! clients, and closed gracefully at shutdown.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::tls::Tls;

/// Pause after a failed `accept`: without it, a process out of file descriptors would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For a TLS handshake, a request's header, and an idle connection.
    pub(super) header: Duration,
    /// For a client that reads none of its response.
    pub(super) write: Duration,
}

/// Settings shared by all listeners.
#[derive(Clone)]
pub(super) struct Listening {
    pub(super) timeouts: Timeouts,
    pub(super) tls: Option<Arc<Tls>>,
    /// Limits the open connections of all listeners together.
    pub(super) connections: Arc<Semaphore>,
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
            let permit = Arc::clone(&self.connections).acquire_owned();
            let accepted = tokio::select! {
                _ = wait_until_closing(&mut closing) => break,
                accepted = async { (permit.await, listener.accept().await) } => accepted,
            };
            match accepted {
                (Ok(permit), Ok((stream, peer))) => {
                    let connection = self.clone().connection(stream, peer, app.clone());
                    open.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                (Err(_), _) => break,
                (Ok(_), Err(error)) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while open.join_next().await.is_some() {}
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr, app: Router) {
        // Streamed tokens are small packets; Nagle's algorithm would delay each of them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let stream = WriteTimeout::new(stream, self.timeouts.write);
        match self.tls.as_ref().map(|tls| tls.acceptor()) {
            None => self.http(stream, peer, app).await,
            Some(acceptor) => {
                let handshake = acceptor.accept(stream);
                match tokio::time::timeout(self.timeouts.header, handshake).await {
                    Ok(Ok(stream)) => self.http(stream, peer, app).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
                }
            }
        }
    }

    async fn http<S>(mut self, stream: S, peer: SocketAddr, app: Router)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            // A router is always ready.
            app.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.header)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = wait_until_closing(&mut self.closing) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection failed");
        }
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
