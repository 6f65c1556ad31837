//! API keys, limits, request ids, CORS and other operator settings, as clients see them.

use serde_json::json;

use super::super::*;
use super::fake::{self, ADMIN_KEY, Script, Server};
use super::{chat, get, send};
use crate::api::routes::Audience;
use crate::config::keys::{ApiKey, KeyDigest};
use crate::telemetry::compliance::Sampling;
use realign_align::policy::PolicySet;

pub(super) fn access(keys: &[&str], rates: Rates) -> Arc<Access> {
    let keys = keys.iter().map(|k| k.parse::<ApiKey>().unwrap()).collect();
    Arc::new(fake::access(keys, rates, 2))
}

#[test]
fn keys_guard_the_routes() {
    let hashed = format!("bob:{}", KeyDigest::of("two"));
    let server = Server::start(|state| {
        state.access = access(&["alice:one", &hashed], Rates::default());
    });
    let with = |path, key: &str| {
        let value = format!("Bearer {key}");
        send(&server, "GET", path, &[("authorization", &value)], "").status
    };
    assert_eq!(get(&server, "/v1/models").status, 401);
    for (key, status) in [("onE", 401), ("one", 200), ("two", 200), ("", 401)] {
        assert_eq!(with("/v1/models", key), status, "{key:?}");
    }
    // The stored digest is not accepted as a key.
    assert_eq!(with("/v1/models", &KeyDigest::of("two").to_string()), 401);
    server
        .state
        .access
        .replace_keys(vec!["carol:three".parse().unwrap()]);
    assert_eq!(with("/v1/models", "one"), 401);
    assert_eq!(with("/v1/models", "three"), 200);
    assert_eq!(get(&server, "/health").status, 200);
    let metrics = get(&server, "/metrics").text;
    let refused = "realign_requests_refused_total{reason=\"unauthorized\"} 5";
    assert!(metrics.contains(refused), "{metrics}");

    let admin = "/admin/v1/generations";
    let server = Server::start(|state| {
        state.access = access(&["alice:one"], Rates::default());
    });
    let status = |key: &str| send(&server, "GET", admin, &[("authorization", key)], "").status;
    assert_eq!(status(""), 401);
    assert_eq!(status("Bearer one"), 401, "a client's key is no operator's");
    assert_eq!(status("Bearer root"), 200);
    assert_eq!(
        get(&server, "/").status,
        200,
        "the page asks for the key itself"
    );
}

/// A proxy on this machine connects from here for anyone, so neither the peer nor the host counts.
#[test]
fn operators_need_their_key_wherever_they_call_from() {
    let server = Server::start(|_| ());
    let (key, own) = (format!("Bearer {ADMIN_KEY}"), server.url.clone());
    let none = ("authorization", "");
    let cases: [(&[(&str, &str)], u16); 6] = [
        (&[none], 401),
        (&[none, ("host", "localhost")], 401),
        (&[none, ("origin", &own)], 401),
        (&[("authorization", "Bearer wrong")], 401),
        (&[("authorization", &key)], 200),
        (&[("authorization", &key), ("host", "proxied.example")], 200),
    ];
    let routes = crate::api::routes::of(&[Audience::Operators]);
    assert!(routes.len() > 10);
    for (headers, status) in cases {
        for route in &routes {
            let path = route.path.replace("{id}", "none");
            let reply = send(&server, route.method.as_str(), &path, headers, "");
            let refused = reply.status == 401;
            assert_eq!(refused, status == 401, "{path} {headers:?}: {}", reply.text);
            assert!(
                !refused || reply.text.contains("admin-key"),
                "{}",
                reply.text
            );
        }
    }
    for path in ["/", "/metrics", "/health", "/ready", "/openapi.json"] {
        assert_eq!(get(&server, path).status, 200, "{path} needs no key");
    }
}

