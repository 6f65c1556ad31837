//! `[retention]` and `[adapters]`: what a server keeps, and what it does without what should serve.

use super::{ConfigError, RawAdapters, RawRetention};

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// What a server keeps at most; `None` is no limit. What serves, what can be rolled back to, what
/// requests use and what the active policies led to always stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Adapters, the most recently used ones. Also the runs whose impact scores stay.
    pub generations: Option<usize>,
    /// Records of realignments and of refusals, fitted probes, the newest ones.
    pub realignments: Option<usize>,
    /// Rows of each table of cached results: verdicts, answers of exams, judges' scores, corrective
    /// responses.
    pub cached: Option<usize>,
    /// Time since the last use of adapters, records and cached results, in seconds.
    pub max_age_s: Option<u64>,
    /// Size of all adapters together, in bytes.
    pub max_bytes: Option<u64>,
}

/// What a server does if the generation that should serve is missing or damaged at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// The base model serves.
    ServeBase,
    /// Requests for what serves are refused until a realignment or an activation.
    Refuse,
}

/// Zero is no limit.
fn limit<T: Default + PartialEq>(value: Option<T>, default: T) -> Option<T> {
    Some(value.unwrap_or(default)).filter(|value| *value != T::default())
}

pub(super) fn resolve(raw: &RawRetention) -> RetentionConfig {
    RetentionConfig {
        generations: limit(raw.generations, 20),
        realignments: limit(raw.realignments, 200),
        cached: limit(raw.cached, 200_000),
        max_age_s: limit(raw.days, 0).map(|days| days.saturating_mul(DAY)),
        max_bytes: limit(raw.megabytes, 0).map(|megabytes| megabytes.saturating_mul(1 << 20)),
    }
}

pub(super) fn resolve_adapters(raw: &RawAdapters) -> Result<OnMissing, ConfigError> {
    match raw.on_missing.as_deref() {
        None | Some("serve-base") => Ok(OnMissing::ServeBase),
        Some("refuse") => Ok(OnMissing::Refuse),
        Some(other) => Err(ConfigError::Value {
            key: "adapters.on_missing",
            value: other.into(),
            allowed: "`serve-base` or `refuse`",
        }),
    }
}
