//! `[exam]` and `[drift]`: what is asked of generations, and what live answers start.

use super::{ConfigError, RawDrift, RawExam, at_least};

/// What an exam asks, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExamConfig {
    /// Most prompts.
    pub prompts: usize,
    /// Most facts.
    pub facts: usize,
    /// Seconds between two exams of what serves; 0 means that only changes and operators start one.
    pub interval_s: u64,
    /// Whether recent prompts of clients are kept in memory and asked.
    pub live_prompts: bool,
}

/// When live answers start a realignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriftConfig {
    /// Whether they do.
    pub enabled: bool,
    /// Judged answers that are needed at least.
    pub min_answers: usize,
    /// Judged answers that are looked at at most, the newest ones.
    pub window: usize,
    /// Seconds between two realignments that live answers start.
    pub min_interval_s: u64,
}

pub(super) fn resolve(raw: RawExam) -> Result<ExamConfig, ConfigError> {
    Ok(ExamConfig {
        prompts: at_least(1, "exam.prompts", raw.prompts.unwrap_or(200), "at least 1")?,
        facts: raw.facts.unwrap_or(60),
        interval_s: raw.interval_s.unwrap_or(3600),
        live_prompts: raw.live_prompts.unwrap_or(false),
    })
}

pub(super) fn resolve_drift(raw: RawDrift) -> Result<DriftConfig, ConfigError> {
    let min_answers = raw.min_answers.unwrap_or(50);
    Ok(DriftConfig {
        enabled: raw.enabled.unwrap_or(false),
        min_answers: at_least(1, "drift.min_answers", min_answers, "at least 1")?,
        window: at_least(
            min_answers,
            "drift.window",
            raw.window.unwrap_or(200.max(min_answers)),
            "at least drift.min_answers",
        )?,
        min_interval_s: raw.min_interval_s.unwrap_or(3600),
    })
}
