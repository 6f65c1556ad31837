//! Live answers: how many comply, and what clients ask.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::DriftConfig;
use realign_align::exam::Share;

/// Prompts of clients that are kept.
const PROMPTS: usize = 200;
/// Longest prompt that is kept, in bytes.
const LONGEST_PROMPT: usize = 2000;

/// What live answers say about what serves.
#[derive(Debug)]
pub(crate) struct Live {
    keep_prompts: bool,
    drift: DriftConfig,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    prompts: VecDeque<String>,
    /// The generation that the answers are of.
    generation: String,
    /// Whether each of the last answers complied.
    answers: VecDeque<bool>,
    /// When a drift was last reported.
    reported: Option<Instant>,
}

impl Live {
    pub(super) fn new(keep_prompts: bool, drift: DriftConfig) -> Self {
        Self {
            keep_prompts,
            drift,
            inner: Mutex::default(),
        }
    }

    /// Counts a judged answer of a generation. Returns what share complies if that is below `target`
    /// with confidence and a realignment may start because of it.
    pub(crate) fn judged(
        &self,
        (generation, prompt): (&str, &str),
        complies: bool,
        target: f64,
    ) -> Option<Share> {
        let mut inner = self.inner();
        if self.keep_prompts && !prompt.is_empty() && prompt.len() <= LONGEST_PROMPT {
            if inner.prompts.len() >= PROMPTS {
                inner.prompts.pop_front();
            }
            inner.prompts.push_back(prompt.to_owned());
        }
        if inner.generation != generation {
            inner.generation = generation.to_owned();
            inner.answers.clear();
        }
        if inner.answers.len() >= self.drift.window {
            inner.answers.pop_front();
        }
        inner.answers.push_back(complies);
        let share = Share::among(inner.answers.iter().copied());
        let waited = inner.reported.is_none_or(|at| {
            at.elapsed() >= Duration::from_secs(self.drift.cooldown_minutes.saturating_mul(60))
        });
        let drifts = self.drift.enabled
            && share.of >= self.drift.min_answers
            && share.high < target
            && waited;
        if drifts {
            inner.reported = Some(Instant::now());
            inner.answers.clear();
        }
        drifts.then_some(share)
    }

    /// Recent prompts, each once, the oldest first.
    pub(super) fn prompts(&self) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        let inner = self.inner();
        let prompts = inner
            .prompts
            .iter()
            .filter(|prompt| seen.insert(prompt.as_str()));
        prompts.cloned().collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(enabled: bool) -> Live {
        Live::new(
            true,
            DriftConfig {
                enabled,
                min_answers: 20,
                window: 50,
                cooldown_minutes: 60,
            },
        )
    }

    #[test]
    fn a_drift_needs_confidence_and_is_reported_once() {
        let drifting = live(true);
        let mut found = Vec::new();
        for n in 0..60 {
            found.extend(drifting.judged(("g1", "hi"), n % 2 == 0, 0.9).map(|_| n));
        }
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0] >= 19, "{found:?}");
        for n in 0..60 {
            let share = live(false).judged(("g1", "hi"), n % 2 == 0, 0.9);
            assert_eq!(share, None, "off by default");
        }
        let steady = live(true);
        assert!((0..200).all(|n| steady.judged(("g1", "hi"), n % 20 != 0, 0.9).is_none()));
    }

    #[test]
    fn another_generation_starts_anew_and_prompts_are_kept_once() {
        let live = live(true);
        for n in 0..100 {
            let generation = if n % 2 == 0 { "g1" } else { "g2" };
            assert_eq!(live.judged((generation, "same"), false, 0.9), None);
        }
        assert_eq!(live.prompts(), ["same"]);
    }
}
