//! Triage: which preference pairs conflict with the policy, and how (TRACE, section 3; Algorithm
//! 1).
//!
//! | chosen complies | rejected complies | category |
//! | --- | --- | --- |
//! | no | yes | INVERT: prefer the rejected response over the chosen one |
//! | no | no | PUNISH: suppress both |
//! | yes | any | RETAIN: stay close to the reference |
//!
//! Pure: no clock, disk or network. Verdicts may come from a cache, which does not change results.

mod shard;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use realign_core::thoughts::recorded;
use realign_core::{Category, TriageCounts};
use serde::Serialize;

use crate::oracle::{
    CacheCounts, Exchange, Judgement, Oracle, RuleOracle, Undecided, VerdictCache,
};
use crate::preferences::Pair;

pub use shard::Shard;

/// A pair with its category and the judgements that led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TriagedPair {
    /// Index into the pairs given to [`triage`].
    pub index: usize,
    /// What training does with it.
    pub category: Category,
    /// Judgement of the chosen response.
    pub chosen: Judgement,
    /// Judgement of the rejected response.
    pub rejected: Judgement,
}

impl TriagedPair {
    /// Whether the category depends on an unavailable verdict.
    pub(crate) fn is_open(&self) -> bool {
        is_open(&self.chosen, &self.rejected)
    }
}

/// Whether an undecided rule could change the category. It cannot if the response violates another
/// rule, and the rejected response does not matter if the chosen one complies.
fn is_open(chosen: &Judgement, rejected: &Judgement) -> bool {
    let unknown = |judgement: &Judgement| !judgement.violates() && !judgement.undecided.is_empty();
    unknown(chosen) || (chosen.violates() && unknown(rejected))
}

/// The triaged pairs of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Triage {
    /// One entry per pair, in the pairs' order.
    pub items: Vec<TriagedPair>,
    /// Pairs per category.
    pub counts: TriageCounts,
    /// Share of pairs in conflict with the policy, 0 to 1; 0 if there are no pairs.
    pub gap_ratio: f64,
    /// Pairs whose category depends on an unavailable verdict. They are counted as RETAIN, so a
    /// triage with any of them must not be trained on.
    pub undecided: usize,
}

impl Triage {
    /// Why a verdict is unavailable, for the first pair that lacks one.
    pub fn first_failure(&self) -> Option<&Undecided> {
        let open = self.items.iter().filter(|item| item.is_open());
        open.flat_map(|item| item.chosen.undecided.iter().chain(&item.rejected.undecided))
            .next()
    }

    #[cfg(test)]
    /// Indices of the pairs of one category, ascending.
    pub(crate) fn indices(&self, category: Category) -> impl Iterator<Item = usize> {
        self.items
            .iter()
            .filter(move |item| item.category == category)
            .map(|item| item.index)
    }

    /// The category of every pair, in the pairs' order.
    pub fn categories(&self) -> Vec<Category> {
        self.items.iter().map(|item| item.category).collect()
    }

    fn from_judgements(judgements: impl Iterator<Item = (Judgement, Judgement)>) -> Triage {
        let items: Vec<TriagedPair> = judgements
            .enumerate()
            .map(|(index, (chosen, rejected))| {
                let category = if is_open(&chosen, &rejected) {
                    Category::Retain
                } else {
                    Category::of(chosen.complies(), rejected.complies())
                };
                TriagedPair {
                    index,
                    category,
                    chosen,
                    rejected,
                }
            })
            .collect();
        let counts: TriageCounts = items.iter().map(|item| item.category).collect();
        Triage {
            undecided: items.iter().filter(|item| item.is_open()).count(),
            items,
            counts,
            gap_ratio: counts.gap_ratio(),
        }
    }
}

/// Categorises pairs by an oracle's judgements.
pub fn triage(pairs: &[Pair], oracle: &dyn Oracle) -> Triage {
    triage_in_parts(pairs, oracle, pairs.len(), |_| ())
}

/// Like [`triage`], `part` pairs at a time; `judged` is called with the size of each finished part.
/// With probes or judges, parts of a few hundred pairs are as fast as one.
pub fn triage_in_parts(
    pairs: &[Pair],
    oracle: &dyn Oracle,
    part: usize,
    mut judged: impl FnMut(usize),
) -> Triage {
    let mut judgements = Vec::with_capacity(2 * pairs.len());
    for part in pairs.chunks(part.max(1)) {
        let seen: Vec<[Cow<'_, str>; 2]> = part.iter().map(responses).collect();
        let exchanges: Vec<Exchange<'_>> = exchanges(part, &seen);
        judgements.extend(oracle.judge_many(&exchanges));
        judged(part.len());
    }
    let mut judgements = judgements.into_iter();
    Triage::from_judgements(std::iter::from_fn(|| {
        Some((judgements.next()?, judgements.next()?))
    }))
}

/// Like [`triage`], using rule verdicts from a cache where they exist. The result is the same; the
/// counts tell how many verdicts were computed.
pub fn triage_cached(
    pairs: &[Pair],
    oracle: &RuleOracle,
    cache: &dyn VerdictCache,
) -> (Triage, CacheCounts) {
    let seen: Vec<[Cow<'_, str>; 2]> = pairs.iter().map(responses).collect();
    let exchanges: Vec<Exchange<'_>> = exchanges(pairs, &seen);
    let (judgements, counts) = oracle.judge_cached(&exchanges, cache);
    let mut judgements = judgements.into_iter();
    let pairs_of_judgements = std::iter::from_fn(|| Some((judgements.next()?, judgements.next()?)));
    (Triage::from_judgements(pairs_of_judgements), counts)
}

/// The chosen and the rejected response, in the form in which responses are judged.
fn responses(pair: &Pair) -> [Cow<'_, str>; 2] {
    [recorded(&pair.chosen), recorded(&pair.rejected)]
}

/// Both responses of each pair, as the oracle sees them.
fn exchanges<'a>(pairs: &'a [Pair], responses: &'a [[Cow<'a, str>; 2]]) -> Vec<Exchange<'a>> {
    let of = |(pair, [chosen, rejected]): (&'a Pair, &'a [Cow<'a, str>; 2])| {
        let exchange = |response: &'a Cow<'a, str>, labels: &'a [String]| Exchange {
            prompt: pair.prompt_text(),
            response: response.as_ref(),
            labels,
        };
        [
            exchange(chosen, &pair.chosen_labels),
            exchange(rejected, &pair.rejected_labels),
        ]
    };
    pairs.iter().zip(responses).flat_map(of).collect()
}
