//! Targets behind one name: every address of a host is a target.

use std::collections::BTreeSet;
use std::io;
use std::net::ToSocketAddrs;

use crate::target::TargetId;

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Its name.
    pub id: TargetId,
    /// Host or address, and port.
    pub authority: String,
}

/// The host and the port of an `http` URL without a path.
pub(crate) fn authority(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("http://")?.trim_end_matches('/');
    let plain = !rest.is_empty() && !rest.contains(['/', '?', '#', '@', ' ']);
    plain.then_some(rest)
}

/// The targets of a URL: itself, or with `resolve` every address that its host has now.
///
/// # Errors
/// If the URL is no `http://HOST:PORT`, or the host has no address.
pub fn addresses(url: &str, resolve: bool) -> io::Result<BTreeSet<Address>> {
    let host = authority(url).ok_or_else(|| {
        let text = format!("{url:?} is no target: write http://HOST:PORT, without a path");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let with_port = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:80"),
    };
    if !resolve {
        return Ok(BTreeSet::from([Address {
            id: TargetId(format!("http://{host}")),
            authority: with_port,
        }]));
    }
    let found = with_port.to_socket_addrs()?;
    Ok(found
        .map(|address| Address {
            id: TargetId(format!("http://{address}")),
            authority: address.to_string(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_target_and_a_name_as_many_as_it_has_addresses() {
        let one = addresses("http://10.0.0.1:8000/", false).unwrap();
        let one = one.first().unwrap();
        assert_eq!(one.id.0, "http://10.0.0.1:8000");
        assert_eq!(one.authority, "10.0.0.1:8000");
        let plain = addresses("http://pod", false).unwrap();
        assert_eq!(plain.first().unwrap().authority, "pod:80");
        let all = addresses("http://127.0.0.1:8000", true).unwrap();
        assert_eq!(all.len(), 1);
        for wrong in [
            "https://pod:1",
            "pod:1",
            "http://",
            "http://pod/v1",
            "http://a b",
        ] {
            let error = addresses(wrong, false).unwrap_err().to_string();
            assert!(error.contains("http://HOST:PORT"), "{error}");
        }
    }
}