#[test]
fn operators_and_clients_can_be_kept_apart() {
    let server = Server::start(|_| ());
    let cases = [
        ("/v1/models", 200, 404),
        ("/admin/v1/generations", 404, 200),
        ("/metrics", 404, 200),
        ("/", 404, 200),
        ("/health", 200, 200),
        ("/ready", 200, 200),
    ];
    let (clients, operators) = (
        client_router(server.state.clone()),
        operator_router(server.state.clone()),
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = |router: &Router, path: &str| {
        use tower_service::Service;
        let request = axum::http::Request::get(path)
            .header("authorization", format!("Bearer {ADMIN_KEY}"))
            .body(axum::body::Body::empty());
        let answer = router.clone().call(request.unwrap());
        runtime.block_on(answer).unwrap().status().as_u16()
    };
    for (path, client, operator) in cases {
        assert_eq!(status(&clients, path), client, "clients {path}");
        assert_eq!(status(&operators, path), operator, "operators {path}");
    }
}

#[test]
fn a_key_that_asks_for_too_much_waits() {
    let rates = Rates {
        requests: Some(2),
        tokens: None,
    };
    let server = Server::start(|state| {
        state.access = access(&["a:one", "b:two requests_per_minute=0"], rates);
    });
    let ask = |key| send(&server, "GET", "/v1/models", &[("authorization", key)], "");
    let first = ask("Bearer one");
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!(ask("Bearer one").status, 200);
    let refused = ask("Bearer one");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((29..=30).contains(&wait), "{wait}");
    for _ in 0..5 {
        assert_eq!(ask("Bearer two").status, 200, "its own limit is none");
    }
    let metrics = get(&server, "/metrics").text;
    assert!(metrics.contains("realign_requests_refused_total{reason=\"rate_limit\"} 1"));
}

#[test]
fn no_more_requests_at_once_than_the_limit() {
    let server = Server::start(|state| {
        state.access = access(&[], Rates::default());
    });
    server.script([Script::Hang, Script::Hang]);
    let url = format!("{}/v1/completions", server.url);
    let body = json!({"model": super::fake::MODEL, "prompt": "Hi", "stream": true}).to_string();
    let agent = ureq::Agent::new_with_defaults();
    let open: Vec<_> = (0..2)
        .map(|_| agent.post(&url).send(&body).unwrap())
        .collect();
    assert_eq!(server.state.access.running(), 2);
    let refused = chat(&server, &json!({}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
    assert_eq!(refused.json()["error"]["code"], "too_many_at_once");
    assert_eq!(
        get(&server, "/admin/v1/policies").status,
        200,
        "operators pass"
    );
    drop(open);
    server.engine.hanging.lock().unwrap().clear();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while server.state.access.running() > 0 {
        assert!(
            std::time::Instant::now() < until,
            "the places were not given back"
        );
        std::thread::yield_now();
    }
    assert_eq!(chat(&server, &json!({})).status, 200);
}

#[test]
fn request_ids_are_taken_over_if_they_are_plain() {
    let server = Server::start(|_| ());
    let sent = |id: &str| {
        let reply = send(&server, "GET", "/v1/models", &[("x-request-id", id)], "");
        reply.header("x-request-id").to_string()
    };
    assert_eq!(sent("abc-1.2:3/4"), "abc-1.2:3/4");
    for odd in ["", "a b", "a\"b", &"x".repeat(129)] {
        assert!(sent(odd).starts_with("req_"), "{odd:?}");
    }
    let missing = send(&server, "GET", "/nothing", &[("x-request-id", "mine")], "");
    assert_eq!(
        (missing.status, missing.header("x-request-id")),
        (404, "mine")
    );
}

#[test]
fn browsers_are_let_in_by_origin_only() {
    let origin = "https://app.example";
    let server = Server::start(|state| {
        state.access = access(&["a:one"], Rates::default());
        state.cors_origins = Arc::from([origin.to_string()]);
    });
    let path = "/v1/chat/completions";
    let preflight = |origin| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization,x-stainless-os",
            ),
        ];
        send(&server, "OPTIONS", path, &headers, "")
    };
    let allowed = preflight(origin);
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.header("access-control-allow-origin"), origin);
    let headers = allowed.header("access-control-allow-headers");
    assert_eq!(headers, "authorization,x-stainless-os");
    assert!(
        allowed
            .header("access-control-allow-methods")
            .contains("POST")
    );
    let other = preflight("https://evil.example");
    assert_eq!(other.header("access-control-allow-origin"), "");
    assert_ne!(other.status, 204);
    // The page may read the reason of a refusal.
    let refused = send(&server, "GET", "/v1/models", &[("origin", origin)], "");
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("access-control-allow-origin"), origin);
    let admin = send(
        &server,
        "GET",
        "/admin/v1/policies",
        &[("origin", origin)],
        "",
    );
    assert_eq!(
        (admin.status, admin.header("access-control-allow-origin")),
        (200, "")
    );

    let closed = Server::start(|_| ());
    let reply = send(&closed, "GET", "/v1/models", &[("origin", origin)], "");
    assert_eq!(
        (reply.status, reply.header("access-control-allow-origin")),
        (200, "")
    );
}

#[test]
fn the_log_level_changes_while_running() {
    let server = Server::start(|_| ());
    let put = |body: &str| send(&server, "PUT", "/admin/v1/log-level", &[], body);
    let changed = put("{\"filter\": \"debug\"}");
    assert_eq!(
        (changed.status, changed.json()["filter"].as_str()),
        (200, Some("debug"))
    );
    assert_eq!(
        get(&server, "/admin/v1/log-level").json()["filter"],
        "debug"
    );
    let refused = put("{\"filter\": \"loud\"}");
    assert_eq!(
        (refused.status, refused.json()["error"]["param"].as_str()),
        (400, Some("filter"))
    );
    assert_eq!(put("{}").status, 400);
}

