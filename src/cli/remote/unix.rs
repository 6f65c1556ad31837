//! HTTP through a Unix socket, for servers that listen on one.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Error};

/// What the addresses of sockets begin with.
const SCHEME: &str = "unix:";

/// The path of the socket that a server's address names; `None` of any other address.
pub(super) fn socket(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix(SCHEME)?;
    // `unix:///run/x` is written, too.
    let path = path.strip_prefix("//").unwrap_or(path);
    Some(PathBuf::from(path.trim_end_matches('/')))
}

/// An agent whose connections all lead to a socket.
pub(super) fn agent(socket: PathBuf, timeout: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(timeout))
        .build();
    Agent::with_parts(config, ToSocket { socket }, DefaultResolver::default())
}

#[derive(Debug)]
struct ToSocket {
    socket: PathBuf,
}

impl Connector for ToSocket {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<Connection>, Error> {
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        let stream = UnixStream::connect(&self.socket)?;
        Ok(Some(Connection { stream, buffers }))
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_write_timeout(limit(timeout))?;
        let written = self.stream.write_all(&self.buffers.output()[..amount]);
        written.map_err(|error| in_time(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(limit(timeout))?;
        let input = self.buffers.input_append_buf();
        let read = self.stream.read(input);
        let read = read.map_err(|error| in_time(error, timeout))?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// Every connection serves one request: whether a socket is still open is not looked at.
    fn is_open(&mut self) -> bool {
        false
    }
}

fn limit(timeout: NextTimeout) -> Option<Duration> {
    timeout.not_zero().map(|limit| *limit)
}

fn in_time(error: std::io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sockets_are_told_from_others() {
        let path = |url: &str| socket(url).map(|path| path.display().to_string());
        assert_eq!(path("unix:/run/a.sock").as_deref(), Some("/run/a.sock"));
        assert_eq!(path("unix:///run/a.sock/").as_deref(), Some("/run/a.sock"));
        assert_eq!(path("unix:a.sock").as_deref(), Some("a.sock"));
        assert_eq!(path("http://127.0.0.1:1"), None);
    }

    #[test]
    fn a_request_goes_through_a_socket_and_a_missing_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
            stream.write_all(answer).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let remote = super::super::Remote {
            url: format!("unix:{}", path.display()),
            admin_key: Some("secret".into()),
        };
        assert_eq!(remote.get("overview").unwrap()["a"], 1);
        let request = thread.join().unwrap().to_lowercase();
        assert!(request.starts_with("get /admin/v1/overview "), "{request}");
        assert!(request.contains("bearer secret"), "{request}");
        let error = super::super::Remote {
            url: "unix:/nowhere/api.sock".into(),
            admin_key: None,
        };
        let error = error.get("overview").unwrap_err().to_string();
        assert!(
            error.contains("unix:/nowhere/api.sock") && error.contains("--url"),
            "{error}"
        );
    }
}
