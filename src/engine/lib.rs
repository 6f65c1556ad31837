//! Continuous batching over a paged KV cache. Knows no HTTP.
//!
//! One thread owns the cache and the sequences and repeats `schedule → forward → sample`
//! ([`runner`]); callers hold an [`EngineHandle`] and talk to it through channels, so a waiting
//! request costs only its prompt's memory. A sequence leases its generation when it is accepted;
//! rows of different generations share a batch because adapters stay unmerged.
//!
//! An engine that cannot apply adapters row by row implements the same [`Engine`] trait with one
//! copy of the weights per generation ([`merged`]). Everything about a request except its logits is
//! computed by the same code.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may sleep"))]

pub mod adapter;
mod admission;
mod ask;
pub mod bad_words;
mod blocks;
mod drafts;
pub mod driver;
mod embed;
mod engine;
mod fingerprint;
mod free_list;
pub mod grammar;
mod handle;
pub mod health;
pub mod merged;
mod native;
mod pace;
mod prefix;
mod probe;
pub mod request;
mod runner;
mod sampler;
mod scheduler;
mod score;
mod sequence;
mod shaper;
mod step;
mod stop;
#[cfg(test)]
mod tests;
pub mod thoughts;

pub use ask::{Answered, AskError, Prompt, ask, ask_each};
pub use embed::Embedder;
pub use engine::{Engine, EngineHandle};
pub use fingerprint::{Fingerprint, FingerprintError, TOLERANCE};
pub use handle::{EngineConfig, EngineError, start, start_merged};
pub use health::Health;
pub use score::PromptToken;
