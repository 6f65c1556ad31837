//! Which version of HTTP a client speaks, by the first bytes it sends.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection begins with whose client knows that the server speaks HTTP/2 (RFC 9113, section
/// 3.4). No method of HTTP/1 begins like that.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear whether the client speaks HTTP/2. The stream begins again with what was
/// read.
pub(super) async fn is_http2<S>(mut stream: S) -> io::Result<(bool, Begun<S>)>
where
    S: AsyncRead + Unpin,
{
    let mut read = [0; PREFACE.len()];
    let mut length = 0;
    while length < read.len() && PREFACE.starts_with(&read[..length]) {
        let mut buffer = ReadBuf::new(&mut read[length..]);
        poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut buffer)).await?;
        match buffer.filled().len() {
            0 => break,
            more => length += more,
        }
    }
    let begun = Begun {
        read: read[..length].to_vec(),
        stream,
    };
    Ok((read[..length] == *PREFACE, begun))
}

/// A stream of which the first bytes have been read already.
pub(super) struct Begun<S> {
    read: Vec<u8>,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let fits = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..fits]);
        self.read.drain(..fits);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, then the end.
    struct Slow(Vec<u8>);

    impl AsyncRead for Slow {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.0.is_empty() {
                buffer.put_slice(&[self.0.remove(0)]);
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn nothing_that_was_read_is_lost() {
        let whole = [PREFACE.as_slice(), b"rest"].concat();
        for (sent, expect) in [
            (whole.as_slice(), true),
            (PREFACE, true),
            (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", false),
            (b"POST / HTTP/1.1\r\n", false),
            (b"PRI", false),
            (b"", false),
        ] {
            let (found, mut begun) = is_http2(Slow(sent.to_vec())).await.unwrap();
            assert_eq!(found, expect, "{sent:?}");
            let mut bytes = Vec::new();
            loop {
                let mut buffer = [0; 5];
                let mut buffer = ReadBuf::new(&mut buffer);
                let read = poll_fn(|c| Pin::new(&mut begun).poll_read(c, &mut buffer));
                read.await.unwrap();
                if buffer.filled().is_empty() {
                    break;
                }
                bytes.extend_from_slice(buffer.filled());
            }
            assert_eq!(bytes, sent);
        }
    }
}
