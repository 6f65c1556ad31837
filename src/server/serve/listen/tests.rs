mod http2;
mod sockets;

use std::io::{Read, Write};
use std::net::TcpStream as Client;
use std::time::Instant as Clock;

use axum::Extension;
use axum::http::StatusCode;
use axum::routing::{get, post};

use super::*;
use crate::api::BeyondLimit;
use crate::config::Address;

/// How long a client may take nothing, and send nothing.
const SHORT: Duration = Duration::from_millis(300);
/// Longer than that.
const TAKES_NOTHING: Duration = Duration::from_millis(1000);

struct Running {
    address: SocketAddr,
    connections: Arc<Connections>,
    close: watch::Sender<bool>,
    runtime: tokio::runtime::Runtime,
    served: tokio::task::JoinHandle<()>,
}

/// A server with short timeouts; the response of `/big` is larger than any buffer.
fn start(connections: usize) -> Running {
    let any = "127.0.0.1:0".parse().unwrap();
    start_at(&Address::Tcp(any), connections)
}

fn start_at(address: &Address, connections: usize) -> Running {
    start_with(address, connections, None, SHORT)
}

fn start_with(
    address: &Address,
    connections: usize,
    tls: Option<Arc<Tls>>,
    limit: Duration,
) -> Running {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(Listener::bind(address)).unwrap();
    let address = match listener.address().unwrap() {
        Address::Tcp(address) => address,
        Address::Unix(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
    };
    let (close, closing) = watch::channel(false);
    let slow = |beyond: Option<Extension<BeyondLimit>>| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        if beyond.is_some() { "beyond" } else { "slow" }
    };
    let app = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/slow", get(slow))
        .route("/refuse", post(|| async { StatusCode::PAYLOAD_TOO_LARGE }))
        .route("/big", get(|| async { vec![b'x'; 64 << 20] }));
    let connections = {
        let telemetry = Arc::new(crate::telemetry::Telemetry::new().unwrap());
        let whose = realign_core::ListenerRole::Clients;
        Arc::new(Connections::new(
            whose,
            connections,
            telemetry,
            Arc::default(),
        ))
    };
    let listening = Listening {
        timeouts: Timeouts {
            header: limit,
            write: limit,
        },
        tls,
        connections: Arc::clone(&connections),
        closing,
    };
    let served = runtime.spawn(listening.serve(listener, app));
    Running {
        address,
        connections,
        close,
        runtime,
        served,
    }
}

fn connect(address: SocketAddr) -> Client {
    let client = Client::connect(address).unwrap();
    let timeout = Some(Duration::from_secs(20));
    client.set_read_timeout(timeout).unwrap();
    client
}

fn ask(client: &mut Client, path: &str) {
    write!(client, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
}

/// Everything the server sends until it closes or resets the connection.
fn rest(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _reset = client.read_to_end(&mut bytes);
    bytes
}

#[test]
fn a_header_that_does_not_come_ends_the_connection() {
    let server = start(8);
    let mut client = connect(server.address);
    let started = Clock::now();
    client.write_all(b"GET / HTTP/1.1\r\nhost:").unwrap();
    let answer = rest(&mut client);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let server = start(1);
    let mut client = connect(server.address);
    ask(&mut client, "/big");
    // Only one connection is allowed, and the first has a request in progress.
    let mut next = connect(server.address);
    ask(&mut next, "/");
    let mut start = [0; 15];
    next.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    // The other one may be answered at once, in a place for probes: until the time is over, nothing is taken.
    std::thread::sleep(TAKES_NOTHING);
    assert!(rest(&mut client).len() < 64 << 20);
}

#[test]
fn closing_lets_requests_finish_and_takes_no_more() {
    let server = start(8);
    let mut client = connect(server.address);
    ask(&mut client, "/slow");
    std::thread::sleep(Duration::from_millis(100));
    server.close.send(true).unwrap();
    let answer = String::from_utf8(rest(&mut client)).unwrap();
    assert!(answer.ends_with("slow"), "{answer}");
    let ended = async { tokio::time::timeout(Duration::from_secs(10), server.served).await };
    server.runtime.block_on(ended).unwrap().unwrap();
    assert!(Client::connect(server.address).is_err());
}

/// Connections that send nothing or half a header must not keep others out.
#[test]
fn idle_connections_make_room_for_requests() {
    let server = start(8);
    let mut idle: Vec<Client> = (0..40).map(|_| connect(server.address)).collect();
    for half_open in idle.iter_mut().step_by(2) {
        // Those that made room for others are closed by now.
        let _closed = half_open.write_all(b"GET / HTTP/1.1\r\nhost:");
    }
    let started = Clock::now();
    let mut client = connect(server.address);
    ask(&mut client, "/");
    let mut start = [0; 15];
    client.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    assert!(
        started.elapsed() < Duration::from_millis(250),
        "before any timeout"
    );
}

#[test]
fn a_client_that_closes_its_side_gets_its_answer() {
    let server = start(8);
    for path in ["/", "/slow"] {
        let mut client = connect(server.address);
        ask(&mut client, path);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = String::from_utf8(rest(&mut client)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{path}: {answer}");
    }
}

/// The server answers before it has read the body, and closes.
#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server = start(8);
    for chunked in [false, true] {
        let mut client = connect(server.address);
        let size = 24 << 20;
        let framing = if chunked {
            format!("transfer-encoding: chunked\r\n\r\n{size:x}\r\n")
        } else {
            format!("content-length: {size}\r\n\r\n")
        };
        write!(client, "POST /refuse HTTP/1.1\r\nhost: x\r\n{framing}").unwrap();
        client.write_all(&vec![b'x'; size]).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

#[test]
fn a_path_loses_its_surplus_slashes() {
    for (given, plain) in [
        ("/v1/models/", Some("/v1/models")),
        ("//v1//models?a=b//", Some("/v1/models?a=b//")),
        ("/v1/models?x=/", None),
        ("/", None),
        ("//", Some("/")),
    ] {
        let uri = answers::plain_path(&given.parse().unwrap());
        assert_eq!(uri.map(|uri| uri.to_string()).as_deref(), plain, "{given}");
    }
}
