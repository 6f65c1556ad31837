//! Rules and a probe in one cascade: where each decides is learnt on the other folds.

use std::collections::BTreeMap;

use super::Data;
use super::methods::UNSURE;
use realign_align::oracle::probe::FittedProbe;
use realign_align::policy::{PolicySet, Score};

/// Least responses of a kind to tell by.
const LEAST: usize = 10;

/// What the rules say: the place of the first rule that is violated, `None` if there is none.
pub(super) type Said = Option<usize>;

/// What the rules say of every response.
pub(super) fn by_rules(data: &Data, rules: &PolicySet) -> Vec<Said> {
    let all: Vec<_> = rules.policies().iter().flat_map(|p| &p.rules).collect();
    let says = data.responses.iter().map(|row| {
        let exchange = row.exchange();
        all.iter().position(|rule| rule.violated_by(&exchange))
    });
    says.collect()
}

/// Whether the probe is unsure.
pub(super) fn is_unsure(score: Score) -> bool {
    (score.probability - score.threshold).abs() < UNSURE
}

/// Where the rules stand before the probe: each rule's violations, and silence of all of them,
/// either wherever it occurs or only where the probe is unsure.
#[derive(Debug, Default)]
pub(super) struct Cascade {
    /// Without a look at the hidden states.
    always: Vec<Said>,
    /// Where the probe is unsure.
    unsure: Vec<Said>,
}

/// How often rules and probe were right.
#[derive(Clone, Copy, Debug, Default)]
struct Right {
    count: usize,
    rules: usize,
    probe: usize,
}

impl Right {
    fn trusts_rules(self) -> bool {
        self.count >= LEAST && self.rules > self.probe
    }
}

impl Cascade {
    /// Compares the rules with the probe's left-out verdicts on the responses it was fitted on.
    /// Rules that are as right as the probe stand before it, since they cost nothing.
    pub(super) fn learn(
        data: &Data,
        kept: &[usize],
        said: &[Said],
        probe: &FittedProbe,
    ) -> Cascade {
        let mut whole: BTreeMap<Said, Right> = BTreeMap::new();
        let mut band: BTreeMap<Said, Right> = BTreeMap::new();
        for &i in kept {
            let row = &data.responses[i];
            let Some(score) = probe.left_out(&row.exchange()) else {
                continue;
            };
            let add = |right: &mut Right| {
                right.count += 1;
                right.rules += usize::from(row.violates == said[i].is_some());
                right.probe += usize::from(row.violates == score.holds());
            };
            add(whole.entry(said[i]).or_default());
            if is_unsure(score) {
                add(band.entry(said[i]).or_default());
            }
        }
        let of = |counts: &BTreeMap<Said, Right>, test: &dyn Fn(Right) -> bool| {
            let found = counts.iter().filter(|(_, right)| test(**right));
            found.map(|(said, _)| *said).collect()
        };
        Cascade {
            always: of(&whole, &|r| r.count >= LEAST && r.rules >= r.probe),
            unsure: of(&band, &Right::trusts_rules),
        }
    }

    /// Whether the rules decide without the probe.
    pub(super) fn decides_by_text(&self, said: Said) -> bool {
        self.always.contains(&said)
    }

    /// The verdict.
    pub(super) fn violates(&self, said: Said, score: Score) -> bool {
        let by_rules =
            self.decides_by_text(said) || (is_unsure(score) && self.unsure.contains(&said));
        match by_rules {
            true => said.is_some(),
            false => score.holds(),
        }
    }
}
