//! Pairs whose category a change of policies alters, and the rules responsible. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use realign_align::oracle::Judgement;
use realign_align::preferences::Pair;
use realign_align::triage::{Triage, TriagedPair};
use realign_core::{Category, TriageCounts};

/// How a set's triage differs from that of the active set.
#[derive(Clone, Debug, Serialize)]
pub struct Flips {
    /// Pairs per category under the active set.
    pub(crate) before: TriageCounts,
    /// Pairs that change category.
    pub(crate) flipped: usize,
    /// Pairs by old and new category, e.g. `retain → invert`.
    pub(crate) moves: BTreeMap<String, usize>,
    /// Flipped pairs by rule whose verdict changed, as `policy:rule`.
    pub(crate) rules: BTreeMap<String, usize>,
    /// The first flipped pairs, as many as were asked for.
    pub(crate) examples: Vec<Flip>,
}

/// A pair that changes category.
#[derive(Clone, Debug, Serialize)]
pub struct Flip {
    /// `file:line`.
    pub(crate) source: String,
    /// Category under the active set.
    pub(crate) from: Category,
    /// Category under the new one.
    pub(crate) to: Category,
    /// Rules whose verdict changed.
    pub(crate) rules: Vec<String>,
    /// The last user message.
    pub(crate) prompt: String,
    /// The response that the data prefers.
    pub(crate) chosen: String,
    /// The response that the data rejects.
    pub(crate) rejected: String,
}

impl Flips {
    /// Compares two triages of the same pairs, with at most `examples` flipped ones.
    pub(crate) fn new(pairs: &[Pair], before: &Triage, after: &Triage, examples: usize) -> Flips {
        let mut out = Flips {
            before: before.counts,
            flipped: 0,
            moves: BTreeMap::new(),
            rules: BTreeMap::new(),
            examples: Vec::new(),
        };
        for ((pair, old), new) in pairs.iter().zip(&before.items).zip(&after.items) {
            if old.category == new.category {
                continue;
            }
            let rules = changed(old, new);
            let (from, to) = (old.category, new.category);
            out.flipped += 1;
            *out.moves
                .entry(format!("{} → {}", from.as_str(), to.as_str()))
                .or_default() += 1;
            for rule in &rules {
                *out.rules.entry(rule.clone()).or_default() += 1;
            }
            if out.examples.len() < examples {
                out.examples.push(Flip {
                    source: pair.source.to_string(),
                    from,
                    to,
                    rules: rules.into_iter().collect(),
                    prompt: pair.prompt_text().to_owned(),
                    chosen: pair.chosen.clone(),
                    rejected: pair.rejected.clone(),
                });
            }
        }
        out
    }

    /// The difference as text for a terminal.
    pub(crate) fn text(&self) -> String {
        let b = self.before;
        let mut text = format!(
            "against the active set ({} invert, {} punish, {} retain): {} pairs flip\n",
            b.invert, b.punish, b.retain, self.flipped
        );
        for (name, count) in self.moves.iter().chain(&self.rules) {
            let _infallible = writeln!(text, "  {count:6}  {name}");
        }
        for flip in &self.examples {
            let _infallible = writeln!(
                text,
                "\n{} → {}  {}  by {}\n  prompt    {}\n  chosen    {}\n  rejected  {}",
                flip.from.as_str(),
                flip.to.as_str(),
                flip.source,
                flip.rules.join(", "),
                super::one_line(&flip.prompt),
                super::one_line(&flip.chosen),
                super::one_line(&flip.rejected)
            );
        }
        text
    }
}

/// Rules whose verdict on one of the two responses differs between the triages.
fn changed(old: &TriagedPair, new: &TriagedPair) -> BTreeSet<String> {
    let names = |judgement: &Judgement| -> BTreeSet<String> {
        let violations = judgement.violations.iter();
        violations
            .map(|v| format!("{}:{}", v.policy, v.rule))
            .collect()
    };
    [(&old.chosen, &new.chosen), (&old.rejected, &new.rejected)]
        .into_iter()
        .flat_map(|(a, b)| {
            names(a)
                .symmetric_difference(&names(b))
                .cloned()
                .collect::<Vec<_>>()
        })
        .collect()
}
