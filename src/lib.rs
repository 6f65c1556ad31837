//! realign: an OpenAI-compatible LLM inference server whose alignment is live. Drop a policy file
//! into a directory, and the server trains an adapter for it, measures it, and serves it, without a
//! restart.
//!
//! This crate is the server as a library. An application can mount it under one of its own paths:
//!
//! ```no_run
//! # async fn embed() -> Result<(), Box<dyn std::error::Error>> {
//! use std::net::SocketAddr;
//!
//! use axum::{Router, routing::get};
//! use realign::Server;
//!
//! // Blocks for seconds while it loads.
//! let server = Server::builder()
//!     .model("hf:HuggingFaceTB/SmolLM2-135M-Instruct")
//!     .policies("policies")
//!     .build()?;
//! let app = Router::new()
//!     .route("/", get(|| async { "This is the application." }))
//!     .nest("/llm", server.router())
//!     .into_make_service_with_connect_info::<SocketAddr>();
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, app).await?;
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! or generate text without HTTP, from asynchronous code or, as here, from blocking code:
//!
//! ```no_run
//! # fn generate() -> Result<(), Box<dyn std::error::Error>> {
//! use realign::{Generate, Server};
//!
//! let server = Server::builder().model("models/model.gguf").build()?;
//! let question = Generate::user("Which city is the capital of France?");
//! let answer = server.generate_blocking(question.max_tokens(32))?;
//! println!("{} ({})", answer.text, answer.generation);
//! # Ok(())
//! # }
//! ```
//!
//! Settings are checked before anything is loaded, and error messages say what is allowed:
//!
//! ```
//! use realign::Server;
//!
//! let builder = Server::builder().device("gpu").settings("[gate]\nmax_prompts = 8");
//! let error = builder.configuration().unwrap_err();
//! assert!(error.to_string().starts_with("engine.device is \"gpu\""));
//! ```
//!
//! Several servers can run in one process; each needs its own state and adapter directories. The
//! server emits `tracing` events and installs no subscriber, reads the environment only for
//! [`ServerBuilder::config_file`], and handles signals only in [`Server::run`].
//!
//! The feature `cli`, on by default, adds the `realign` program; applications disable it with
//! `default-features = false`. `cuda` adds NVIDIA GPUs, `mistralrs` a second engine.
//! ARCHITECTURE.md describes the crates behind this one.

pub use realign_server::api::{
    ChatMessage, ChatRole, FinishReason, Generate, GenerateError, Generated, LogFilterError,
    LogPort as LogControl, TextStream, TokenCounts,
};
pub use realign_server::config::{Config, ConfigError};
pub use realign_server::serve::{Server, ServerBuilder, ServerError};
