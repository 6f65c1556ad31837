//! What a request changes in the logits before a token is drawn: its grammar, its biases, its
//! forbidden words, its minimum length, and its penalties for tokens that are there already.

use std::collections::{HashMap, HashSet};

use super::bad_words::BadWordsState;
use super::grammar::{GrammarError, GrammarState};
use super::request::SamplingParams;

/// One sequence's changes to its logits.
pub(crate) struct Shaper {
    bias: Vec<(u32, f32)>,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// How often each token was generated; empty unless a penalty is set.
    counts: HashMap<u32, u32>,
    repetition: Option<Repetition>,
    bad_words: Option<BadWordsState>,
    /// Tokens that must be drawn before one of `ends` may be.
    until_end: usize,
    ends: Vec<u32>,
    grammar: Option<GrammarState>,
}

/// The penalty for tokens of the prompt and the answer.
struct Repetition {
    penalty: f32,
    seen: HashSet<u32>,
}

impl std::fmt::Debug for Shaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shaper").finish_non_exhaustive()
    }
}

impl Shaper {
    /// A shaper at the beginning of an answer to `prompt`. The model's turns end with `ends`.
    pub(crate) fn new(params: &SamplingParams, prompt: &[u32], ends: &[u32]) -> Self {
        let repetition = (params.repetition_penalty != 1.0).then(|| Repetition {
            penalty: params.repetition_penalty,
            seen: prompt.iter().copied().collect(),
        });
        let mut last = params.stop_token_ids.clone();
        if !params.ignore_eos {
            last.extend_from_slice(ends);
        }
        Self {
            bias: params.logit_bias.clone(),
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            counts: HashMap::new(),
            repetition,
            bad_words: params.bad_words.as_ref().map(BadWordsState::new),
            until_end: params.min_tokens,
            ends: last,
            grammar: params.grammar.as_ref().map(GrammarState::new),
        }
    }

    /// Whether every token is drawn from the model's own logits.
    pub(crate) fn changes_nothing(&self) -> bool {
        self.presence_penalty == 0.0 && self.frequency_penalty == 0.0 && self.is_idle()
    }

    /// Whether the next token is drawn from the model's own logits.
    fn is_idle(&self) -> bool {
        self.bias.is_empty()
            && self.counts.is_empty()
            && self.repetition.is_none()
            && self.bad_words.is_none()
            && self.until_end == 0
            && self.grammar.is_none()
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
        if self.is_idle() {
            return Ok(logits);
        }
        match &mut self.grammar {
            Some(grammar) => grammar.mask(logits, buffer)?,
            None => {
                buffer.clear();
                buffer.extend_from_slice(logits);
            }
        }
        if let Some(repetition) = &self.repetition {
            repetition.apply(buffer);
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
        if let Some(bad_words) = &self.bad_words {
            bad_words.mask(buffer);
            if !possible(buffer) {
                let why = "the grammar allows only a forbidden word";
                return Err(GrammarError::Refused(why.into()));
            }
        }
        if self.until_end > 0 {
            self.postpone_end(buffer);
        }
        Ok(buffer)
    }

    /// Makes the tokens impossible that end the answer, unless a grammar allows no others.
    fn postpone_end(&self, buffer: &mut [f32]) {
        let mut ends: Vec<(usize, f32)> = Vec::new();
        for id in &self.ends {
            let id = *id as usize;
            if let Some(logit) = buffer.get_mut(id) {
                ends.push((id, *logit));
                *logit = f32::NEG_INFINITY;
            }
        }
        if self.grammar.is_some() && !possible(buffer) {
            // An id that is listed twice was saved first with its own value.
            ends.iter()
                .rev()
                .for_each(|(id, logit)| buffer[*id] = *logit);
        }
    }

    /// The text that the grammar forces next; empty where something besides the grammar counts.
    pub(crate) fn forced(&mut self) -> String {
        let only_grammar = self.bias.is_empty()
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
            && self.repetition.is_none()
            && self.bad_words.is_none()
            && self.until_end == 0;
        match &mut self.grammar {
            Some(grammar) if only_grammar => grammar.forced(),
            _ => String::new(),
        }
    }

    /// Records the drawn token. Returns whether it completes the grammar.
    ///
    /// # Errors
    /// As [`Shaper::shape`].
    pub(crate) fn accept(&mut self, id: u32) -> Result<bool, GrammarError> {
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            *self.counts.entry(id).or_default() += 1;
        }
        if let Some(repetition) = &mut self.repetition {
            repetition.seen.insert(id);
        }
        if let Some(bad_words) = &mut self.bad_words {
            bad_words.accept(id);
        }
        self.until_end = self.until_end.saturating_sub(1);
        match &mut self.grammar {
            Some(grammar) => grammar.accept(id),
            None => Ok(false),
        }
    }
}

impl Repetition {
    fn apply(&self, logits: &mut [f32]) {
        for id in &self.seen {
            if let Some(logit) = logits.get_mut(*id as usize) {
                let factor = if *logit > 0.0 {
                    1.0 / self.penalty
                } else {
                    self.penalty
                };
                *logit *= factor;
            }
        }
    }
}

/// Whether any token can be drawn.
fn possible(logits: &[f32]) -> bool {
    logits.iter().any(|logit| *logit > f32::NEG_INFINITY)
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
        let mut shaper = Shaper::new(&SamplingParams::default(), &[], &[]);
        shaper.accept(1).unwrap();
        let (logits, mut buffer) = ([1.0, 2.0], Vec::new());
        let same = shaper.shape(&logits, &mut buffer).unwrap();
        assert_eq!(same.as_ptr(), logits.as_ptr(), "no copy was made");
    }

    #[test]
    fn biases_and_penalties_add_up() {
        let params = SamplingParams {
            logit_bias: vec![(0, -100.0), (2, 1.5), (99, 5.0)],
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingParams::default()
        };
        let mut shaper = Shaper::new(&params, &[], &[]);
        let logits = [1.0, 2.0, 3.0];
        assert_eq!(shaped(&mut shaper, &logits), [-99.0, 2.0, 4.5]);
        for id in [1, 1, 2] {
            assert!(!shaper.accept(id).unwrap());
        }
        assert_eq!(shaped(&mut shaper, &logits), [-99.0, 1.0, 3.75]);
    }

    #[test]
    fn repetitions_of_prompt_and_answer_are_penalised_once() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            ..SamplingParams::default()
        };
        let mut shaper = Shaper::new(&params, &[0, 1, 1, 99], &[]);
        assert!(!shaper.changes_nothing());
        let logits = [4.0, -4.0, 2.0];
        assert_eq!(shaped(&mut shaper, &logits), [2.0, -8.0, 2.0]);
        shaper.accept(2).unwrap();
        shaper.accept(2).unwrap();
        assert_eq!(shaped(&mut shaper, &logits), [2.0, -8.0, 1.0]);
    }

    #[test]
    fn the_end_waits_for_the_minimum() {
        let params = |ignore_eos| SamplingParams {
            min_tokens: 1,
            stop_token_ids: vec![2],
            ignore_eos,
            ..SamplingParams::default()
        };
        let none = f32::NEG_INFINITY;
        for (ignore_eos, expect) in [(false, [1.0, none, none]), (true, [1.0, 2.0, none])] {
            let mut shaper = Shaper::new(&params(ignore_eos), &[], &[1]);
            assert_eq!(shaped(&mut shaper, &[1.0, 2.0, 3.0]), expect);
            shaper.accept(0).unwrap();
            assert!(shaper.changes_nothing(), "the device may draw again");
            assert_eq!(shaped(&mut shaper, &[1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]);
        }
    }
}
