//! Where listeners listen.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::ConfigError;
use super::server::value;

/// Before the path of a Unix socket.
const UNIX: &str = "unix:";

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a TCP port; port 0 picks a free one.
    Tcp(SocketAddr),
    /// The path of a Unix socket, relative to the working directory.
    Unix(PathBuf),
}

impl Address {
    /// Whether only this machine reaches it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// A host as the configuration gives it.
pub(super) enum Host {
    Ip(IpAddr),
    Unix(PathBuf),
}

impl Host {
    /// Reads the value of `key`; without one, it is the loopback address.
    pub(super) fn parse(key: &'static str, given: Option<&str>) -> Result<Self, ConfigError> {
        let given = given.unwrap_or("127.0.0.1");
        if let Some(path) = given.strip_prefix(UNIX) {
            return match path {
                "" => Err(value(
                    key,
                    given,
                    "give a path, as in unix:/run/realign.sock",
                )),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let bare = given.strip_prefix('[').and_then(|g| g.strip_suffix(']'));
        match bare.unwrap_or(given) {
            "localhost" => Ok(Self::Ip(IpAddr::from([127, 0, 0, 1]))),
            other => other.parse().map(Self::Ip).map_err(|_| {
                value(
                    key,
                    format!("{given:?}"),
                    "give an IP address such as 127.0.0.1, 0.0.0.0, ::1 or :: (IPv6 and IPv4), or \
                     unix:/path/of/a/socket",
                )
            }),
        }
    }

    /// The address with this port; a socket's path has none.
    pub(super) fn with_port(self, port: u16) -> Address {
        match self {
            Self::Ip(ip) => Address::Tcp(SocketAddr::new(ip, port)),
            Self::Unix(path) => Address::Unix(path),
        }
    }
}

/// The operators' own address, if they have one: a port, a socket, or both an address and a port.
pub(super) fn operators(
    host: Option<&str>,
    port: Option<u16>,
    clients: &Address,
) -> Result<Option<Address>, ConfigError> {
    let address = match (Host::parse("server.admin_host", host)?, port) {
        (socket @ Host::Unix(_), None) => socket.with_port(0),
        (Host::Unix(_), Some(port)) => {
            return Err(value(
                "server.admin_port",
                port,
                "leave it out: server.admin_host is a socket, which has no port",
            ));
        }
        (ip @ Host::Ip(_), Some(port)) => ip.with_port(port),
        (Host::Ip(_), None) if host.is_some() => {
            return Err(value(
                "server.admin_port",
                "missing",
                "server.admin_host needs it: give a port of its own",
            ));
        }
        (Host::Ip(_), None) => return Ok(None),
    };
    match (&address, clients) {
        (Address::Tcp(own), Address::Tcp(clients))
            if own.port() != 0 && own.port() == clients.port() =>
        {
            Err(value(
                "server.admin_port",
                own.port(),
                "give another port than server.port, or leave it out to share that",
            ))
        }
        (Address::Unix(own), Address::Unix(clients)) if own == clients => Err(value(
            "server.admin_host",
            own.display(),
            "give another path than server.host, or leave it out to share that",
        )),
        _ => Ok(Some(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(host: &str) -> Result<String, ConfigError> {
        Host::parse("server.host", Some(host)).map(|host| host.with_port(80).to_string())
    }

    #[test]
    fn hosts_are_addresses_or_sockets() {
        for (given, address, local) in [
            ("localhost", "127.0.0.1:80", true),
            ("::1", "[::1]:80", true),
            ("[::1]", "[::1]:80", true),
            ("::ffff:127.0.0.1", "[::ffff:127.0.0.1]:80", true),
            ("[::]", "[::]:80", false),
            ("fd00::2", "[fd00::2]:80", false),
            ("unix:/run/r.sock", "unix:/run/r.sock", true),
            ("unix:r.sock", "unix:r.sock", true),
        ] {
            let host = Host::parse("server.host", Some(given)).unwrap();
            let found = host.with_port(80);
            assert_eq!(
                (found.to_string().as_str(), found.is_local()),
                (address, local)
            );
        }
        for wrong in [
            "unix:",
            "[::1",
            "[::1]:80",
            "host.example",
            "/run/r.sock",
            "",
        ] {
            let error = parsed(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("server.host is ") && error.contains("unix:/"),
                "{error}"
            );
        }
    }

    #[test]
    fn operators_have_a_port_or_a_socket_of_their_own() {
        let tcp: Address = Host::parse("", None).unwrap().with_port(8080);
        let unix = Address::Unix("r.sock".into());
        let found = |host, port, clients: &Address| operators(host, port, clients);
        let shown =
            |host, port, clients| found(host, port, clients).unwrap().map(|a| a.to_string());
        assert_eq!(shown(None, None, &tcp), None);
        assert_eq!(
            shown(None, Some(9090), &tcp).as_deref(),
            Some("127.0.0.1:9090")
        );
        assert_eq!(
            shown(Some("::"), Some(9090), &unix).as_deref(),
            Some("[::]:9090")
        );
        assert_eq!(
            shown(Some("unix:a.sock"), None, &unix).as_deref(),
            Some("unix:a.sock")
        );
        for (host, port, clients, says) in [
            (Some("::1"), None, &tcp, "server.admin_port is missing"),
            (None, Some(8080), &tcp, "another port than server.port"),
            (Some("unix:a.sock"), Some(1), &tcp, "which has no port"),
            (
                Some("unix:r.sock"),
                None,
                &unix,
                "another path than server.host",
            ),
        ] {
            let error = found(host, port, clients).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
