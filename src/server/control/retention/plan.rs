//! Which adapters go and which stay, and why. No disk, no clock.

use std::collections::{BTreeMap, HashMap};

use crate::api::answers::retention::Reason;

/// An adapter in the store.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: String,
    pub(super) bytes: u64,
    /// When it was published, in Unix seconds; `None` if its manifest cannot be read.
    pub(super) created_at: Option<u64>,
    /// Whether an operator imported it: it cannot be trained again.
    pub(super) imported: bool,
}

/// What else is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// In Unix seconds.
    pub(super) now: u64,
    /// Adapters that may not go, and why.
    pub(super) needed: BTreeMap<String, Reason>,
    /// Adapters that realignments led to and when, in the order in which that last happened.
    pub(super) uses: Vec<(String, u64)>,
}

/// Limits; `None` is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    pub(super) generations: Option<usize>,
    /// In seconds.
    pub(super) max_age: Option<u64>,
    pub(super) max_bytes: Option<u64>,
    /// For imported adapters, in seconds.
    pub(super) max_imported_age: Option<u64>,
}

/// What happens to an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) id: String,
    pub(super) bytes: u64,
    /// When it was last published or led to, in Unix seconds.
    pub(super) used_at: Option<u64>,
    pub(super) reason: Reason,
}

/// Decides about every adapter, most recently used first.
///
/// The order of uses counts, not their clock: with a clock that was set back, a later use still
/// counts as no earlier than the ones before it.
pub(super) fn plan(candidates: Vec<Candidate>, facts: &Facts, limits: Limits) -> Vec<Decision> {
    let mut last = HashMap::new();
    let mut latest = 0;
    for (position, (id, at)) in facts.uses.iter().enumerate() {
        latest = latest.max(*at);
        last.insert(id.as_str(), (latest, position + 1));
    }
    let used = |candidate: &Candidate| {
        let (at, position) = last.get(candidate.id.as_str()).copied().unwrap_or_default();
        (at.max(candidate.created_at.unwrap_or(0)), position)
    };
    let mut ordered: Vec<((u64, usize), Candidate)> =
        candidates.into_iter().map(|c| (used(&c), c)).collect();
    ordered.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.id.cmp(&y.id)));
    let mut room = Room::new(&ordered, facts, limits);
    ordered
        .into_iter()
        .map(|((at, _), candidate)| Decision {
            reason: room.decide(&candidate, facts, at),
            used_at: Some(at).filter(|at| *at > 0),
            id: candidate.id,
            bytes: candidate.bytes,
        })
        .collect()
}

/// Why an adapter stays whatever the limits say.
fn exempt(candidate: &Candidate, facts: &Facts) -> Option<Reason> {
    let needed = facts.needed.get(&candidate.id).copied();
    needed.or_else(|| match candidate.created_at {
        None => Some(Reason::Unreadable),
        Some(_) => candidate.imported.then_some(Reason::Imported),
    })
}

/// What is left of the limits.
struct Room {
    limits: Limits,
    /// Adapters that were decided about, without imported ones.
    seen: usize,
    /// Bytes of what stays.
    bytes: u64,
    /// Whether the limit of bytes was reached: everything older goes.
    full: bool,
}

impl Room {
    fn new(all: &[((u64, usize), Candidate)], facts: &Facts, limits: Limits) -> Self {
        let exempt = all.iter().filter(|(_, c)| exempt(c, facts).is_some());
        Self {
            limits,
            seen: 0,
            bytes: exempt.map(|(_, c)| c.bytes).sum(),
            full: false,
        }
    }