#[test]
fn answers_are_judged_after_they_were_sent() {
    let text = "apiVersion: realign/v1\nid: p\nversion: 1\nrules:\n  - id: hello\n    when: { prompt: { any_phrase: [Hi] } }\n    violates: { response: { any_phrase: [Hello world] } }\n";
    let set = Arc::new(PolicySet::from_yaml("p.yaml", text).unwrap());
    let server = Server::start(|state| {
        let policies: crate::telemetry::compliance::Policies =
            Box::new(move || Some((Arc::clone(&set), Arc::default())));
        let telemetry = Arc::clone(&state.telemetry);
        let sampling = Sampling {
            share: 1.0,
            judge_share: 1.0,
            queue: 64,
        };
        let compliance =
            Compliance::start(sampling, (policies, Box::new(|_, _| {})), None, telemetry).unwrap();
        state.compliance = Some(Arc::new(compliance));
    });
    chat(&server, &json!({"n": 2}));
    chat(&server, &json!({"stream": true}));
    super::complete(&server, &json!({"prompt": ["Hi", "Ho"]}));
    server.script([Script::Fail]);
    chat(&server, &json!({}));
    get(&server, "/v1/models");
    server.state.compliance.as_ref().unwrap().shutdown();
    let metrics = get(&server, "/metrics").text;
    for line in [
        "realign_compliance_responses_total{verdict=\"violates\"} 4",
        "realign_compliance_responses_total{verdict=\"complies\"} 1",
        "realign_policy_violations_total{policy=\"p\",rule=\"hello\",severity=\"standard\"} 4",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let overview = get(&server, "/admin/v1/overview").json();
    assert_eq!(overview["traffic"]["slots"][0]["violates"], 4, "{overview}");
    assert_eq!(overview["violations"][0]["count"], 4);
    assert_eq!(overview["serving"]["aligned"], true);
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let server = Server::start(|_| ());
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/playground.js", "text/javascript"),
    ] {
        let reply = get(&server, path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.header("content-type").starts_with(kind));
        assert!(
            reply
                .header("content-security-policy")
                .contains("default-src 'none'")
        );
        // XML namespaces are not external resources.
        let text = reply.text.replace("http://www.w3.org/", "");
        assert!(
            !text.contains("http://") && !text.contains("https://"),
            "{path}"
        );
        assert!(
            !text.contains("innerHTML") && !text.contains("eval("),
            "{path}"
        );
    }
}

#[test]
fn what_is_withheld_is_refused_and_everything_named_is_answered() {
    let server = Server::start(|state| state.registry.withhold("generation x is damaged"));
    for path in ["/ready", "/v1/models/org/tiny"] {
        let refused = get(&server, path);
        assert_eq!(refused.status, 503, "{path}: {}", refused.text);
        assert!(refused.text.contains("generation x is damaged"));
    }
    assert_eq!(get(&server, "/health").status, 200);
    assert_eq!(get(&server, "/v1/models").status, 200);
    let refused = chat(&server, &json!({}));
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert_eq!(refused.json()["error"]["code"], "unavailable");
    let base = chat(&server, &json!({"model": "org/tiny@base"}));
    assert_eq!(base.status, 200, "{}", base.text);
    server.state.registry.offer();
    assert_eq!(get(&server, "/ready").status, 200);
    assert_eq!(chat(&server, &json!({})).status, 200);
}

#[test]
fn removing_takes_options_and_tells_what_went() {
    let server = Server::start(|_| ());
    let collect = |body: &str| send(&server, "POST", "/admin/v1/adapters/gc", &[], body);
    let shown = collect(r#"{"dry_run": true, "imported_older_than_days": 2}"#).json();
    assert_eq!(shown["dry_run"], true, "{shown}");
    assert_eq!(shown["kept_bytes"], 2 * 24 * 60 * 60);
    assert_eq!(collect("{}").json()["dry_run"], false);
    assert_eq!(collect(r#"{"dry_run": "yes"}"#).status, 400);
}

#[test]
fn adapters_are_loaded_by_operators_in_vllms_form() {
    let server = Server::start(|_| ());
    let post = |path, key: &str, body: serde_json::Value| {
        let value = format!("Bearer {key}");
        send(
            &server,
            "POST",
            path,
            &[("authorization", &value)],
            &body.to_string(),
        )
    };
    let load = "/v1/load_lora_adapter";
    let body = json!({ "lora_name": "a", "lora_path": "/adapters/a" });
    assert_eq!(post(load, "", body.clone()).status, 401);
    let answer = post(load, ADMIN_KEY, body);
    let success = "Success: LoRA adapter 'a' added successfully.";
    assert_eq!((answer.status, &*answer.text), (200, success));
    for (status, name, path) in [
        (404, "a", "/adapters/b"),
        (400, "", "/adapters/a"),
        (400, fake::MODEL, "/adapters/a"),
    ] {
        let body = json!({ "lora_name": name, "lora_path": path });
        let answer = post(load, ADMIN_KEY, body);
        assert_eq!(answer.status, status, "{}", answer.text);
        assert!(answer.json()["error"]["message"].is_string());
    }
    assert_eq!(
        post(load, ADMIN_KEY, json!({ "lora_name": "a" })).status,
        400
    );
    let unload = "/v1/unload_lora_adapter";
    assert_eq!(
        post(unload, ADMIN_KEY, json!({ "lora_name": "a" })).status,
        404
    );
}
