//! Routes nested under an application's path.

use std::net::SocketAddr;

use axum::routing::get;
use serde_json::json;

use super::super::*;
use super::fake::{ADMIN_KEY, MODEL, Server};

/// Starts an application and returns its URL; with `knows_peers` it passes peer addresses to its
/// routes.
fn application(server: &Server, runtime: &tokio::runtime::Runtime, knows_peers: bool) -> String {
    let app = Router::new()
        .route("/", get(async || "the application"))
        .nest("/tools/llm", router(server.state.clone()));
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    if knows_peers {
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        runtime.spawn(async move { axum::serve(listener, app).await });
    } else {
        runtime.spawn(async move { axum::serve(listener, app).await });
    }
    url
}

fn fetch(url: &str) -> (u16, ureq::http::HeaderMap, String) {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let mut response = agent.get(url).call().unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), response.headers().clone(), text)
}

#[test]
fn nested_routes_know_their_names() {
    let server = Server::start(|_| ());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = application(&server, &runtime, true);
    let llm = format!("{url}/tools/llm");
    let chat = format!("{llm}/v1/chat/completions");
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    ureq::post(&chat).send_json(&body).unwrap();
    assert_eq!(fetch(&format!("{llm}/health")).0, 200);
    let (status, _, text) = fetch(&format!("{llm}/v1/nothing"));
    assert_eq!(status, 404);
    assert!(
        text.contains("no route GET /tools/llm/v1/nothing"),
        "{text}"
    );
    assert_eq!(fetch(&url).2, "the application");

    let metrics = fetch(&format!("{llm}/metrics")).2;
    for line in [
        "realign_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "realign_requests_total{route=\"unmatched\",status=\"404\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert_eq!(
        metrics.matches("realign_requests_total{").count(),
        2,
        "probes"
    );

    let document = fetch(&format!("{llm}/openapi.json")).2;
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["servers"][0]["url"], "/tools/llm");
    assert!(document["paths"]["/v1/completions"].is_object());
    let (status, _, text) = fetch(&format!("{llm}/models"));
    assert!(
        status == 404 && text.contains("did you mean /tools/llm/v1/models?"),
        "{text}"
    );
}

#[test]
fn the_operators_page_finds_its_files_when_nested() {
    let server = Server::start(|_| ());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = application(&server, &runtime, true);
    let (status, headers, page) = fetch(&format!("{url}/tools/llm"));
    assert_eq!(status, 200);
    assert!(page.contains("<base href=\"llm/\">"), "{page}");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("base-uri 'self'"), "{policy}");
    for file in ["page.css", "page.js"] {
        assert!(page.contains(&format!("\"{file}\"")), "{page}");
        assert_eq!(fetch(&format!("{url}/tools/llm/{file}")).0, 200);
    }
    let (_, headers, page) = fetch(&server.url);
    assert!(!page.contains("<base"), "at the root it needs none");
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("base-uri 'none'"), "{policy}");
    let script = include_str!("../page/page.js");
    assert!(script.contains("fetch(`admin/v1/"), "relative to the page");
}

#[test]
fn operators_need_their_key_under_any_path() {
    let server = Server::start(|_| ());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for knows_peers in [true, false] {
        let url = application(&server, &runtime, knows_peers);
        let generations = format!("{url}/tools/llm/admin/v1/generations");
        let (status, _, text) = fetch(&generations);
        assert_eq!(status, 401, "{text}");
        let key = format!("Bearer {ADMIN_KEY}");
        let answer = ureq::get(&generations).header("authorization", key).call();
        assert_eq!(answer.unwrap().status(), 200);
    }
}
