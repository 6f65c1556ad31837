//! Submits a list of prompts to the serving engine and waits for the answers.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::EngineHandle;
use crate::adapter::generation::Generation;
use crate::request::{GenerateEvent, GenerateRequest, GenerateStream, SamplingParams, SubmitError};

/// Prompts in flight while no client request is running. Few enough to leave room in the queue.
const WINDOW_WHEN_IDLE: usize = 32;
/// Prompts in flight alongside client requests: each one lengthens every step of theirs.
const WINDOW_WHEN_BUSY: usize = 2;

/// A prompt to answer.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Token ids of the rendered conversation.
    pub tokens: Vec<u32>,
    /// How the answer is drawn.
    pub sampling: SamplingParams,
}

impl Prompt {
    /// A prompt whose answer is drawn greedily, of at most `max_tokens`.
    pub fn greedy(tokens: Vec<u32>, max_tokens: usize) -> Self {
        let sampling = SamplingParams {
            max_tokens,
            ..SamplingParams::default()
        };
        Self { tokens, sampling }
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// What it says.
    pub text: String,
    /// Its tokens, the end-of-turn token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the generation that answered; empty unless the sampling
    /// asks for log-probabilities.
    pub logprobs: Vec<f32>,
}

/// Why a prompt was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The engine did not take a prompt.
    #[error("the engine refused an exam prompt: {0}")]
    Submit(#[from] SubmitError),
    /// The engine failed while answering.
    #[error("the engine failed on an exam prompt: {0}")]
    Engine(String),
    /// The caller stopped.
    #[error("cancelled")]
    Cancelled,
}

/// Answers of `generation` to prompts, in the prompts' order. They share batches with whatever else
/// the engine serves; the next prompt is submitted as soon as one is answered. `proceed` is called
/// before every answer; `false` cancels.
///
/// # Errors
/// [`AskError`]; the answers so far are lost.
pub fn ask(
    engine: &EngineHandle,
    generation: &Arc<Generation>,
    prompts: &[Prompt],
    proceed: &dyn Fn() -> bool,
) -> Result<Vec<Answered>, AskError> {
    let mut answers = Vec::with_capacity(prompts.len());
    let mut running: VecDeque<GenerateStream> = VecDeque::new();
    let mut waiting = prompts.iter();
    loop {
        // Our own sequences make the engine busy too: it serves others if it has more than ours.
        let stats = engine.stats();
        let others = stats.running + stats.waiting > running.len();
        let window = if others {
            WINDOW_WHEN_BUSY
        } else {
            WINDOW_WHEN_IDLE
        };
        while running.len() < window {
            let Some(prompt) = waiting.next() else { break };
            running.push_back(engine.submit(GenerateRequest {
                prompt: prompt.tokens.clone(),
                sampling: prompt.sampling.clone(),
                generation: generation.clone(),
            })?);
        }
        let Some(next) = running.pop_front() else {
            return Ok(answers);
        };
        if !proceed() {
            return Err(AskError::Cancelled);
        }
        answers.push(whole_answer(next)?);
    }
}

fn whole_answer(mut stream: GenerateStream) -> Result<Answered, AskError> {
    let mut answer = Answered::default();
    loop {
        match stream.blocking_next() {
            Some(GenerateEvent::Token {
                id, text, logprob, ..
            }) => {
                answer.tokens.push(id);
                answer.logprobs.extend(logprob.map(|l| l.logprob));
                answer.text.push_str(&text);
            }
            Some(GenerateEvent::Finished { text, .. }) => {
                answer.text.push_str(&text);
                return Ok(answer);
            }
            Some(GenerateEvent::Failed(reason)) => return Err(AskError::Engine(reason)),
            None => return Err(AskError::Engine("the engine stopped".into())),
        }
    }
}
