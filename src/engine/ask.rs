//! Submits a list of prompts to the serving engine and waits for the answers.

use std::sync::Arc;

use tokio::sync::mpsc::error::TryRecvError;

use crate::EngineHandle;
use crate::adapter::generation::Generation;
use crate::request::{GenerateEvent, GenerateRequest, GenerateStream, SamplingParams, SubmitError};

/// Prompts in flight while no client request is running. Few enough to leave room in the batch.
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

/// A prompt in flight.
struct Running {
    index: usize,
    stream: GenerateStream,
    answer: Answered,
}

/// Answers of `generation` to prompts, in the prompts' order, as [`ask_each`] gets them.
///
/// # Errors
/// [`AskError`]; the answers so far are lost.
pub fn ask(
    engine: &EngineHandle,
    generation: &Arc<Generation>,
    prompts: &[Prompt],
    proceed: &dyn Fn() -> bool,
) -> Result<Vec<Answered>, AskError> {
    let mut answers = vec![Answered::default(); prompts.len()];
    ask_each(
        engine,
        generation,
        prompts,
        proceed,
        &mut |index, answer| {
            answers[index] = answer;
        },
    )?;
    Ok(answers)
}

/// Has `generation` answer prompts. They share batches with whatever else the engine serves; the next
/// prompt is submitted as soon as any is answered. `proceed` is called before every step of the
/// answers; `false` cancels. `answered` takes each answer, and which prompt's it is, once it is whole.
///
/// # Errors
/// [`AskError`]; answers that are not whole are lost.
pub fn ask_each(
    engine: &EngineHandle,
    generation: &Arc<Generation>,
    prompts: &[Prompt],
    proceed: &dyn Fn() -> bool,
    answered: &mut dyn FnMut(usize, Answered),
) -> Result<(), AskError> {
    let mut running: Vec<Running> = Vec::new();
    let mut waiting = prompts.iter().enumerate();
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
            let Some((index, prompt)) = waiting.next() else {
                break;
            };
            let stream = engine.submit(GenerateRequest {
                prompt: prompt.tokens.clone(),
                sampling: prompt.sampling.clone(),
                generation: generation.clone(),
            })?;
            running.push(Running {
                index,
                stream,
                answer: Answered::default(),
            });
        }
        let Some(oldest) = running.first_mut() else {
            return Ok(());
        };
        if !proceed() {
            return Err(AskError::Cancelled);
        }
        // A step gives every sequence of the batch a token: when the oldest one's has come, it is
        // time to look at the others.
        let event = oldest.stream.blocking_next();
        if oldest.answer.add(event)? {
            let whole = running.remove(0);
            answered(whole.index, whole.answer);
        }
        let mut unfinished = Vec::with_capacity(window);
        for mut one in running {
            if one.answer.add_ready(&mut one.stream)? {
                answered(one.index, one.answer);
            } else {
                unfinished.push(one);
            }
        }
        running = unfinished;
    }
}

impl Answered {
    /// Adds an event, `None` if no more will come. Whether the answer is whole.
    fn add(&mut self, event: Option<GenerateEvent>) -> Result<bool, AskError> {
        match event {
            Some(GenerateEvent::Token {
                id, text, logprob, ..
            }) => {
                self.tokens.push(id);
                self.logprobs.extend(logprob.map(|l| l.logprob));
                self.text.push_str(&text);
                Ok(false)
            }
            Some(GenerateEvent::Finished { text, .. }) => {
                self.text.push_str(&text);
                Ok(true)
            }
            Some(GenerateEvent::Failed(reason)) => Err(AskError::Engine(reason)),
            None => Err(AskError::Engine("the engine stopped".into())),
        }
    }

    /// Adds the events that are there already. Whether the answer is whole.
    fn add_ready(&mut self, stream: &mut GenerateStream) -> Result<bool, AskError> {
        loop {
            let event = match stream.events.try_recv() {
                Ok(event) => Some(event),
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => None,
            };
            if self.add(event)? {
                return Ok(true);
            }
        }
    }
}
