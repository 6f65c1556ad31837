//! `[exam]`, `[gather]` and `[drift]`: what is asked of generations, what is gathered, and what live
//! answers start.

use super::{Config, ConfigError, RawDrift, RawExam, RawGather, at_least};
use realign_align::{exam, gather};

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

/// Pairs that the server makes itself where a rule is missed and has few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherConfig {
    /// Whether it does.
    pub enabled: bool,
    /// Answers drawn for each prompt.
    pub samples_per_prompt: usize,
    /// Most pairs.
    pub max_pairs: usize,
    /// Pairs are gathered for rules with fewer INVERT pairs than this.
    pub min_conflicts: usize,
}

impl Config {
    /// What an exam asks. Where pairs are gathered, it leaves half of a policy's prompts to that.
    pub fn exam_settings(&self) -> exam::Settings {
        exam::Settings {
            prompts: self.exam.prompts,
            governed: self.gate.max_prompts,
            facts: self.exam.facts,
            min_compliance: self.gate.min_compliance,
            spare: self.gather.enabled.then_some(self.gate.min_prompts),
        }
    }

    /// How pairs are gathered. Answers are as long as an exam's, and an exam keeps as many prompts of a
    /// rule as a verdict needs.
    pub fn gather_settings(&self) -> gather::Settings {
        gather::Settings {
            samples_per_prompt: self.gather.samples_per_prompt,
            max_pairs: self.gather.max_pairs,
            min_conflicts: self.gather.min_conflicts,
            max_tokens: self.gate.max_tokens,
            min_asked: self.gate.min_prompts,
        }
    }
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
    /// Minutes between two realignments that live answers start.
    pub cooldown_minutes: u64,
}

pub(super) fn resolve(raw: RawExam) -> Result<ExamConfig, ConfigError> {
    Ok(ExamConfig {
        prompts: at_least(1, "exam.prompts", raw.prompts.unwrap_or(200), "at least 1")?,
        facts: raw.facts.unwrap_or(60),
        interval_s: raw.interval_s.unwrap_or(3600),
        live_prompts: raw.live_prompts.unwrap_or(false),
    })
}

pub(super) fn resolve_gather(raw: RawGather) -> Result<GatherConfig, ConfigError> {
    let one = |key, value| at_least(1, key, value, "at least 1");
    let samples = raw.samples_per_prompt.unwrap_or(4);
    Ok(GatherConfig {
        enabled: raw.enabled.unwrap_or(true),
        samples_per_prompt: one("gather.samples_per_prompt", samples)?,
        max_pairs: one("gather.max_pairs", raw.max_pairs.unwrap_or(128))?,
        min_conflicts: one("gather.min_conflicts", raw.min_conflicts.unwrap_or(64))?,
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
        cooldown_minutes: raw.cooldown_minutes.unwrap_or(60),
    })
}
