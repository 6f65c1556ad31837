//! What a request changes in the logits before a token is drawn: its grammar, its biases, and its
//! penalties for tokens generated already.

use std::collections::HashMap;

use super::grammar::{GrammarError, GrammarState};
use super::request::SamplingParams;

/// One sequence's changes to its logits.
pub(crate) struct Shaper {
    bias: Vec<(u32, f32)>,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// How often each token was generated; empty unless a penalty is set.
    counts: HashMap<u32, u32>,
    grammar: Option<GrammarState>,
}

impl std::fmt::Debug for Shaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shaper").finish_non_exhaustive()
    }
}

impl Shaper {
    /// A shaper at the beginning of an answer.
    pub(crate) fn new(params: &SamplingParams) -> Self {
        Self {
            bias: params.logit_bias.clone(),
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            counts: HashMap::new(),
            grammar: params.grammar.as_ref().map(GrammarState::new),
        }
    }

    /// Whether every token is drawn from the model's own logits.
    pub(crate) fn changes_nothing(&self) -> bool {
        self.bias.is_empty()
            && self.grammar.is_none()
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
    }

    /// The logits to draw from: the model's own if nothing changes them, else a changed copy in
    /// `buffer`.
    ///
    /// # Errors
    /// If the grammar cannot be followed further.
    pub(crate) fn shape<'a>(
        &mut self,
        logits: &'a [f32],
        buffer: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], GrammarError> {
        if self.bias.is_empty() && self.counts.is_empty() && self.grammar.is_none() {
            return Ok(logits);
        }
        match &mut self.grammar {
            Some(grammar) => grammar.mask(logits, buffer)?,
            None => {
                buffer.clear();
                buffer.extend_from_slice(logits);
            }
        }
        for (id, bias) in &self.bias {
            if let Some(logit) = buffer.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for (id, count) in &self.counts {
            if let Some(logit) = buffer.get_mut(*id as usize) {
                *logit -= self.presence_penalty + self.frequency_penalty * *count as f32;
            }
        }
        Ok(buffer)
    }

    /// Records the drawn token. Returns whether it completes the grammar.
    ///
    /// # Errors
    /// As [`Shaper::shape`].
    pub(crate) fn accept(&mut self, id: u32) -> Result<bool, GrammarError> {
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            *self.counts.entry(id).or_default() += 1;
        }
        match &mut self.grammar {
            Some(grammar) => grammar.accept(id),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(shaper: &mut Shaper, logits: &[f32]) -> Vec<f32> {
        let mut buffer = Vec::new();
        shaper.shape(logits, &mut buffer).unwrap().to_vec()
    }

    #[test]
    fn nothing_asked_changes_nothing() {
        let mut shaper = Shaper::new(&SamplingParams::default());
        shaper.accept(1).unwrap();
        let (logits, mut buffer) = ([1.0, 2.0], Vec::new());
        let same = shaper.shape(&logits, &mut buffer).unwrap();
        assert_eq!(same.as_ptr(), logits.as_ptr(), "no copy was made");
    }

    #[test]
    fn biases_and_penalties_add_up() {
        let mut shaper = Shaper::new(&SamplingParams {
            logit_bias: vec![(0, -100.0), (2, 1.5), (99, 5.0)],
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingParams::default()
        });
        let logits = [1.0, 2.0, 3.0];
        assert_eq!(shaped(&mut shaper, &logits), [-99.0, 2.0, 4.5]);
        for id in [1, 1, 2] {
            assert!(!shaper.accept(id).unwrap());
        }
        assert_eq!(shaped(&mut shaper, &logits), [-99.0, 1.0, 3.75]);
    }
}
