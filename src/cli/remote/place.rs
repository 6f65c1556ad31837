//! Where the operators' routes of a server are: what a running server wrote into its lock, else what the configuration says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use realign_core::lock::DirLock;
use realign_server::config::{Address, Config};
use realign_server::state::state_place;

/// Of the server that runs on these directories, or would: its flags and variables may name another port than the
/// configuration does here.
pub(crate) fn operators(config: &Config) -> Address {
    let server = &config.server;
    match &server.admin_address {
        Some(own) => own.clone(),
        None => running(config).unwrap_or_else(|| server.address.clone()),
    }
}

/// Where the server listens that holds the state directory.
fn running(config: &Config) -> Option<Address> {
    let held = DirLock::look(state_place(&config.paths.state)).ok()??;
    let listen = held?.listen?;
    match listen.strip_prefix("unix:") {
        Some(path) => Some(Address::Unix(path.into())),
        None => listen.parse().ok().map(Address::Tcp),
    }
}

/// An address as one connects to it, with its scheme.
pub(crate) fn url(address: &Address, is_encrypted: bool) -> String {
    let Address::Tcp(mut tcp) = *address else {
        return address.to_string();
    };
    if tcp.ip().is_unspecified() {
        tcp.set_ip(match tcp.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if is_encrypted { "https" } else { "http" };
    format!("{scheme}://{tcp}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use realign_core::lock::Holder;

    use super::*;
    use crate::GlobalArgs;

    /// What a running server says counts, then the configuration; an operators' listener of its own counts before both.
    #[test]
    fn a_running_server_is_found_wherever_it_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("realign.toml");
        let found = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let global = GlobalArgs {
                config: Some(path.clone()),
                state: Some(dir.path().to_owned()),
                ..GlobalArgs::default()
            };
            let config = global.resolve().unwrap();
            url(&operators(&config), config.server.tls.is_some())
        };
        assert_eq!(found(""), "http://127.0.0.1:8080");
        assert_eq!(found("[server]\nport = 9000"), "http://127.0.0.1:9000");
        let take = |listen: &str| {
            let holder = Holder::this_process(Some(listen.into()));
            DirLock::take(state_place(dir.path()), &holder, Duration::ZERO).unwrap()
        };
        let lock = take("0.0.0.0:8101");
        assert_eq!(found("[server]\nport = 9000"), "http://127.0.0.1:8101");
        assert_eq!(
            found("[server]\nadmin_port = 9090"),
            "http://127.0.0.1:9090"
        );
        drop(lock);
        assert_eq!(found("[server]\nport = 9000"), "http://127.0.0.1:9000");
        let _lock = take("unix:r.sock");
        assert_eq!(found(""), "unix:r.sock");
    }
}
