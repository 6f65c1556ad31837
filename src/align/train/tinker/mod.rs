//! Training on a distributed engine that speaks the Tinker HTTP API, as SkyRL serves it.
//!
//! The engine computes log-probabilities, gradients and optimiser steps; the objective, the batches
//! and the schedule stay here. A step asks for the log-probabilities of its responses (`forward`),
//! turns them into a coefficient per token, hands those back as advantages
//! (`forward_backward`), and lets the engine move (`optim_step`). Both passes go to `forward_backward`
//! as protocol buffers; to an engine that cannot read those, as JSON, and `forward` has a route of its own.

mod archive;
mod client;
mod error;
mod fetched;
mod passes;
mod proto;
mod session;
mod steps;
mod wire;

use std::time::Duration;

use realign_model::LoraWeights;

pub use error::TinkerError;
pub use session::Session;

/// Reads an adapter from the bytes of its PEFT files, `adapter_config.json` and
/// `adapter_model.safetensors`.
pub type ReadPeft = fn(&[u8], &[u8]) -> Result<LoraWeights, String>;

/// Where an engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TinkerSpec {
    /// Its root, such as `http://trainer:8000`.
    pub url: String,
    /// The name it has for the base model; `None` takes the only one it has.
    pub model: Option<String>,
    /// The environment variable with its key.
    pub key_env: Option<String>,
}

/// An engine, and how it is used.
#[derive(Clone, Debug)]
pub struct Tinker {
    /// Where it is.
    pub spec: TinkerSpec,
    /// Time after which a run ends without a result.
    pub max_time: Duration,
    /// Reads what it trained.
    pub read: ReadPeft,
    /// How often and after which pauses requests are repeated.
    pub patience: Patience,
}

impl Tinker {
    /// An engine with the usual patience.
    pub fn new(spec: TinkerSpec, max_time: Duration, read: ReadPeft) -> Self {
        Self {
            spec,
            max_time,
            read,
            patience: Patience::default(),
        }
    }
}

/// How often a request without an answer is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Maximum attempts per request.
    pub attempts: u32,
    /// The pause after the first attempt; each further one is twice as long.
    pub first_pause: Duration,
}

impl Default for Patience {
    /// About half a minute in all.
    fn default() -> Self {
        Self {
            attempts: 7,
            first_pause: Duration::from_millis(500),
        }
    }
}
