//! Which violating answers are paired with which complying ones. Pure.

use std::collections::HashMap;

use super::answers::normalised;
use super::{AnswerSource, Case};

/// Most pairs of one prompt.
const PER_PROMPT: usize = 2;
/// Of the pairs, at most one in this many prefers the same answer: a few canned answers would replace
/// all others.
const DIVERSITY: usize = 12;

/// A pair of answers to one case.
#[derive(Debug)]
pub(super) struct Pick<'a> {
    /// Index of the case.
    pub(super) case: usize,
    /// The answer that violates.
    pub(super) violating: &'a str,
    /// The answer that complies; for PUNISH, another that violates.
    pub(super) against: &'a str,
    /// Where that answer comes from.
    pub(super) by: AnswerSource,
}

/// The pairs.
#[derive(Debug, Default)]
pub(super) struct Chosen<'a> {
    pub(super) picks: Vec<Pick<'a>>,
    /// Cases of which every complying answer was preferred too often elsewhere.
    pub(super) repeated: usize,
}

/// At most `most` pairs, spread evenly over prompts and over `rules` rules. There are no more PUNISH
/// pairs than INVERT ones: suppression alone drifts towards refusal.
pub(super) fn choose(cases: &[Case], rules: usize, most: usize) -> Chosen<'_> {
    let pairable = cases
        .iter()
        .filter(|c| !c.violating.is_empty() && !c.complying.is_empty());
    let mut limit = allowed(pairable.count().min(most));
    let mut chosen = loop {
        let chosen = invert(cases, most.div_ceil(rules.max(1)), most, limit);
        let fits = allowed(chosen.picks.len());
        if fits >= limit {
            break chosen;
        }
        limit = fits;
    };
    let room = chosen.picks.len().min(most - chosen.picks.len());
    let punish = cases.iter().enumerate();
    let punish = punish.filter(|(_, c)| c.complying.is_empty() && c.violating.len() > 1);
    let punish = punish.map(|(case, answers)| Pick {
        case,
        violating: &answers.violating[0],
        against: &answers.violating[1],
        by: AnswerSource::None,
    });
    chosen.picks.extend(punish.take(room));
    chosen
}

/// How many of `pairs` pairs may prefer the same answer.
fn allowed(pairs: usize) -> usize {
    (pairs / DIVERSITY).max(1)
}

fn invert(cases: &[Case], per_rule: usize, most: usize, limit: usize) -> Chosen<'_> {
    let mut chosen = Chosen::default();
    let mut preferred: HashMap<String, usize> = HashMap::new();
    let mut of_rule: HashMap<usize, usize> = HashMap::new();
    for round in 0..PER_PROMPT {
        for (index, case) in cases.iter().enumerate() {
            let is_full = |rule: &usize| of_rule.get(rule).is_some_and(|&n| n >= per_rule);
            if chosen.picks.len() == most || case.violated.iter().all(is_full) {
                continue;
            }
            let Some(violating) = case.violating.get(round) else {
                continue;
            };
            // The first round takes the best answer, the second the next one.
            let taken: Vec<String> = chosen
                .picks
                .iter()
                .filter(|pick: &&Pick<'_>| pick.case == index)
                .map(|pick| normalised(pick.against))
                .collect();
            let free = case.complying.iter().find(|(text, _)| {
                let key = normalised(text);
                !taken.contains(&key) && preferred.get(&key).is_none_or(|&n| n < limit)
            });
            let Some((against, by)) = free else {
                chosen.repeated += usize::from(round == 0 && !case.complying.is_empty());
                continue;
            };
            *preferred.entry(normalised(against)).or_default() += 1;
            case.violated
                .iter()
                .for_each(|rule| *of_rule.entry(*rule).or_default() += 1);
            chosen.picks.push(Pick {
                case: index,
                violating,
                against,
                by: *by,
            });
        }
    }
    chosen
}
