//! Dead threads, policies that are not loaded yet, and requests that are given up.

use std::io::{Read, Write};
use std::net::TcpStream;

use std::sync::Arc;

use super::*;
use crate::api::{Cut, ModerationPort, Moderations};
use realign_align::oracle::Exchange;
use realign_align::policy::RuleExplanation;

#[test]
fn probes_name_the_part_that_failed() {
    let server = Server::start(|_| ());
    *server.health.unready.lock().unwrap() = Some("the policies are being loaded".into());
    let reply = get(&server, "/ready");
    assert_eq!(reply.status, 503);
    assert!(
        reply.text.contains("policies are being loaded"),
        "{}",
        reply.text
    );
    assert_eq!(get(&server, "/health").status, 200, "loading is no failure");
    *server.health.failure.lock().unwrap() = Some("engine: it panicked".into());
    let reply = get(&server, "/health");
    assert_eq!(reply.status, 503);
    assert!(reply.text.contains("engine: it panicked"), "{}", reply.text);
    let metrics = get(&server, "/metrics").text;
    for line in [
        "realign_thread_panics_total{thread=\"engine\"} 2",
        "realign_thread_panics_total{thread=\"control\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn nothing_passes_moderations_before_policies_are_loaded() {
    struct Loading;
    impl ModerationPort for Loading {
        fn unavailable(&self) -> Option<String> {
            Some("the policies are being loaded".into())
        }
        fn moderate(&self, _: &str, _: &[String]) -> Moderations {
            Moderations::default()
        }
        fn explain(&self, _: &Exchange<'_>) -> (String, Vec<RuleExplanation>) {
            (String::new(), Vec::new())
        }
    }
    let server = Server::start(|state| state.moderation = Arc::new(Loading));
    let reply = post(&server, "/v1/moderations", &json!({"input": "x"}));
    assert_eq!(reply.status, 503, "{}", reply.text);
    let key = [("authorization", "Bearer root")];
    let body = json!({"response": "x"}).to_string();
    let reply = send(&server, "POST", "/admin/v1/policies/explain", &key, &body);
    assert_eq!(reply.status, 503, "{}", reply.text);
}

/// Starts a request of each kind, gives them up, and returns the answers: a whole one, a stream, and a
/// stream of the responses API.
fn given_up(cut: Cut) -> [(u16, String); 3] {
    let server = Server::start(|_| ());
    server.script([Script::Hang, Script::Hang, Script::Hang]);
    let chat = |stream: bool| {
        let message = json!({"role": "user", "content": "Hi"});
        let body = json!({"model": MODEL, "messages": [message], "stream": stream});
        ("/v1/chat/completions", body)
    };
    let responses = json!({"model": MODEL, "input": "Hi", "stream": true});
    let requests = [chat(false), chat(true), ("/v1/responses", responses)];
    let sockets = requests.map(|(path, body)| open(&server, path, &body.to_string()));
    let until = Instant::now() + Duration::from_secs(30);
    while server.engine.hanging.lock().unwrap().len() < 3 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.cut.send_replace(Some(cut));
    sockets.map(|mut socket| {
        let mut answer = String::new();
        // Ends with the connection, which the server closes in an orderly way.
        socket.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    })
}

fn open(server: &Server, path: &str, body: &str) -> TcpStream {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket
}

#[test]
fn requests_that_are_given_up_get_an_error_and_a_proper_end() {
    for (cut, says) in [
        (Cut::Draining, "shutting down"),
        (Cut::EngineStopped, "engine stopped"),
    ] {
        let [whole, stream, responses] = given_up(cut);
        assert_eq!(whole.0, 503, "{}", whole.1);
        assert!(
            whole.1.contains("{\"error\":{") && whole.1.contains(says),
            "{}",
            whole.1
        );
        assert_eq!([stream.0, responses.0], [200, 200]);
        let last = stream.1.rsplit("data: ").next().unwrap();
        assert!(
            last.starts_with("{\"error\":{") && last.contains(says),
            "{}",
            stream.1
        );
        assert!(responses.1.contains("response.failed"), "{}", responses.1);
        for text in [stream.1, responses.1] {
            assert!(
                text.ends_with("\r\n0\r\n\r\n"),
                "the last chunk is missing: {text}"
            );
        }
    }
}
