//! Clients on IPv6 and on Unix sockets.

use super::*;

fn answer(mut client: impl Read + Write) -> String {
    write!(
        client,
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn one_listener_takes_ipv6_and_ipv4() {
    if !has_ipv6() {
        return;
    }
    let server = start_at(&Address::Tcp("[::]:0".parse().unwrap()), 8);
    let port = server.address.port();
    for host in ["[::1]", "127.0.0.1"] {
        let client = connect(format!("{host}:{port}").parse().unwrap());
        assert!(answer(client).ends_with("hello"), "{host}");
    }
}

#[cfg(unix)]
#[test]
fn a_unix_socket_is_there_until_the_server_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.sock");
    let server = start_at(&Address::Unix(path.clone()), 8);
    let connect = || std::os::unix::net::UnixStream::connect(&path);
    assert!(answer(connect().unwrap()).ends_with("hello"));
    let mut slow = connect().unwrap();
    write!(slow, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    server.close.send(true).unwrap();
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("slow"), "{rest}");
    server.runtime.block_on(server.served).unwrap();
    assert!(!path.exists());
}
