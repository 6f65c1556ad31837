//! Bodies that say two things, or nothing that can be read: refused with the place, on every route.

use serde_json::json;

use super::fake::{MODEL, Server};
use super::{chat, post, send};

/// Every route that takes a body, and a body that it takes.
const ROUTES: [(&str, &str, &str); 24] = [
    (
        "POST",
        "/v1/chat/completions",
        r#"{"messages":[{"role":"user","content":"Hi"}]}"#,
    ),
    ("POST", "/v1/completions", r#"{"prompt":"Hi"}"#),
    ("POST", "/v1/responses", r#"{"input":"Hi"}"#),
    ("POST", "/v1/embeddings", r#"{"input":"Hi"}"#),
    ("POST", "/v1/moderations", r#"{"input":"Hi"}"#),
    (
        "POST",
        "/v1/messages",
        r#"{"messages":[{"role":"user","content":"Hi"}]}"#,
    ),
    (
        "POST",
        "/v1/messages/count_tokens",
        r#"{"messages":[{"role":"user","content":"Hi"}]}"#,
    ),
    (
        "POST",
        "/api/chat",
        r#"{"stream":false,"messages":[{"role":"user","content":"Hi"}]}"#,
    ),
    ("POST", "/api/generate", r#"{"stream":false,"prompt":"Hi"}"#),
    ("POST", "/api/embed", r#"{"input":"Hi"}"#),
    ("POST", "/api/embeddings", r#"{"prompt":"Hi"}"#),
    ("POST", "/api/show", "{}"),
    ("POST", "/tokenize", r#"{"prompt":"Hi"}"#),
    ("POST", "/detokenize", r#"{"tokens":[5]}"#),
    ("POST", "/admin/v1/policies/explain", r#"{"response":"Hi"}"#),
    (
        "POST",
        "/admin/v1/playground",
        r#"{"generation":"base","prompt":"Hi"}"#,
    ),
    ("POST", "/admin/v1/exam", "{}"),
    ("POST", "/admin/v1/realignments", "{}"),
    ("POST", "/admin/v1/policies/clear", "{}"),
    ("POST", "/admin/v1/generations/unpin", "{}"),
    ("POST", "/admin/v1/generations/rollback", "{}"),
    ("POST", "/admin/v1/adapters/gc", "{}"),
    ("POST", "/admin/v1/realignments/r9/cancel", "{}"),
    ("PUT", "/admin/v1/log-level", r#"{"filter":"info"}"#),
];

/// The body with a field more.
fn with(body: &str, field: &str) -> String {
    let inside = body.strip_suffix('}').unwrap();
    match inside {
        "{" => format!("{{{field}}}"),
        inside => format!("{inside},{field}}}"),
    }
}

#[test]
fn what_is_said_twice_or_half_is_refused_on_every_route() {
    let server = Server::start(|_| ());
    for (method, path, body) in ROUTES {
        let fine = send(&server, method, path, &[], body);
        assert_ne!(fine.status, 400, "{path}: {}", fine.text);
        for (field, words) in [
            (r#""model":"tiny","model":"tiny""#, "`model` is given twice"),
            (r#""a":[{"b":1,"b":1}]"#, "`a[0].b` is given twice"),
            (r#""a":{"b":"x\ud83d"}"#, "`a.b` has half of a character"),
            (r#""sprachregler":true"#, "`sprachregler`"),
        ] {
            let reply = send(&server, method, path, &[], &with(body, field));
            assert_eq!(reply.status, 400, "{path} {field}: {}", reply.text);
            assert!(reply.text.contains(words), "{path} {field}: {}", reply.text);
        }
    }
    let reply = chat(&server, &json!({}));
    assert_eq!(reply.status, 200);
    let named = send(
        &server,
        "POST",
        "/v1/chat/completions",
        &[],
        r#"{"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f","name":"g"}}]}"#,
    );
    assert_eq!(
        named.json()["error"]["param"],
        "tools[0].function.name",
        "{}",
        named.text
    );
}

#[test]
fn bodies_that_cannot_be_read_say_why() {
    let server = Server::start(|_| ());
    let path = "/v1/chat/completions";
    for (body, words) in [
        ("{'model': 'm'}", "key must be a string"),
        (r#"{"temperature": NaN}"#, "in `temperature`"),
        (
            r#"{"messages": [{"role": "user", "content": "a"#,
            "in `messages[0].content`",
        ),
        ("\u{feff}[]", "must be a JSON object, not an array"),
        (" ", "is empty"),
    ] {
        let reply = send(&server, "POST", path, &[], body);
        assert_eq!(reply.status, 400, "{body}");
        assert!(reply.text.contains(words), "{body}: {}", reply.text);
    }
    let packed = [("content-encoding", "gzip")];
    let reply = send(&server, "POST", path, &packed, "{}");
    assert!(
        reply.text.contains("send it uncompressed"),
        "{}",
        reply.text
    );
    let marked = format!("\u{feff}{}", json!({"model": MODEL, "prompt": "Hi"}));
    assert_eq!(
        send(&server, "POST", "/v1/completions", &[], &marked).status,
        200
    );
}

#[test]
fn an_address_without_a_route_says_which_is_meant() {
    let server = Server::start(|_| ());
    for (path, meant) in [
        ("/chat/completions", "/v1/chat/completions?"),
        ("/v1/v1/chat/completions", "/v1/chat/completions?"),
        ("/v1/completions/chat/completions", "/v1/chat/completions?"),
        (
            "/openai/deployments/m/chat/completions",
            "/v1/chat/completions?",
        ),
        ("/completion", "/v1/completions?"),
        ("/v1/api/chat", "/api/chat?"),
    ] {
        let reply = post(&server, path, &json!({}));
        assert_eq!(reply.status, 404, "{path}");
        let hint = format!("did you mean {meant}");
        assert!(reply.text.contains(&hint), "{path}: {}", reply.text);
    }
    let nothing = post(&server, "/v1/images/generations", &json!({}));
    assert!(!nothing.text.contains("did you mean"), "{}", nothing.text);
}

/// Fields that clients of other servers send whatever the server is.
#[test]
fn what_says_how_another_server_computes_passes() {
    let server = Server::start(|_| ());
    let fields = json!({"keep_alive": "5m", "num_ctx": 4096, "num_gpu": 1, "include_reasoning": true,
        "separate_reasoning": true, "stream_reasoning": null, "client_metadata": {"a": 1}});
    let reply = chat(&server, &fields);
    assert_eq!(reply.status, 200, "{}", reply.text);
    for name in [
        "include_reasoning",
        "separate_reasoning",
        "stream_reasoning",
    ] {
        let reply = chat(&server, &json!({ name: false }));
        assert_eq!(reply.status, 400, "{name}");
        assert_eq!(reply.json()["error"]["param"], name);
    }
}

#[test]
fn what_operators_put_into_the_address_is_not_passed_over() {
    let server = Server::start(|_| ());
    for path in [
        "/admin/v1/adapters/gc?dry_run=true",
        "/admin/v1/realignments?policy=x",
        "/admin/v1/generations/rollback?expected_generation=base",
    ] {
        let reply = send(&server, "POST", path, &[], "");
        assert_eq!(reply.status, 400, "{path}: {}", reply.text);
        assert!(reply.text.contains("in the address"), "{}", reply.text);
    }
}

#[test]
fn thoughts_under_several_names_must_agree() {
    let server = Server::start(|_| ());
    let ask = |fields: &str| {
        let said = format!(r#"{{"role":"assistant","content":"a",{fields}}}"#);
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"q"}},{said},{{"role":"user","content":"r"}}]}}"#
        );
        send(&server, "POST", "/v1/chat/completions", &[], &body)
    };
    for fine in [
        r#""reasoning_content":"x","reasoning":"x""#,
        r#""reasoning_content":"","reasoning":"x""#,
        r#""reasoning_content":null,"thinking":"x""#,
    ] {
        assert_eq!(ask(fine).status, 200, "{fine}");
    }
    for (odd, param) in [
        (
            r#""reasoning_content":"x","reasoning":"y""#,
            "messages[1].reasoning",
        ),
        (r#""reasoning":"x","thinking":"y""#, "messages[1].thinking"),
    ] {
        let reply = ask(odd);
        assert_eq!(reply.status, 400, "{odd}");
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text);
    }
    let body = json!({"messages": [{"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "thinking": "x"}, {"role": "user", "content": "r"}]});
    assert_eq!(post(&server, "/v1/chat/completions", &body).status, 200);
}
