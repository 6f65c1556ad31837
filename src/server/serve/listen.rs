//! Accepting connections: limited in number, encrypted if configured, with timeouts for slow
//! clients, and closed gracefully at shutdown. Clients speak HTTP/1 or HTTP/2.

mod answers;
mod connections;
mod http2;
mod linger;
mod preface;
mod sockets;
#[cfg(unix)]
mod unix;
mod write_timeout;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use super::tls::{self, Tls};
use crate::config::ServerConfig;
use answers::Answering;
pub(super) use connections::Connections;
use connections::Slot;
pub(super) use sockets::Listener;
use sockets::Stream;
use write_timeout::WriteTimeout;

/// Pause after a failed `accept`: without it, a process out of file descriptors would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the last bytes of an answer may take on a connection that another one replaces.
const EVICTION_GRACE: Duration = Duration::from_millis(200);

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    /// For a TLS handshake, a request's header, and an idle connection.
    header: Duration,
    /// For a client that reads none of its response.
    write: Duration,
}

/// Settings of a listener.
#[derive(Clone)]
pub(super) struct Listening {
    timeouts: Timeouts,
    tls: Option<Arc<Tls>>,
    /// The listener's open connections.
    connections: Arc<Connections>,
    /// Becomes true when connections should close after their current request.
    closing: watch::Receiver<bool>,
}

impl Listening {
    /// With the timeouts of the configuration. Each listener has connections of its own, so that clients cannot take those
    /// of operators and their probes.
    pub(super) fn new(
        server: &ServerConfig,
        tls: Option<Arc<Tls>>,
        connections: Connections,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self {
            timeouts: Timeouts {
                header: server.header_timeout,
                write: server.write_timeout,
            },
            tls,
            connections: Arc::new(connections),
            closing,
        }
    }

    /// Serves `app` until `closing` is true, then waits for open connections to finish.
    pub(super) async fn serve(mut self, listener: Listener, app: Router) {
        if listener.is_internal() {
            self.tls = None;
        }
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

    async fn accept(&self, listener: &Listener) -> io::Result<(Stream, SocketAddr, Slot)> {
        let (stream, peer) = listener.accept().await?;
        let slot = self.connections.enter(peer.ip()).await;
        Ok((stream, peer, slot))
    }

    async fn connection(self, stream: Stream, (peer, slot): (SocketAddr, Slot), app: Router) {
        let stream = WriteTimeout::new(stream, self.timeouts.write);
        let mut closing = self.closing.clone();
        let begun = tokio::select! {
            begun = timeout(self.timeouts.header, self.begin(stream)) => begun,
            () = slot.evicted() => return,
            _ = wait_until_closing(&mut closing) => return,
        };
        let (is_http2, stream) = match begun {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "connection did not begin"),
            Err(_) => return tracing::debug!(%peer, "connection did not begin in time"),
        };
        let answering = Answering {
            requests: slot.requests(),
            peer,
            app,
            piece: if is_http2 { http2::PIECE } else { usize::MAX },
        };
        if is_http2 {
            http2::serve(self, stream, slot, answering).await;
        } else {
            self.http1(stream, slot, answering).await;
        }
    }

    /// Encrypts a connection if configured, and finds out whether its client speaks HTTP/2.
    async fn begin(&self, stream: WriteTimeout<Stream>) -> io::Result<(bool, Stream)> {
        let Some(tls) = &self.tls else {
            let (is_http2, stream) = preface::is_http2(stream).await?;
            return Ok((is_http2, Box::new(stream)));
        };
        let stream = tls.acceptor().accept(stream).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
        Ok((is_http2, Box::new(stream)))
    }

    async fn http1<S>(mut self, stream: S, slot: Slot, answering: Answering)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let peer = answering.peer;
        let service = service_fn(move |request| answering.answer(request));
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.header)
            // A client that has sent all it wants may close its side and wait for the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
            _ = wait_until_closing(&mut self.closing) => {
                std::pin::Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| connection.poll_without_shutdown(context)).await
            }
            () = slot.evicted() => {
                std::pin::Pin::new(&mut connection).graceful_shutdown();
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

/// Waits until connections should close, or until the sender is gone.
async fn wait_until_closing(closing: &mut watch::Receiver<bool>) {
    let _sender_dropped = closing.wait_for(|closing| *closing).await;
}

#[cfg(test)]
mod tests;
