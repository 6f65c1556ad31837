use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::*;
use crate::config::{RawConfig, RawPaths, RawServer};

fn config(dir: &Path, change: impl FnOnce(&mut RawConfig)) -> Config {
    let mut raw = RawConfig {
        model: Some(dir.join("none.gguf").to_string_lossy().into_owned()),
        paths: Some(RawPaths {
            state: Some(dir.join("state")),
            adapters: Some(dir.join("adapters")),
            ..RawPaths::default()
        }),
        server: Some(RawServer {
            port: Some(0),
            ..RawServer::default()
        }),
        ..RawConfig::default()
    };
    change(&mut raw);
    Config::resolve(raw).unwrap()
}

fn of(found: &[Finding], subject: &str) -> (Level, String) {
    let found = found.iter().find(|f| f.subject == subject).unwrap();
    (found.level, found.text.clone())
}

#[test]
fn a_place_where_nothing_has_run_has_no_faults_but_the_model_and_stays_empty() {
    let dir = tempfile::tempdir().unwrap();
    let found = look(&config(dir.path(), |_| {}));
    let faults = found.iter().filter(|f| f.level == Level::Fault);
    let faults: Vec<&str> = faults.map(|f| f.subject).collect();
    assert_eq!(faults, ["model"], "{found:#?}");
    assert!(of(&found, "model").1.contains("no such file"), "{found:#?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_running_server_and_a_taken_port_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = config(dir.path(), |raw| {
        raw.server.as_mut().unwrap().port = Some(address.port());
    });
    let (level, text) = of(&look(&config), "listener");
    assert_eq!(level, Level::Fault);
    assert!(text.contains("--port"), "{text}");
    let locks = crate::locks::Locks::take(&config.paths).unwrap();
    locks.listening(&address.to_string());
    let found = look(&config);
    assert_eq!(of(&found, "listener").0, Level::Ok, "{found:#?}");
    let (level, text) = of(&found, "directories in use");
    assert_eq!(level, Level::Ok);
    assert!(text.contains("is in use by"), "{text}");
}

#[test]
fn an_open_door_a_missing_certificate_and_a_torn_database_are_found() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state/realign.db"), vec![7; 8192]).unwrap();
    std::fs::write(dir.path().join("state/admin-key"), "").unwrap();
    let mut server = RawServer {
        host: Some("0.0.0.0".into()),
        port: Some(0),
        tls_cert: Some(dir.path().join("cert.pem")),
        tls_key: Some(dir.path().join("key.pem")),
        ..RawServer::default()
    };
    let at = |server: &RawServer| config(dir.path(), |raw| raw.server = Some(server.clone()));
    let found = look(&at(&server));
    for subject in ["client keys", "certificate", "database", "operators' key"] {
        assert_eq!(of(&found, subject).0, Level::Fault, "{subject}: {found:#?}");
    }
    server.open = Some(true);
    assert_eq!(of(&look(&at(&server)), "client keys").0, Level::Warning);
}

#[test]
#[cfg(unix)]
fn a_directory_whose_parent_is_a_file_cannot_be_written_to() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state"), "").unwrap();
    let found = look(&config(dir.path(), |_| {}));
    assert_eq!(of(&found, "disk").0, Level::Fault, "{found:#?}");
}

#[test]
fn the_model_is_described_without_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let model = realign_model::test_support::test_model_path();
    let found = look(&config(dir.path(), |raw| {
        raw.model = Some(model.to_string_lossy().into_owned());
    }));
    let (level, text) = of(&found, "model");
    assert_eq!(level, Level::Ok);
    assert!(text.contains("30 layers"), "{text}");
    assert_eq!(of(&found, "chat template").0, Level::Ok);
}

#[test]
fn a_socket_is_free_unless_something_answers_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("api.sock"));
    let Address::Unix(path) = &address else {
        unreachable!()
    };
    place::listenable(&address).unwrap();
    let listener = UnixListener::bind(path).unwrap();
    let used = place::listenable(&address).unwrap_err();
    assert_eq!(used.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    place::listenable(&address).unwrap();
    std::fs::remove_file(path).unwrap();
    // One of another kind, which a start does not replace either.
    let _datagrams = std::os::unix::net::UnixDatagram::bind(path).unwrap();
    let used = place::listenable(&address).unwrap_err();
    assert_eq!(used.kind(), std::io::ErrorKind::AddrInUse);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, "a file").unwrap();
    let other = place::listenable(&address).unwrap_err();
    assert!(other.to_string().contains("no socket"), "{other}");
    let nowhere = Address::Unix(dir.path().join("missing/api.sock"));
    assert!(place::listenable(&nowhere).is_err());
}
