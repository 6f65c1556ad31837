//! An application that serves a language model under one of its own paths.
//!
//! `cargo run --release --example embed -- models/SmolLM2-135M-Instruct.Q4_1.gguf`

use std::error::Error;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use realign::Server;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).ok_or("usage: embed MODEL")?;
    let server = Server::builder()
        .model(model)
        .policies("policies")
        .build()?;
    let app = Router::new()
        .route("/", get(|| async { "This is the application.\n" }))
        .nest("/llm", server.router())
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("base URL: http://{}/llm/v1", listener.local_addr()?);
    let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    axum::serve(listener, app)
        .with_graceful_shutdown(interrupted)
        .await?;
    server.shutdown().await;
    Ok(())
}
