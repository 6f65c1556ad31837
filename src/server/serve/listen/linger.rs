//! Closing a connection so that the client gets the whole answer.
//!
//! An answer may precede the end of its request: a body that is too large, a key that is wrong. If
//! the socket is closed while unread bytes arrive, the system resets the connection, and the client
//! loses the answer (RFC 9112, section 9.6). So the sending side is closed first, and what the
//! client still sends is read and thrown away for a while.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// For all that the client still sends.
const TOTAL: Duration = Duration::from_secs(10);
/// For its next bytes.
const PAUSE: Duration = Duration::from_secs(2);
/// Most bytes that are read.
const BYTES: usize = 256 << 20;

/// Closes the sending side, then reads until the client closes its own, or a limit is reached.
pub(super) async fn close(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let shutdown = poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context));
    let closed = timeout(PAUSE, shutdown).await;
    if closed.is_ok_and(|closed| closed.is_ok()) {
        let _done_or_late = timeout(TOTAL, discard(&mut stream)).await;
    }
}

async fn discard(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; 16 << 10];
    let mut bytes = 0;
    while bytes < BYTES {
        let mut filled = ReadBuf::new(&mut buffer);
        let read = poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut filled));
        match timeout(PAUSE, read).await {
            Ok(Ok(())) if !filled.filled().is_empty() => bytes += filled.filled().len(),
            _ => return,
        }
    }
}
