//! Target policy agreement: fresh answers to held-out prompts, judged by the oracle.

use std::sync::Arc;

use serde::Serialize;

use crate::oracle::{Exchange, Oracle};
use realign_engine::EngineHandle;
use realign_engine::adapter::generation::Generation;
use realign_engine::request::{GenerateEvent, GenerateRequest, SamplingParams, SubmitError};

/// Answers at once while nobody else asks. A small window keeps room in the engine's queue for
/// clients.
const ALONE: usize = 16;
/// Answers at once beside clients: each makes every one of their steps longer.
const BESIDE_OTHERS: usize = 2;

/// A prompt that training never saw.
#[derive(Clone, Debug)]
pub struct HeldOutPrompt {
    /// What the oracle judges as the prompt.
    pub text: String,
    /// The rendered prompt.
    pub tokens: Vec<u32>,
}

/// Answers and how many of them comply.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    /// Compliant share, 0 to 1.
    pub ratio: f64,
    /// (prompt, answer, complies) in the prompts' order.
    pub answers: Vec<(String, String, bool)>,
}

/// Why agreement could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum AgreementError {
    /// Nothing was held out.
    #[error(
        "no held-out prompt concerns this policy set: mark pairs with \"meta\": {{\"holdout\": true}} or add data"
    )]
    NoPrompts,
    /// The engine did not take a prompt.
    #[error("the engine refused a held-out prompt: {0}")]
    Submit(#[from] SubmitError),
    /// The engine gave an answer up.
    #[error("the engine failed on a held-out prompt: {0}")]
    Engine(String),
    /// The run was stopped.
    #[error("cancelled")]
    Cancelled,
}

/// Answers every prompt greedily with one generation, through the serving engine itself, and has
/// the answers judged. `proceed` is asked between answers.
pub fn agreement(
    engine: &EngineHandle,
    generation: &Arc<Generation>,
    prompts: &[HeldOutPrompt],
    oracle: &dyn Oracle,
    max_tokens: usize,
    proceed: &dyn Fn() -> bool,
) -> Result<Agreement, AgreementError> {
    if prompts.is_empty() {
        return Err(AgreementError::NoPrompts);
    }
    let mut answers = Vec::with_capacity(prompts.len());
    let mut rest = prompts;
    while !rest.is_empty() {
        let size = match engine.is_busy() {
            true => BESIDE_OTHERS,
            false => ALONE,
        };
        let (window, later) = rest.split_at(size.min(rest.len()));
        rest = later;
        let streams = window.iter().map(|prompt| {
            let sampling = SamplingParams {
                max_tokens,
                ..SamplingParams::default()
            };
            engine.submit(GenerateRequest {
                prompt: prompt.tokens.clone(),
                sampling,
                generation: generation.clone(),
            })
        });
        let streams = streams.collect::<Result<Vec<_>, _>>()?;
        for (prompt, mut stream) in window.iter().zip(streams) {
            if !proceed() {
                return Err(AgreementError::Cancelled);
            }
            let mut answer = String::new();
            loop {
                match stream.blocking_next() {
                    Some(GenerateEvent::Token { text, .. }) => answer.push_str(&text),
                    Some(GenerateEvent::Finished { text, .. }) => {
                        answer.push_str(&text);
                        break;
                    }
                    Some(GenerateEvent::Failed(reason)) => {
                        return Err(AgreementError::Engine(reason));
                    }
                    None => return Err(AgreementError::Engine("the engine stopped".into())),
                }
            }
            let exchange = Exchange {
                prompt: &prompt.text,
                response: &answer,
                labels: &[],
            };
            let complies = oracle.judge(&exchange).complies();
            answers.push((prompt.text.clone(), answer, complies));
        }
    }
    let compliant = answers.iter().filter(|a| a.2).count();
    Ok(Agreement {
        ratio: compliant as f64 / answers.len() as f64,
        answers,
    })
}
