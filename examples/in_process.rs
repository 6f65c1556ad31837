//! Generating text without HTTP: first a streamed answer, then a completion returned as a whole.
//!
//! `cargo run --release --example in_process -- models/SmolLM2-135M-Instruct.Q4_1.gguf`

use std::error::Error;
use std::io::Write;

use realign::{Generate, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).ok_or("usage: in_process MODEL")?;
    let server = Server::builder()
        .model(model)
        .policies("policies")
        .build()?;

    let question = Generate::user("Name three primary colours.").max_tokens(48);
    let mut answer = server.generate_stream(question).await?;
    while let Some(piece) = answer.next().await {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    println!("\n[generation {}]", answer.generation());

    let text = Generate::text("Once upon a time")
        .temperature(0.0)
        .max_tokens(24);
    let story = server.generate(text).await?;
    println!("Once upon a time{}", story.text);
    println!(
        "[{:?} after {} tokens]",
        story.finish, story.tokens.completion
    );

    server.shutdown().await;
    Ok(())
}
