//! What a generation computes for a fixed text, to be compared on other machines.
//!
//! A content hash says that the files are right. It does not say that this machine computes with them
//! what the one did that published them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use realign_model::Tokenizer;

use crate::EngineHandle;
use crate::adapter::generation::Generation;
use crate::probe::TEXT;
use crate::request::{GenerateEvent, GenerateRequest, SamplingParams, SubmitError};

/// Tokens whose log-probabilities are published.
const PUBLISHED: usize = 5;
/// Tokens among which they are looked for elsewhere.
const LOOKED_AT: usize = 20;
/// Tokens of the fixed text: with one more, they fit the smallest context that can be configured.
const OWN_PROMPT: usize = 15;
/// Most tokens of a text that is computed because a manifest says so.
const MAX_PROMPT: usize = 256;
/// The largest difference of a log-probability between two machines that compute with the same files,
/// in nats; docs/fleet.md says from what it was chosen.
pub const TOLERANCE: f32 = 1.0;

/// The first token that a generation would answer a text with, as a distribution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The text's token ids.
    pub prompt: Vec<u32>,
    /// The most likely tokens with their log-probabilities (natural log), best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a fingerprint cannot be computed or compared.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FingerprintError {
    /// The text cannot be made tokens.
    #[error("the text of the fingerprint cannot be encoded: {0}")]
    Encode(String),
    /// What was published cannot be compared with anything.
    #[error("the published fingerprint is unusable: {0}")]
    Unusable(&'static str),
    /// The engine did not take the text.
    #[error("the engine refused the text of the fingerprint: {0}")]
    Submit(#[from] SubmitError),
    /// The engine failed.
    #[error("the engine failed on the text of the fingerprint: {0}")]
    Engine(String),
}

impl Fingerprint {
    /// What this engine computes for the fixed text. The engine must have room for the generation.
    ///
    /// # Errors
    /// [`FingerprintError`].
    pub fn of(
        engine: &EngineHandle,
        tokenizer: &Tokenizer,
        generation: &Arc<Generation>,
    ) -> Result<Self, FingerprintError> {
        let encoded = tokenizer.encode_prompt(TEXT);
        let mut prompt = encoded.map_err(|e| FingerprintError::Encode(e.to_string()))?;
        prompt.truncate(OWN_PROMPT);
        let mut top = first_token(engine, generation, prompt.clone())?;
        top.truncate(PUBLISHED);
        Ok(Self { prompt, top })
    }

    /// The largest difference between a log-probability in it and this engine's, in nats. A token that
    /// is not among the twenty most likely here counts as if it were as likely as the last of them.
    ///
    /// # Errors
    /// [`FingerprintError`].
    pub fn distance(
        &self,
        engine: &EngineHandle,
        tokenizer: &Tokenizer,
        generation: &Arc<Generation>,
    ) -> Result<f32, FingerprintError> {
        self.check(tokenizer.vocab_size())?;
        let here = first_token(engine, generation, self.prompt.clone())?;
        Ok(difference(&self.top, &here))
    }

    /// Refuses what another program may have written.
    fn check(&self, vocabulary: usize) -> Result<(), FingerprintError> {
        let known = |id: u32| usize::try_from(id).is_ok_and(|id| id < vocabulary);
        let why = if self.prompt.is_empty() || self.prompt.len() > MAX_PROMPT {
            "its text must have 1 to 256 tokens"
        } else if !self.prompt.iter().all(|id| known(*id)) {
            "its text has tokens that this model does not have"
        } else if self.top.is_empty() {
            "it names no tokens"
        } else if !self.top.iter().all(|(_, logprob)| logprob.is_finite()) {
            "a log-probability is not finite"
        } else {
            return Ok(());
        };
        Err(FingerprintError::Unusable(why))
    }
}

/// The most likely first tokens of an answer to `prompt`.
fn first_token(
    engine: &EngineHandle,
    generation: &Arc<Generation>,
    prompt: Vec<u32>,
) -> Result<Vec<(u32, f32)>, FingerprintError> {
    let sampling = SamplingParams {
        max_tokens: 1,
        ignore_eos: true,
        top_logprobs: Some(LOOKED_AT),
        ..SamplingParams::default()
    };
    let mut stream = engine.submit(GenerateRequest {
        prompt,
        sampling,
        generation: generation.clone(),
    })?;
    match stream.blocking_next() {
        Some(GenerateEvent::Token { top, .. }) => {
            Ok(top.into_iter().map(|t| (t.id, t.logprob)).collect())
        }
        Some(GenerateEvent::Failed(why)) => Err(FingerprintError::Engine(why)),
        Some(GenerateEvent::Finished { .. }) | None => {
            Err(FingerprintError::Engine("it drew no token".into()))
        }
    }
}

/// The largest difference of `published` from what is `here`, both as (token, log-probability).
fn difference(published: &[(u32, f32)], here: &[(u32, f32)]) -> f32 {
    // Without any token here, nothing is like what was published.
    let last = here
        .iter()
        .map(|(_, logprob)| *logprob)
        .fold(f32::INFINITY, f32::min);
    let of = |(id, logprob): &(u32, f32)| {
        let own = here.iter().find(|(own, _)| own == id);
        let difference = (logprob - own.map_or(last, |(_, own)| *own)).abs();
        // What is no number is no agreement.
        if difference.is_nan() {
            f32::INFINITY
        } else {
            difference
        }
    };
    published.iter().map(of).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests;
