//! Requests to targets: one connection each, closed with the answer.
//!
//! A connection of its own costs a fraction of a millisecond where an answer takes seconds, and it
//! tells a target that is gone before anything was sent.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a target may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// No connection: nothing was sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke before the answer began.
    #[error("{0}")]
    Broken(#[from] hyper::Error),
}

/// The connection of an answer; closed when dropped, which tells the target that its client is gone.
#[derive(Debug)]
pub(super) struct Connection(JoinHandle<()>);

impl Connection {
    /// Closes it, and waits until it holds nothing of its request any more.
    pub(super) async fn close(mut self) {
        self.0.abort();
        // It was told to end, so it ends with an error.
        let _aborted = (&mut self.0).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request to a host and port.
///
/// # Errors
/// [`SendError`].
pub(super) async fn send(
    authority: &str,
    request: Request<Body>,
) -> Result<(Response<Incoming>, Connection), SendError> {
    let connect = |error: std::io::Error| SendError::Connect(error.to_string());
    let late = |_| SendError::Connect(format!("none within {} s", CONNECT.as_secs()));
    let stream = timeout(CONNECT, TcpStream::connect(authority)).await;
    let stream = stream.map_err(late)?.map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let running = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a target broke");
        }
    });
    let running = Connection(running);
    match sender.send_request(request).await {
        Ok(response) => Ok((response, running)),
        Err(error) => {
            running.close().await;
            Err(error.into())
        }
    }
}
