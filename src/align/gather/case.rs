//! A prompt with its answers.

use std::collections::BTreeSet;

use super::AnswerSource;
use super::answers::{normalised, sound};
use super::prompts::Prompt;

/// A prompt with its answers, judged.
pub(super) struct Case {
    pub(super) prompt: Prompt,
    /// Indices of the needed rules that its violating answers violate.
    pub(super) violated: BTreeSet<usize>,
    /// Distinct answers that violate one of those.
    pub(super) violating: Vec<String>,
    /// Distinct complete answers that violate nothing, best first once they are ranked.
    pub(super) complying: Vec<(String, AnswerSource)>,
}

impl Case {
    pub(super) fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            violated: BTreeSet::new(),
            violating: Vec::new(),
            complying: Vec::new(),
        }
    }

    /// Whether all usable answers violate.
    pub(super) fn is_open(&self) -> bool {
        !self.violating.is_empty() && self.complying.is_empty()
    }

    pub(super) fn violate(&mut self, text: String) {
        let key = normalised(&text);
        if self.violating.iter().all(|known| normalised(known) != key) {
            self.violating.push(text);
        }
    }

    /// Adds a complying answer if it can be trained on; says whether it can.
    pub(super) fn comply(&mut self, text: String, by: AnswerSource) -> bool {
        if !sound(&text, &self.prompt.text) {
            return false;
        }
        let key = normalised(&text);
        if self
            .complying
            .iter()
            .all(|(known, _)| normalised(known) != key)
        {
            self.complying.push((text, by));
        }
        true
    }
}
