//! What the rollout asks of an engine.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The engines that can be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// vLLM, with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING`.
    Vllm,
    /// `realign serve`.
    Realign,
    /// SGLang, with `--enable-lora`.
    Sglang,
    /// mistral.rs after 0.9.0, with `--enable-lora` and `MISTRALRS_ALLOW_RUNTIME_LORA_UPDATING`.
    Mistralrs,
}

/// A target's name: its URL, with the address where a host has several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TargetId(pub String);

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a target has loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// What requests send as `model` to get the base model.
    pub base: String,
    /// What stands before an adapter's name in `model`.
    pub prefix: String,
    /// Adapters, and the paths that they were loaded from, where the target tells.
    pub adapters: BTreeMap<String, Option<String>>,
}

/// Why a target did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It did not answer, or broke off. It may have done it.
    #[error("it does not answer: {0}")]
    Unreachable(String),
    /// It answered, and refused or failed.
    #[error("{0}")]
    Refused(String),
}

/// An engine that serves adapters by name. Its calls block.
pub trait Target: Send + Sync {
    /// What it has.
    ///
    /// # Errors
    /// [`TargetError`].
    fn list(&self) -> Result<Listing, TargetError>;

    /// Loads the adapter in `path`, as the target sees that, under a name of its own. What has that
    /// name already from the same path is loaded.
    ///
    /// # Errors
    /// [`TargetError`].
    fn load(&self, name: &str, path: &str) -> Result<(), TargetError>;

    /// Has it answer a fixed prompt by this `model`: it must say so itself, generate at least one
    /// token, and every log-probability must be a number.
    ///
    /// # Errors
    /// [`TargetError`].
    fn probe(&self, model: &str) -> Result<(), TargetError>;

    /// Unloads an adapter. One that is not loaded is unloaded.
    ///
    /// # Errors
    /// [`TargetError`].
    fn unload(&self, name: &str) -> Result<(), TargetError>;
}