    fn decide(&mut self, candidate: &Candidate, facts: &Facts, at: u64) -> Reason {
        let age = facts.now.saturating_sub(at);
        let rank = self.seen;
        self.seen += usize::from(!candidate.imported);
        match exempt(candidate, facts) {
            Some(Reason::Imported) if self.limits.max_imported_age.is_some_and(|m| age > m) => {
                return Reason::BeyondAge;
            }
            Some(reason) => return reason,
            None => {}
        }
        if self.limits.generations.is_some_and(|most| rank >= most) {
            return Reason::BeyondCount;
        }
        if self.limits.max_age.is_some_and(|most| age > most) {
            return Reason::BeyondAge;
        }
        let bytes = self.bytes.saturating_add(candidate.bytes);
        self.full |= self.limits.max_bytes.is_some_and(|most| bytes > most);
        if self.full {
            return Reason::BeyondBytes;
        }
        self.bytes = bytes;
        Reason::WithinLimits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An adapter of 10 bytes, published at `at`.
    fn adapter(id: &str, at: u64) -> Candidate {
        Candidate {
            id: id.into(),
            bytes: 10,
            created_at: Some(at),
            imported: false,
        }
    }

    fn facts(needed: &[(&str, Reason)], uses: &[(&str, u64)]) -> Facts {
        let owned = |(id, at): &(&str, u64)| (id.to_string(), *at);
        Facts {
            now: 1000,
            needed: needed.iter().map(|(id, r)| (id.to_string(), *r)).collect(),
            uses: uses.iter().map(owned).collect(),
        }
    }

    fn check(all: Vec<Candidate>, facts: &Facts, limits: Limits, expect: &[(&str, Reason)]) {
        let plan = plan(all, facts, limits);
        let got: Vec<(&str, Reason)> = plan.iter().map(|d| (d.id.as_str(), d.reason)).collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn without_limits_everything_stays() {
        let all = vec![adapter("a", 1), adapter("b", 2)];
        let stays = Reason::WithinLimits;
        let expect = [("b", stays), ("a", stays)];
        check(all, &facts(&[], &[]), Limits::default(), &expect);
    }

    #[test]
    fn the_most_recently_used_stay_and_what_is_needed() {
        let all = ["a", "b", "c", "d", "e"].into_iter().zip(1..);
        let all: Vec<Candidate> = all.map(|(id, at)| adapter(id, at)).collect();
        let needed = [("c", Reason::Serves), ("d", Reason::RollbackTarget)];
        let limits = Limits {
            generations: Some(2),
            ..Limits::default()
        };
        // `a` is the oldest, but was gone back to last.
        let expect = [
            ("a", Reason::WithinLimits),
            ("e", Reason::WithinLimits),
            ("d", Reason::RollbackTarget),
            ("c", Reason::Serves),
            ("b", Reason::BeyondCount),
        ];
        check(all, &facts(&needed, &[("b", 2), ("a", 9)]), limits, &expect);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_the_newest_the_oldest() {
        let all = vec![adapter("old", 900), adapter("new", 5), adapter("newest", 6)];
        let uses = [("old", 900), ("new", 5), ("newest", 6)];
        let limits = Limits {
            generations: Some(2),
            max_age: Some(500),
            ..Limits::default()
        };
        let expect = [
            ("newest", Reason::WithinLimits),
            ("new", Reason::WithinLimits),
            ("old", Reason::BeyondCount),
        ];
        check(all, &facts(&[], &uses), limits, &expect);
    }

    #[test]
    fn age_and_bytes_are_limits_too() {
        let all = vec![adapter("a", 100), adapter("b", 600), adapter("c", 700)];
        let by_age = Limits {
            max_age: Some(400),
            ..Limits::default()
        };
        let expect = [
            ("c", Reason::WithinLimits),
            ("b", Reason::WithinLimits),
            ("a", Reason::BeyondAge),
        ];
        check(all.clone(), &facts(&[], &[]), by_age, &expect);
        let mut all = all;
        all[1].bytes = 100;
        let by_bytes = Limits {
            max_bytes: Some(50),
            ..Limits::default()
        };
        // `a` would fit, but is older than what does not; what serves counts first.
        let expect = [
            ("c", Reason::WithinLimits),
            ("b", Reason::BeyondBytes),
            ("a", Reason::BeyondBytes),
        ];
        check(all.clone(), &facts(&[], &[]), by_bytes, &expect);
        let expect = [
            ("c", Reason::BeyondBytes),
            ("b", Reason::Serves),
            ("a", Reason::BeyondBytes),
        ];
        check(
            all,
            &facts(&[("b", Reason::Serves)], &[]),
            by_bytes,
            &expect,
        );
    }

    #[test]
    fn imported_adapters_go_only_when_asked_for_and_take_no_place() {
        let imported = Candidate {
            imported: true,
            ..adapter("i", 950)
        };
        let unreadable = Candidate {
            created_at: None,
            ..adapter("u", 0)
        };
        let all = vec![imported, unreadable, adapter("a", 900)];
        let strict = Limits {
            generations: Some(1),
            max_age: Some(1),
            max_bytes: Some(1000),
            max_imported_age: None,
        };
        let mut expect = [
            ("i", Reason::Imported),
            ("a", Reason::BeyondAge),
            ("u", Reason::Unreadable),
        ];
        check(all.clone(), &facts(&[], &[]), strict, &expect);
        let asked = Limits {
            max_imported_age: Some(10),
            ..strict
        };
        expect[0].1 = Reason::BeyondAge;
        check(all.clone(), &facts(&[], &[]), asked, &expect);
        expect[0].1 = Reason::Serves;
        check(all, &facts(&[("i", Reason::Serves)], &[]), asked, &expect);
    }
}
