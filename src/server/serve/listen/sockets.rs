//! The sockets that connections come from: TCP over IPv4 and IPv6, and Unix sockets.

use std::io;
#[cfg(unix)]
use std::net::Ipv4Addr;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};

#[cfg(unix)]
use super::unix::UnixSocket;
use crate::config::Address;

/// Connections that the system completes before they are accepted.
pub(super) const BACKLOG: u32 = 1024;
/// The peer of a connection that comes from this machine without an address.
#[cfg(unix)]
const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A listening socket. A Unix socket's file is removed with it.
#[derive(Debug)]
pub(in crate::serve) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixSocket),
}

/// A connection's bytes.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

pub(super) type Stream = Box<dyn Bytes>;

impl Listener {
    pub(in crate::serve) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => tcp(*address).map(Self::Tcp),
            #[cfg(unix)]
            Address::Unix(path) => UnixSocket::bind(path).await.map(Self::Unix),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Where it listens, with the port that the system picked.
    pub(in crate::serve) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            #[cfg(unix)]
            Self::Unix(socket) => Ok(Address::Unix(socket.path().to_owned())),
        }
    }

    /// Whether connections stay within this machine's kernel, which needs no encryption.
    pub(in crate::serve) fn is_internal(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// Where the root of this listener's routes is.
    pub(in crate::serve) fn url(&self, address: &Address, encrypted: bool) -> String {
        match (self.is_internal(), encrypted) {
            (true, _) => format!("{address}, path /"),
            (false, false) => format!("http://{address}/"),
            (false, true) => format!("https://{address}/"),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Streamed tokens are small packets; Nagle's algorithm would delay each of them.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                Ok((Box::new(stream), peer))
            }
            #[cfg(unix)]
            Self::Unix(socket) => Ok((Box::new(socket.accept().await?), HERE)),
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(ip) => {
            let socket = TcpSocket::new_v6()?;
            if ip.is_unspecified() {
                accept_ipv4(&socket);
            }
            socket
        }
    };
    // A restart need not wait for connections of the last run to be forgotten. On Windows the option
    // would let two processes share a port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Makes a socket for `::` take IPv4 too, whatever the system's default is.
fn accept_ipv4(socket: &TcpSocket) {
    if let Err(error) = socket2::SockRef::from(socket).set_only_v6(false) {
        tracing::warn!(%error, "clients with IPv4 cannot reach the address [::]");
    }
}
