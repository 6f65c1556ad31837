//! Submits a list of prompts to the serving engine and waits for the answers.

use std::sync::Arc;

use crate::EngineHandle;
use crate::adapter::generation::Generation;
use crate::request::{GenerateEvent, GenerateRequest, GenerateStream, SamplingParams, SubmitError};

/// Prompts in flight while no client request is running. Few enough to leave room in the queue.
const WINDOW_WHEN_IDLE: usize = 16;
/// Prompts in flight alongside client requests: each one lengthens every step of theirs.
const WINDOW_WHEN_BUSY: usize = 2;

/// Why a prompt was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The engine did not take a prompt.
    #[error("the engine refused a held-out prompt: {0}")]
    Submit(#[from] SubmitError),
    /// The engine failed while answering.
    #[error("the engine failed on a held-out prompt: {0}")]
    Engine(String),
    /// The caller stopped.
    #[error("cancelled")]
    Cancelled,
}

/// Greedy answers of `generation` to rendered prompts (token ids), in the prompts' order, each of at
/// most `max_tokens`. They share batches with whatever else the engine serves. `proceed` is called
/// before every answer; `false` cancels.
///
/// # Errors
/// [`AskError`]; the answers so far are lost.
pub fn ask(
    engine: &EngineHandle,
    generation: &Arc<Generation>,
    prompts: &[Vec<u32>],
    max_tokens: usize,
    proceed: &dyn Fn() -> bool,
) -> Result<Vec<String>, AskError> {
    let mut answers = Vec::with_capacity(prompts.len());
    while answers.len() < prompts.len() {
        let window = if engine.is_busy() {
            WINDOW_WHEN_BUSY
        } else {
            WINDOW_WHEN_IDLE
        };
        let streams = prompts[answers.len()..].iter().take(window).map(|prompt| {
            engine.submit(GenerateRequest {
                prompt: prompt.clone(),
                sampling: SamplingParams {
                    max_tokens,
                    ..SamplingParams::default()
                },
                generation: generation.clone(),
            })
        });
        for stream in streams.collect::<Result<Vec<_>, _>>()? {
            if !proceed() {
                return Err(AskError::Cancelled);
            }
            answers.push(whole_answer(stream)?);
        }
    }
    Ok(answers)
}

fn whole_answer(mut stream: GenerateStream) -> Result<String, AskError> {
    let mut answer = String::new();
    loop {
        match stream.blocking_next() {
            Some(GenerateEvent::Token { text, .. }) => answer.push_str(&text),
            Some(GenerateEvent::Finished { text, .. }) => {
                answer.push_str(&text);
                return Ok(answer);
            }
            Some(GenerateEvent::Failed(reason)) => return Err(AskError::Engine(reason)),
            None => return Err(AskError::Engine("the engine stopped".into())),
        }
    }
}
