//! HTTP/2 with prior knowledge, by a client that sets windows and streams itself.

use std::io::ErrorKind;

use axum::body::Bytes;
use axum::http::Request;
use futures::future::join_all;
use h2::RecvStream;
use h2::client::{self, SendRequest};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, RootCertStore};

use super::*;

/// For clients that take everything, on a machine that is busy.
const PATIENT: Duration = Duration::from_secs(30);

type Ended = JoinHandle<Result<(), h2::Error>>;

async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, Ended) {
    let stream = TcpStream::connect(address).await.unwrap();
    // One answer that is not taken leaves room for others.
    let mut client = client::Builder::new();
    let client = client.initial_connection_window_size(1 << 20);
    let (requests, connection) = client.handshake(stream).await.unwrap();
    (requests, tokio::spawn(connection))
}

/// The beginning of an answer; its body can be read, or not.
async fn ask(requests: &SendRequest<Bytes>, path: &str) -> Result<(u16, RecvStream), h2::Error> {
    let request = Request::get(format!("http://x{path}")).body(()).unwrap();
    let mut requests = requests.clone().ready().await?;
    let (answer, _) = requests.send_request(request, true)?;
    let answer = answer.await?;
    Ok((answer.status().as_u16(), answer.into_body()))
}

async fn whole(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn text(requests: &SendRequest<Bytes>, path: &str) -> String {
    let (_, body) = ask(requests, path).await.unwrap();
    String::from_utf8(whole(body).await.unwrap()).unwrap()
}

/// A request's place is free again once the server has seen the end of its answer, which is after the
/// client has it.
fn becomes_idle(server: &Running) {
    let started = Clock::now();
    while server.connections.busy() > 0 {
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "a place is lost"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a client against a server of so many connections.
fn with<F: Future<Output = ()>>(limit: usize, client: impl FnOnce(SocketAddr) -> F) -> Running {
    let server = start(limit);
    let limited = async { timeout(Duration::from_secs(60), client(server.address)).await };
    server.runtime.block_on(limited).expect("in time");
    server
}

#[test]
fn requests_share_a_connection() {
    let any = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let server = start_with(&any, 8, None, PATIENT);
    let address = server.address;
    server.runtime.block_on(async {
        let (requests, _ended) = connect(address).await;
        let (slow, hello) = tokio::join!(text(&requests, "/slow"), text(&requests, "//"));
        assert_eq!((slow.as_str(), hello.as_str()), ("slow", "hello"));
        let (status, body) = ask(&requests, "/big").await.unwrap();
        let bytes = whole(body).await.unwrap();
        assert_eq!((status, bytes.len()), (200, 64 << 20));
        assert!(bytes.iter().all(|byte| *byte == b'x'));
    });
}

/// What two connections with HTTP/1 could ask for at once, and the few places for probes.
#[test]
fn streams_count_as_connections_do() {
    let server = with(2, |address| async move {
        let both = [connect(address).await, connect(address).await];
        let asked = both.iter().flat_map(|(requests, _)| {
            (0..18).map(|_| async {
                let (status, body) = ask(requests, "/slow").await.unwrap();
                (status, whole(body).await.unwrap())
            })
        });
        let answers = join_all(asked).await;
        let count = |status, text: &str| {
            let same =
                |(s, body): &&(u16, Vec<u8>)| *s == status && body.starts_with(text.as_bytes());
            answers.iter().filter(same).count()
        };
        assert_eq!((count(200, "slow"), count(200, "beyond")), (2, 16));
        assert_eq!(count(503, "{"), 18);
    });
    becomes_idle(&server);
}

#[test]
fn more_streams_than_allowed_wait() {
    with(1000, |address| async move {
        let (requests, _ended) = connect(address).await;
        assert_eq!(
            text(&requests, "/").await,
            "hello",
            "the server's settings are known now"
        );
        assert_eq!(requests.current_max_send_streams(), 128);
    });
}

/// It gives no window: the connection itself moves, so that only this answer stands still.
#[test]
fn an_answer_that_nobody_takes_is_given_up() {
    let server = with(2, |address| async move {
        let (requests, ended) = connect(address).await;
        let (_, untaken) = ask(&requests, "/big").await.unwrap();
        let started = Clock::now();
        while started.elapsed() < TAKES_NOTHING {
            assert_eq!(text(&requests, "/").await, "hello");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The other answers were not disturbed; without them, the connection is idle.
        ended.await.unwrap().unwrap();
        drop(untaken);
    });
    becomes_idle(&server);
}

#[test]
fn a_connection_without_requests_ends() {
    with(8, |address| async move {
        let (requests, ended) = connect(address).await;
        let started = Clock::now();
        assert_eq!(text(&requests, "/slow").await, "slow");
        ended.await.unwrap().unwrap();
        assert!(
            started.elapsed() > Duration::from_millis(500),
            "it had a request"
        );
        // Nothing but the preface, and a part of it.
        for sent in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"PRI * HTTP"] {
            let mut client = super::connect(address);
            let sent = tokio::task::spawn_blocking(move || {
                client.write_all(sent).unwrap();
                rest(&mut client)
            });
            assert!(sent.await.unwrap().len() < 256);
        }
    });
}

/// The two sides agree on the version while they agree on the encryption.
#[test]
fn http2_is_negotiated_with_tls() {
    let fixture = |name: &str| {
        let root =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tls");
        root.join(name)
    };
    let (cert, key) = (fixture("cert.pem"), fixture("key.pem"));
    let files = crate::config::TlsFiles {
        cert: cert.clone(),
        key,
    };
    let tls = Arc::new(Tls::load(&files).unwrap());
    let any = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let server = start_with(&any, 8, Some(tls), PATIENT);
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(cert).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    server.runtime.block_on(async {
        for offered in [vec!["h2", "http/1.1"], vec!["http/1.1"], vec![]] {
            config.alpn_protocols = offered
                .iter()
                .map(|name| name.as_bytes().to_vec())
                .collect();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config.clone()));
            let stream = TcpStream::connect(server.address).await.unwrap();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            assert_eq!(
                agreed.as_deref(),
                offered.first().map(|name| name.as_bytes())
            );
            if offered.first() == Some(&"h2") {
                let (requests, connection) = client::handshake(stream).await.unwrap();
                let _ended = tokio::spawn(connection);
                assert_eq!(text(&requests, "/").await, "hello");
            }
        }
    });
}

#[test]
fn idle_connections_make_room() {
    with(4, |address| async move {
        let idle = join_all((0..30).map(|_| connect(address))).await;
        let (requests, _ended) = connect(address).await;
        assert_eq!(text(&requests, "/").await, "hello");
        let first = idle.into_iter().next().unwrap();
        let _closed_or_cut = first.1.await.unwrap();
    });
}

#[test]
fn closing_lets_requests_finish() {
    let server = start(8);
    let (requests, ended) = server.runtime.block_on(connect(server.address));
    let close = &server.close;
    server.runtime.block_on(async {
        let closed = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            close.send(true).unwrap();
        };
        let (answer, ()) = tokio::join!(text(&requests, "/slow"), closed);
        assert_eq!(answer, "slow");
        assert!(ask(&requests, "/").await.is_err(), "no more are taken");
        // The refused request may still be on its way when the server closes the socket. Nothing else
        // may end the connection.
        if let Err(error) = ended.await.unwrap() {
            let kind = error.get_io().map(std::io::Error::kind);
            let written = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].map(Some);
            assert!(written.contains(&kind), "{error}");
        }
        timeout(Duration::from_secs(10), server.served)
            .await
            .unwrap()
            .unwrap();
    });
}

#[test]
fn a_header_beyond_the_limit_is_refused() {
    with(8, |address| async move {
        let (requests, _ended) = connect(address).await;
        let request = Request::get("http://x/").header("x-long", "x".repeat(40 << 10));
        let mut ready = requests.clone().ready().await.unwrap();
        let (answer, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
        let refused = answer.await.map_or(431, |answer| answer.status().as_u16());
        assert_eq!(refused, 431);
        assert_eq!(text(&requests, "/").await, "hello");
    });
}
