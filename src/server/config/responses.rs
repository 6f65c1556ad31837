//! `[responses]`: whether responses are kept, so that a later one can continue them.

use super::{ConfigError, RawResponses, at_least};

/// Bounds of the responses that are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponsesConfig {
    /// Most responses.
    pub max_entries: usize,
    /// Most bytes of their conversations.
    pub max_bytes: usize,
}

/// `None` if no response is kept.
pub(super) fn resolve(raw: &RawResponses) -> Result<Option<ResponsesConfig>, ConfigError> {
    let one = |key, value| at_least(1, key, value, "at least 1");
    let config = ResponsesConfig {
        max_entries: one("responses.max_entries", raw.max_entries.unwrap_or(1000))?,
        max_bytes: one("responses.max_mb", raw.max_mb.unwrap_or(64))?.saturating_mul(1 << 20),
    };
    Ok(raw.store.unwrap_or(false).then_some(config))
}
