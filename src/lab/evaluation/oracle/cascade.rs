//! Rules and a probe in one cascade: which of them decides is learnt on the other folds.

use std::collections::BTreeMap;

use realign_align::oracle::probe::FittedProbe;
use realign_align::policy::{PolicySet, Score};

use super::{LabelledPairs, UNSURE};

/// The fewest responses of a kind from which rules and probe are compared.
const MIN_RESPONSES: usize = 10;

/// The rules' verdict: the index of the first rule that is violated, `None` if there is none.
pub(super) type RuleVerdict = Option<usize>;

/// The rules' verdict on every response.
pub(super) fn by_rules(data: &LabelledPairs, rules: &PolicySet) -> Vec<RuleVerdict> {
    let all: Vec<_> = rules.policies().iter().flat_map(|p| &p.rules).collect();
    let verdicts = data.responses.iter().map(|row| {
        let exchange = row.exchange();
        all.iter().position(|rule| rule.violated_by(&exchange))
    });
    verdicts.collect()
}

/// Whether the probe is unsure.
pub(super) fn is_unsure(score: Score) -> bool {
    (score.probability - score.threshold).abs() < UNSURE
}

/// The rule verdicts that are trusted more than the probe: either always, or only where the probe
/// is unsure.
#[derive(Debug, Default)]
pub(super) struct Cascade {
    /// Decided without looking at the hidden states.
    always: Vec<RuleVerdict>,
    /// Decided by the rules where the probe is unsure.
    if_unsure: Vec<RuleVerdict>,
}

/// How often rules and probe agreed with the labels.
#[derive(Clone, Copy, Debug, Default)]
struct Correct {
    count: usize,
    rules: usize,
    probe: usize,
}

impl Cascade {
    /// Compares the rules with the probe's left-out verdicts on the responses `kept`, which the
    /// probe was fitted on. Rules that are as accurate as the probe go first: they cost nothing.
    pub(super) fn learn(
        data: &LabelledPairs,
        kept: &[usize],
        rule_verdicts: &[RuleVerdict],
        probe: &FittedProbe,
    ) -> Cascade {
        let mut all: BTreeMap<RuleVerdict, Correct> = BTreeMap::new();
        let mut unsure: BTreeMap<RuleVerdict, Correct> = BTreeMap::new();
        for &i in kept {
            let row = &data.responses[i];
            let Some(score) = probe.left_out(&row.exchange()) else {
                continue;
            };
            let verdict = rule_verdicts[i];
            let add = |correct: &mut Correct| {
                correct.count += 1;
                correct.rules += usize::from(row.violates == verdict.is_some());
                correct.probe += usize::from(row.violates == score.holds());
            };
            add(all.entry(verdict).or_default());
            if is_unsure(score) {
                add(unsure.entry(verdict).or_default());
            }
        }
        Cascade {
            always: trusted(&all, |c| c.rules >= c.probe),
            if_unsure: trusted(&unsure, |c| c.rules > c.probe),
        }
    }

    /// Whether the rules decide without the probe.
    pub(super) fn decides_by_text(&self, verdict: RuleVerdict) -> bool {
        self.always.contains(&verdict)
    }

    /// Whether the response violates.
    pub(super) fn violates(&self, verdict: RuleVerdict, score: Score) -> bool {
        let by_rules = self.decides_by_text(verdict)
            || (is_unsure(score) && self.if_unsure.contains(&verdict));
        if by_rules {
            verdict.is_some()
        } else {
            score.holds()
        }
    }
}

/// The verdicts with enough responses that pass the test.
fn trusted(
    counts: &BTreeMap<RuleVerdict, Correct>,
    test: impl Fn(&Correct) -> bool,
) -> Vec<RuleVerdict> {
    let enough = |correct: &Correct| correct.count >= MIN_RESPONSES && test(correct);
    let found = counts.iter().filter(|(_, correct)| enough(correct));
    found.map(|(verdict, _)| *verdict).collect()
}
