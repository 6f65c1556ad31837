//! The API on a scripted engine, without a network: what `fuzz/` sends its requests to.

#[path = "tests/fake.rs"]
#[allow(
    dead_code,
    reason = "the tests, which it is shared with, use all of it"
)]
mod fake;

use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, header};
use std::net::SocketAddr;
use tokio::runtime::Runtime;
use tower_service::Service;

use super::router;

/// The clients' routes that take a body.
const PATHS: [&str; 16] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/moderations",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/tokenize",
    "/detokenize",
    "/admin/v1/policies/explain",
    "/admin/v1/generations/activate",
    "/api/embed",
    "/api/embeddings",
];

/// An API whose engine says "Hello world!" to everything.
pub struct Api {
    server: fake::Server,
    router: axum::Router,
    runtime: Runtime,
}

impl Api {
    /// Starts it. It needs the default model's file, for its tokenizer.
    ///
    /// # Panics
    /// Without that file.
    pub fn new() -> Self {
        let server = fake::Server::start(|_| ());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime starts");
        Self {
            router: router(server.state.clone()),
            server,
            runtime,
        }
    }

    /// Posts a body to one of the routes; returns its path, the status and the answer.
    ///
    /// # Panics
    /// If the answer breaks off.
    pub fn post(&self, route: usize, body: &[u8]) -> (&'static str, u16, Vec<u8>) {
        let path = PATHS[route % PATHS.len()];
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", fake::ADMIN_KEY))
            .extension(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 1))))
            .body(Body::from(body.to_vec()))
            .expect("a path and headers of this file");
        let answer = self.runtime.block_on(async {
            // A router is always ready, and has no error.
            let response = self
                .router
                .clone()
                .call(request)
                .await
                .unwrap_or_else(|e| match e {});
            let status = response.status().as_u16();
            let body = to_bytes(response.into_body(), usize::MAX).await;
            (path, status, body.expect("the answer is whole").to_vec())
        });
        // It remembers what it was asked.
        self.server
            .engine
            .requests
            .lock()
            .expect("nothing panicked")
            .clear();
        answer
    }
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}
