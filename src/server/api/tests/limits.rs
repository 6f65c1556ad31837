//! Limits of tokens, as clients see them.

use serde_json::json;

use super::super::*;
use super::fake::{self, Script, Server};
use super::operating::access;
use super::{chat, get, send};

/// A server whose clients have `tokens` a minute, and the number of tokens of [`chat`]'s prompt.
fn limited(tokens: u32) -> (Server, usize) {
    let open = Server::start(|_| ());
    chat(&open, &json!({}));
    let prompt = open.engine.requests.lock().unwrap()[0].prompt.len();
    let rates = Rates {
        requests: None,
        tokens: Some(tokens + prompt as u32),
    };
    (
        Server::start(|state| state.access = access(&[], rates)),
        prompt,
    )
}

fn tokens_left(reply: &super::Reply) -> usize {
    reply
        .header("x-ratelimit-remaining-tokens")
        .parse()
        .unwrap()
}

#[test]
fn tokens_are_reserved_at_first_and_settled_at_the_end() {
    let (server, _) = limited(40);
    // Of 40 tokens beyond the prompt, two answers of "Hello world!" take six.
    let answered = chat(&server, &json!({"max_tokens": 20, "n": 2}));
    assert_eq!(answered.status, 200, "{}", answered.text);
    assert_eq!(tokens_left(&answered), 40 - 6);
    server.script([Script::Hang]);
    let open = {
        let body = json!({"model": fake::MODEL, "prompt": [1], "max_tokens": 20, "stream": true});
        let url = format!("{}/v1/completions", server.url);
        ureq::post(url).send(body.to_string()).unwrap()
    };
    let refused = chat(&server, &json!({"max_tokens": 30}));
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(tokens_left(&refused), 40 - 6 - 21);
    assert_eq!(server.engine.requests.lock().unwrap().len(), 3);
    // A client that breaks off pays for its prompt.
    drop(open);
    let left = || tokens_left(&get(&server, "/v1/models"));
    let until = std::time::Instant::now() + Duration::from_secs(10);
    server.engine.hanging.lock().unwrap().clear();
    while left() < 40 - 6 - 1 {
        assert!(std::time::Instant::now() < until, "{} are left", left());
        std::thread::yield_now();
    }
}

#[test]
fn requests_at_once_cannot_reserve_the_same_tokens() {
    let (server, _) = limited(100);
    server.script(std::iter::repeat_n(Script::Hang, 8));
    let url = format!("{}/v1/completions", server.url);
    let ask = || {
        let body = json!({
            "model": fake::MODEL, "prompt": [1, 2], "max_tokens": 20, "n": 4, "stream": true,
        });
        ureq::post(&url).send(body.to_string())
    };
    let first = ask().unwrap();
    assert!(ask().is_err(), "82 of the tokens are reserved");
    drop(first);
}

#[test]
fn a_request_that_never_fits_is_told_so() {
    let (server, prompt) = limited(40);
    let refused = chat(&server, &json!({"max_tokens": 21, "n": 2}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, ""));
    assert_eq!(refused.header("x-should-retry"), "false");
    let text = &refused.json()["error"]["message"];
    let says = |what: String| text.as_str().unwrap().contains(&what);
    assert!(says(format!("{} tokens", prompt + 42)), "{text}");
    assert!(says(format!("{} tokens a minute", prompt + 40)), "{text}");
    let input = vec![1; prompt + 41];
    let body = json!({"model": fake::MODEL, "input": input}).to_string();
    let refused = send(&server, "POST", "/v1/embeddings", &[], &body);
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert!(server.engine.requests.lock().unwrap().is_empty());
}

#[test]
fn a_client_without_max_tokens_is_not_starved() {
    let (server, prompt) = limited(200);
    for _ in 0..3 {
        assert_eq!(chat(&server, &json!({})).status, 200);
    }
    let requests = server.engine.requests.lock().unwrap();
    assert_eq!(requests[0].sampling.max_tokens, (200 + prompt) / 4);
}

#[test]
fn embeddings_are_charged_for_their_tokens() {
    let rates = Rates {
        requests: None,
        tokens: Some(10),
    };
    let server = Server::start(|state| state.access = access(&[], rates));
    let body = json!({"model": fake::MODEL, "input": [[1, 2, 3], [4, 5, 6]]}).to_string();
    let embed = || send(&server, "POST", "/v1/embeddings", &[], &body);
    let first = embed();
    assert_eq!(
        (first.status, tokens_left(&first)),
        (200, 4),
        "{}",
        first.text
    );
    assert_eq!(embed().status, 429);
}
