//! What a server offers to the application that it is embedded in.

use axum::Router;

use super::Server;
use crate::api::{self, Generate, GenerateError, Generated, TextStream};
use crate::config::Config;

impl Server {
    /// All routes, for clients and operators, to be nested in an application's own router (axum
    /// 0.8): `Router::new().nest("/llm", server.router())`. Everything in them works under any path,
    /// the operators' page at the root included. They answer as long as this server lives; after
    /// [`Server::shutdown`] they refuse requests with 503.
    ///
    /// Operator routes require the operators' key: `server.admin_key` or, without that, the one that
    /// the server keeps in the file `admin-key` of its state directory.
    /// Limits on connections, header and write timeouts and TLS are up to the application, which
    /// listens; only [`Server::run`] applies the configured ones.
    pub fn router(&self) -> Router {
        api::router(self.state.clone())
    }

    /// The clients' routes alone, as for a listener of their own.
    pub fn client_router(&self) -> Router {
        api::client_router(self.state.clone())
    }

    /// The operators' routes alone, with metrics and page; see [`Server::router`] on who may call
    /// them.
    pub fn operator_router(&self) -> Router {
        api::operator_router(self.state.clone())
    }

    /// Generates a text without HTTP. The request shares batches and limits with clients' requests;
    /// it is counted under the route `in-process` and its answer is judged like theirs. Keys and
    /// their rates do not apply. Dropping the future cancels the request. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`GenerateError`]: the request is wrong, the server is busy or shutting down, the engine
    /// failed.
    pub async fn generate(&self, request: Generate) -> Result<Generated, GenerateError> {
        api::generate(&self.state, request).await
    }

    /// As [`Server::generate`], piece by piece. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// As [`Server::generate`], for requests that are not accepted.
    pub async fn generate_stream(&self, request: Generate) -> Result<TextStream, GenerateError> {
        api::generate_stream(&self.state, request).await
    }

    /// As [`Server::generate`], for callers outside of asynchronous code. Needs no runtime.
    ///
    /// # Errors
    /// As [`Server::generate`].
    ///
    /// # Panics
    /// Inside a task of a Tokio runtime, whose thread it would block.
    pub fn generate_blocking(&self, request: Generate) -> Result<Generated, GenerateError> {
        api::generate_blocking(&self.state, request)
    }

    /// As [`Server::generate_stream`], for callers outside of asynchronous code, who read it with
    /// [`TextStream::blocking_next`].
    ///
    /// # Errors
    /// As [`Server::generate_stream`].
    pub fn generate_stream_blocking(&self, request: Generate) -> Result<TextStream, GenerateError> {
        api::start(&self.state, request)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The name that clients send as `model`.
    pub fn model_name(&self) -> &str {
        &self.state.model_name
    }

    /// Id of the generation that new requests get.
    pub fn generation(&self) -> String {
        self.state.registry.lease_current().id.to_string()
    }

    /// Revision (a content hash) of the active policy set.
    pub fn policy_revision(&self) -> String {
        let (policies, _) = self.threads.control.active_policies();
        policies.revision().to_string()
    }

    /// Whether the generation that serves is aligned to the active policies. May read from the state
    /// database.
    pub fn is_aligned(&self) -> bool {
        self.state.admin.alignment().state == realign_core::AlignmentState::Aligned
    }

    /// Refuses new requests, lets running ones finish within `server.drain_timeout_s`, gives the others
    /// up with an error, and ends the server's threads, each within a limit; a running realignment is left to be resumed by the next server on the same
    /// state directory. Memory is freed when this value and its routers are dropped. Needs a Tokio
    /// runtime.
    pub async fn shutdown(&self) {
        self.drain().await;
        self.state.closing.send_replace(true);
        // What is stuck has been logged, and is left behind.
        let _stuck = self.end().await;
    }
}
