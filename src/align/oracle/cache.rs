//! Verdicts by content: one entry per (response, rule), under a hash of everything it depends on.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::policy::{Exchange, MATCHER_VERSION, Rule};
use realign_core::thoughts::answer_of;

/// Half a SHA-256 over the rule's hash, its fits and the matchers' version, then half a SHA-256
/// over prompt, response and labels. The rule's half comes first, so that a sorted store keeps a
/// rule's verdicts together and reads them in one scan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerdictKey(pub [u8; 32]);

impl VerdictKey {
    /// The key of one rule's verdict on one response.
    pub fn new(exchange: &Exchange<'_>, rule: &Rule) -> VerdictKey {
        VerdictKey::of(&exchange_digest(exchange), &rule_digest(rule, ""))
    }

    /// The key from its two halves.
    pub(super) fn of(exchange: &[u8; 16], rule: &[u8; 16]) -> VerdictKey {
        let mut key = [0; 32];
        key[..16].copy_from_slice(rule);
        key[16..].copy_from_slice(exchange);
        VerdictKey(key)
    }

    /// The key as 64 hex digits.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// The key of 64 hex digits; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<VerdictKey> {
        let mut key = [0; 32];
        hex::decode_to_slice(text, &mut key).ok()?;
        Some(VerdictKey(key))
    }
}

impl fmt::Debug for VerdictKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerdictKey({})", self.to_hex())
    }
}

/// Hash of what a rule's verdicts depend on; `fits` is [`super::Matchers::identity`].
pub(super) fn rule_digest(rule: &Rule, fits: &str) -> [u8; 16] {
    let mut hasher = Sha256::new();
    hasher.update(MATCHER_VERSION.to_le_bytes());
    // The hash has a fixed length, so what follows is unambiguous.
    hasher.update(rule.hash());
    hasher.update(fits);
    half(hasher)
}

fn half(hasher: Sha256) -> [u8; 16] {
    let whole: [u8; 32] = hasher.finalize().into();
    let mut out = [0; 16];
    out.copy_from_slice(&whole[..16]);
    out
}

pub(super) fn exchange_digest(exchange: &Exchange<'_>) -> [u8; 16] {
    let mut hasher = Sha256::new();
    let texts = [exchange.prompt, exchange.response];
    for text in texts
        .into_iter()
        .chain(exchange.labels.iter().map(String::as_str))
    {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    // Texts with thoughts were judged whole before policies could say what they judge of them.
    if answer_of(exchange.response).len() != exchange.response.len() {
        hasher.update(b"thoughts");
    }
    half(hasher)
}

/// Storage of verdicts; `true` is "violates".
///
/// A failed read gives `None` and a failed write drops the entry: verdicts can be recomputed, so a
/// broken cache slows triage down but never stops it.
pub trait VerdictCache: Send + Sync {
    /// The stored verdicts, one entry per key in the same order.
    fn get_many(&self, keys: &[VerdictKey]) -> Vec<Option<bool>>;

    /// Stores verdicts.
    fn put_many(&self, verdicts: &[(VerdictKey, bool)]);

    /// The stored verdict of one key.
    fn get(&self, key: &VerdictKey) -> Option<bool> {
        self.get_many(std::slice::from_ref(key))
            .into_iter()
            .next()
            .flatten()
    }

    /// Stores one verdict.
    fn put(&self, key: &VerdictKey, violates: bool) {
        self.put_many(&[(*key, violates)]);
    }
}

/// How many verdicts were computed and how many were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheCounts {
    /// Rule verdicts computed in this call.
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
    /// Number of stored verdicts.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no verdict is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything stored, sorted by key.
    pub fn sorted(&self) -> Vec<(VerdictKey, bool)> {
        let mut all: Vec<_> = self.lock().iter().map(|(key, v)| (*key, *v)).collect();
        all.sort_unstable();
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VerdictKey, bool>> {
        // The map is consistent between operations, so it stays usable after a panic elsewhere.
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
