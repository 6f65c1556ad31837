//! Verdicts by content: one entry per (response, rule), under a hash of everything it depends on.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::policy::{Exchange, MATCHER_VERSION, Rule};

/// SHA-256 over prompt, response, labels, the rule's hash and the matchers' version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerdictKey(pub [u8; 32]);

impl VerdictKey {
    /// The key of one rule's verdict on one response.
    pub fn new(exchange: &Exchange<'_>, rule: &Rule) -> VerdictKey {
        VerdictKey::of(&exchange_digest(exchange), rule)
    }

    /// As [`VerdictKey::new`] for several rules; the texts are hashed once.
    pub fn for_rules<'r>(
        exchange: &Exchange<'_>,
        rules: impl Iterator<Item = &'r Rule>,
    ) -> Vec<VerdictKey> {
        let digest = exchange_digest(exchange);
        rules.map(|rule| VerdictKey::of(&digest, rule)).collect()
    }

    fn of(exchange: &[u8; 32], rule: &Rule) -> VerdictKey {
        // Every part has a fixed length, so their concatenation is unambiguous.
        let mut hasher = Sha256::new();
        hasher.update(MATCHER_VERSION.to_le_bytes());
        hasher.update(exchange);
        hasher.update(rule.hash());
        VerdictKey(hasher.finalize().into())
    }

    /// The key as 64 hex digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Debug for VerdictKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerdictKey({})", self.to_hex())
    }
}

fn exchange_digest(exchange: &Exchange<'_>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let texts = [exchange.prompt, exchange.response];
    for text in texts
        .into_iter()
        .chain(exchange.labels.iter().map(String::as_str))
    {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize().into()
}

/// Where verdicts are kept; `true` is "violates".
///
/// A cache that fails to read answers `None` and one that fails to write drops the entry: verdicts
/// can always be computed again, so a broken cache slows triage down but never stops it.
pub trait VerdictCache: Send + Sync {
    /// The known verdicts, in the keys' order; as long as `keys`.
    fn get_many(&self, keys: &[VerdictKey]) -> Vec<Option<bool>>;

    /// Keeps verdicts.
    fn put_many(&self, verdicts: &[(VerdictKey, bool)]);

    /// The known verdict of one key.
    fn get(&self, key: &VerdictKey) -> Option<bool> {
        self.get_many(std::slice::from_ref(key))
            .into_iter()
            .next()
            .flatten()
    }

    /// Keeps one verdict.
    fn put(&self, key: &VerdictKey, violates: bool) {
        self.put_many(&[(*key, violates)]);
    }
}

/// How many verdicts were computed and how many were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheCounts {
    /// Rule verdicts computed now.
    pub judged: usize,
    /// Rule verdicts found in the cache.
    pub cached: usize,
}

/// A cache that lives as long as the process.
#[derive(Debug, Default)]
pub struct MemoryVerdictCache {
    verdicts: Mutex<HashMap<VerdictKey, bool>>,
}

impl MemoryVerdictCache {
    /// Number of verdicts kept.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VerdictKey, bool>> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VerdictCache for MemoryVerdictCache {
    fn get_many(&self, keys: &[VerdictKey]) -> Vec<Option<bool>> {
        let verdicts = self.lock();
        keys.iter().map(|key| verdicts.get(key).copied()).collect()
    }

    fn put_many(&self, verdicts: &[(VerdictKey, bool)]) {
        self.lock().extend(verdicts.iter().copied());
    }
}
