//! The measurements of one variant with one seed, in the form stored on disk.

use serde::{Deserialize, Serialize};

use realign_core::Category;

/// A count out of a total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// How many meet the condition.
    pub count: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    /// The share of `true` among the answers.
    pub fn of(answers: impl IntoIterator<Item = bool>) -> Share {
        let mut share = Share::default();
        for yes in answers {
            share.of += 1;
            share.count += usize::from(yes);
        }
        share
    }

    /// The share, 0 to 1; `None` of an empty total.
    pub(crate) fn ratio(self) -> Option<f64> {
        (self.of > 0).then(|| self.count as f64 / self.of as f64)
    }
}

/// A fresh answer to a held-out prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The last user message.
    pub prompt: String,
    /// The model's greedy answer, at most `--answer-tokens` long.
    pub answer: String,
    /// Whether it complies with the policies.
    pub complies: bool,
    /// Categories of the held-out pairs with this prompt.
    pub categories: Vec<Category>,
}

/// The figures of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Compliant answers to all held-out prompts: target policy agreement.
    pub agreement: Share,
    /// Compliant answers to the prompts of INVERT pairs.
    pub invert: Share,
    /// Compliant answers to the prompts of PUNISH pairs.
    pub punish: Share,
    /// Compliant answers to the prompts of RETAIN pairs.
    pub retain: Share,
    /// General questions that were refused or referred to someone else.
    pub over_refusal: Share,
    /// Mean negative log-likelihood per token of the preferred responses of held-out RETAIN pairs.
    pub retain_nll: Option<f64>,
    /// log p(preferred response) − log p(other one) per token, of held-out INVERT pairs.
    #[serde(default)]
    pub invert_margins: Vec<f64>,
    /// The same of held-out RETAIN pairs.
    #[serde(default)]
    pub retain_margins: Vec<f64>,
    /// exp of the mean negative log-likelihood of the text's tokens.
    pub perplexity: Option<f64>,
    /// log p(right choice) − log p(best wrong one) per token, in the items' order.
    pub margins: Vec<f64>,
    /// All answers that agreement is counted from.
    pub(crate) answers: Vec<Answer>,
}

impl Measured {
    /// Fills in agreement, in all and by category, from the answers.
    pub fn count(&mut self, answers: Vec<Answer>) {
        let of = |category: Option<Category>| {
            let concerned = answers
                .iter()
                .filter(|a| category.is_none_or(|c| a.categories.contains(&c)));
            Share::of(concerned.map(|a| a.complies))
        };
        self.agreement = of(None);
        self.invert = of(Some(Category::Invert));
        self.punish = of(Some(Category::Punish));
        self.retain = of(Some(Category::Retain));
        self.answers = answers;
    }

    /// Items whose right choice is the most probable.
    pub(crate) fn accuracy(&self) -> Share {
        Share::of(self.margins.iter().map(|margin| *margin > 0.0))
    }
}

/// Seconds of each stage. A result that variants share is computed once; its time is counted for
/// each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Reference log-probabilities.
    pub reference: f64,
    /// Impact scores.
    pub impact: f64,
    /// Seconds of optimisation.
    pub train: f64,
    /// Measuring answers, perplexity and multiple choice.
    pub measure: f64,
    /// Wall-clock time of this cell, without results reused from earlier ones.
    pub spent: f64,
}

/// Counts, speed and losses of a training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingFigures {
    /// Pairs trained on, without those that are too long.
    pub pairs: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Rows per second through the layers.
    pub tokens_per_second: f64,
    /// Share of impact scores below zero, where there are scores.
    pub clamped: Option<f64>,
    /// Loss of the first and of the last step.
    pub losses: [f64; 2],
}

/// One variant with one seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the variant.
    pub variant: String,
    /// Seed of initialisation, order, gold batch and noise.
    pub seed: u64,
    /// Hash of everything that the figures depend on.
    pub fingerprint: String,
    /// The measurements; `None` if the run failed.
    pub measured: Option<Measured>,
    /// The training run; `None` for the base.
    pub training: Option<TrainingFigures>,
    /// Seconds spent in each stage.
    pub seconds: Seconds,
    /// Largest resident size while it ran, in bytes.
    pub peak_bytes: Option<u64>,
    /// Why the run failed.
    pub failure: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once_in_all_and_in_each_of_its_categories() {
        let answer = |complies, categories: &[Category]| Answer {
            prompt: "p".into(),
            answer: "a".into(),
            complies,
            categories: categories.to_vec(),
        };
        let mut measured = Measured::default();
        measured.count(vec![
            answer(true, &[Category::Invert]),
            answer(false, &[Category::Invert, Category::Retain]),
            answer(true, &[Category::Retain]),
        ]);
        assert_eq!(measured.agreement, Share { count: 2, of: 3 });
        assert_eq!(measured.invert.ratio(), Some(0.5));
        assert_eq!(measured.retain.ratio(), Some(0.5));
        assert_eq!(measured.punish.ratio(), None);
    }
}
