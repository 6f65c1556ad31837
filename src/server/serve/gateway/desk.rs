//! Leases: which generation a request gets, and which target answers it.
//!
//! One lock holds what may be leased and what is: a generation that nothing holds, and that may not
//! be leased any more, is held by nothing from then on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use realign_core::clock;
use realign_fleet::{Heard, Observation, Release, Seen, TargetId, Unit, View, takes};

/// Most observations that wait for the rollout. Beyond, they are lost: of both generations alike.
const MOST: usize = 50_000;

/// Everything that is leased.
#[derive(Debug, Default)]
pub(super) struct Desk {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    view: View,
    outstanding: HashMap<TargetId, usize>,
    leased: BTreeMap<String, usize>,
    /// What was seen of requests in a canary, until the rollout hears of it.
    observed: Vec<Observation>,
}

/// Which generation a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What serves, or what is tried: all requests of a unit get the same.
    Served(Unit),
    /// This one.
    Generation(String),
}

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// No target answers by it now.
    NoTarget,
    /// It is neither current nor previous.
    Unknown,
}

/// A generation at a target, held until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    desk: Arc<Desk>,
    pub(super) target: TargetId,
    pub(super) generation: String,
    /// What the target is sent as `model`.
    pub(super) model: String,
    /// What the request stands for in a canary: its share, whether it got the new generation, its key.
    sample: Option<Sample>,
}

/// A request's part in the comparison of two generations.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    candidate: String,
    share: u16,
    of_candidate: bool,
    key: Option<u64>,
}

impl Sample {
    /// What a request stands for that gets this generation. One that does not get what it was drawn for
    /// says nothing.
    fn of(view: &View, unit: Unit, generation: &str) -> Option<Self> {
        let canary = view.canary.as_ref()?;
        let candidate = &canary.release.generation;
        let of_candidate = takes(candidate, unit, canary.share);
        let drawn = match of_candidate {
            true => candidate,
            false => &view.current.as_ref()?.generation,
        };
        (drawn == generation).then(|| Self {
            candidate: candidate.clone(),
            share: canary.share,
            of_candidate,
            key: unit.key(),
        })
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what may be leased.
    pub(super) fn show(&self, view: View) {
        let mut state = self.state();
        state.view = view;
    }

    /// What may be leased.
    pub(super) fn view(&self) -> View {
        self.state().view.clone()
    }

    /// Whether a share of the requests gets another generation.
    pub(super) fn has_canary(&self) -> bool {
        self.state().view.canary.is_some()
    }

    /// What is known of requests now. What was seen of them is told once.
    pub(super) fn hear(&self) -> Heard {
        let mut state = self.state();
        Heard {
            leased: state.leased.keys().cloned().collect(),
            observed: std::mem::take(&mut state.observed),
            at: clock::unix_seconds(),
        }
    }

    /// Takes note of what was seen of a request after its lease.
    pub(super) fn tell(&self, sample: Sample, seen: Seen) {
        self.state().observe(Observation {
            candidate: sample.candidate,
            share: sample.share,
            of_candidate: sample.of_candidate,
            key: sample.key,
            seen,
        });
    }

    /// Takes note of a verdict on an answer of a generation. Whether it says anything about a canary.
    pub(super) fn judged(&self, generation: &str, key: Option<&str>, violates: bool) -> bool {
        let mut state = self.state();
        let view = &state.view;
        let Some(canary) = &view.canary else {
            return false;
        };
        let of_candidate = canary.release.generation == generation;
        let is_current = view
            .current
            .as_ref()
            .is_some_and(|c| c.generation == generation);
        if !of_candidate && !is_current {
            return false;
        }
        let observation = Observation {
            candidate: canary.release.generation.clone(),
            share: canary.share,
            of_candidate,
            key: key.and_then(|key| Unit::of_key(key).key()),
            seen: Seen::Verdict { violates },
        };
        state.observe(observation);
        true
    }

    #[cfg(test)]
    fn leased(&self) -> std::collections::BTreeSet<String> {
        self.hear().leased
    }

    /// A target's requests that are not answered to their end.
    pub(super) fn outstanding(&self, target: &TargetId) -> usize {
        let state = self.state();
        state.outstanding.get(target).copied().unwrap_or(0)
    }

    /// Leases a generation at the target that has it and the fewest requests, but none of `tried`.
    pub(super) fn lease(
        self: &Arc<Self>,
        wanted: &Wanted,
        tried: &[TargetId],
    ) -> Result<Lease, NoLease> {
        let mut state = self.state();
        let view = &state.view;
        let candidates: Vec<&Release> = match wanted {
            Wanted::Served(unit) => view.choices(*unit).collect(),
            Wanted::Generation(id) => {
                let known = view.known().filter(|r| r.generation == *id);
                let known: Vec<_> = known.take(1).collect();
                if known.is_empty() {
                    return Err(NoLease::Unknown);
                }
                known
            }
        };
        let least = candidates.into_iter().find_map(|release| {
            let has = |seat: &&realign_fleet::Seat| {
                seat.models.contains_key(&release.generation) && !tried.contains(&seat.target)
            };
            let seats = view.seats.iter().filter(has);
            let load = |seat: &&realign_fleet::Seat| {
                state.outstanding.get(&seat.target).copied().unwrap_or(0)
            };
            let seat = seats.min_by_key(load)?;
            let model = seat.models.get(&release.generation)?.clone();
            Some((seat.target.clone(), release.generation.clone(), model))
        });
        let (target, generation, model) = least.ok_or(NoLease::NoTarget)?;
        let sample = match wanted {
            Wanted::Served(unit) => Sample::of(view, *unit, &generation),
            // One that was asked for is not drawn.
            Wanted::Generation(_) => None,
        };
        *state.outstanding.entry(target.clone()).or_default() += 1;
        *state.leased.entry(generation.clone()).or_default() += 1;
        Ok(Lease {
            desk: Arc::clone(self),
            target,
            generation,
            model,
            sample,
        })
    }
}

impl State {
    fn observe(&mut self, observation: Observation) {
        if self.observed.len() < MOST {
            self.observed.push(observation);
        }
    }
}

impl Lease {
    /// The request's part in a canary, if it has one.
    pub(super) fn sample(&self) -> Option<Sample> {
        self.sample.clone()
    }

    /// Takes note of what was seen of the request.
    pub(super) fn observe(&self, seen: Seen) {
        if let Some(sample) = self.sample() {
            self.desk.tell(sample, seen);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.desk.state();
        if let Some(count) = state.outstanding.get_mut(&self.target) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.outstanding.remove(&self.target);
            }
        }
        if let Some(count) = state.leased.get_mut(&self.generation) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.leased.remove(&self.generation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use realign_fleet::{Canary, Seat};

    use super::*;

    fn release(epoch: u64, generation: &str) -> Release {
        Release {
            epoch,
            generation: generation.into(),
            is_base: false,
        }
    }

    fn seat(target: &str, generations: &[&str]) -> Seat {
        let models = generations
            .iter()
            .map(|g| (g.to_string(), format!("m@{g}")));
        Seat {
            target: TargetId(target.into()),
            models: models.collect(),
        }
    }

    #[test]
    fn the_least_busy_target_that_has_it_answers() {
        let desk = Arc::new(Desk::default());
        assert_eq!(desk.lease(&served(), &[]).unwrap_err(), NoLease::NoTarget);
        let view = View {
            current: Some(release(2, "b")),
            fallback: Some(release(1, "a")),
            previous: Some(release(1, "a")),
            canary: None,
            seats: vec![seat("1", &["a", "b"]), seat("2", &["b"]), seat("3", &["a"])],
        };
        desk.show(view);
        let first = desk.lease(&served(), &[]).unwrap();
        let second = desk.lease(&served(), &[]).unwrap();
        assert_ne!(first.target, second.target);
        assert_eq!((&*first.generation, &*second.model), ("b", "m@b"));
        let third = desk
            .lease(&served(), std::slice::from_ref(&first.target))
            .unwrap();
        assert_eq!(third.target, second.target, "the other one was tried");
        // Where nothing else can, the previous generation answers.
        let tried = [first.target.clone(), second.target.clone()];
        let fallback = desk.lease(&served(), &tried).unwrap();
        assert_eq!((&*fallback.generation, &*fallback.target.0), ("a", "3"));
        let pinned = Wanted::Generation("c".into());
        assert_eq!(desk.lease(&pinned, &[]).unwrap_err(), NoLease::Unknown);
        assert_eq!(desk.leased().len(), 2);
        drop((first, second, third, fallback));
        assert!(desk.leased().is_empty());
        assert_eq!(desk.outstanding(&TargetId("2".into())), 0);
    }

    fn served() -> Wanted {
        Wanted::Served(Unit::of_request(0))
    }

    #[test]
    fn a_conversation_gets_one_generation_and_is_a_sample_of_it() {
        let desk = Arc::new(Desk::default());
        let mut view = View {
            current: Some(release(1, "a")),
            canary: Some(Canary {
                release: release(2, "b"),
                share: 5000,
            }),
            seats: vec![seat("1", &["a", "b"]), seat("2", &["a", "b"])],
            ..View::default()
        };
        desk.show(view.clone());
        let mut of_both = [0, 0];
        for n in 0..100 {
            let unit = Unit::of_key(&format!("user-{n}"));
            let leases: Vec<Lease> = (0..3)
                .map(|_| desk.lease(&Wanted::Served(unit), &[]).unwrap())
                .collect();
            assert!(leases.iter().all(|l| l.generation == leases[0].generation));
            of_both[usize::from(leases[0].generation == "b")] += 1;
            leases[0].observe(Seen::Verdict { violates: false });
        }
        assert!(of_both.iter().all(|count| *count > 30), "{of_both:?}");
        let heard = desk.hear();
        let of_new = heard.observed.iter().filter(|o| o.of_candidate).count();
        assert_eq!((heard.observed.len(), of_new), (100, of_both[1]));
        // One that asks for it gets it, and is no sample; nor is one that gets what it was not drawn for.
        let pinned = desk.lease(&Wanted::Generation("b".into()), &[]).unwrap();
        pinned.observe(Seen::Verdict { violates: true });
        view.seats = vec![seat("1", &["a"])];
        desk.show(view.clone());
        for n in 0..100 {
            let lease = desk
                .lease(&Wanted::Served(Unit::of_request(n)), &[])
                .unwrap();
            assert_eq!(lease.generation, "a");
            lease.observe(Seen::Verdict { violates: true });
        }
        let observed = desk.hear().observed;
        assert!(observed.iter().all(|o| !o.of_candidate) && observed.len() < 80);
        // After it has gone back, nothing gets it.
        view.canary = None;
        desk.show(view);
        let gone = desk.lease(&Wanted::Generation("b".into()), &[]);
        assert_eq!(gone.unwrap_err(), NoLease::Unknown);
        assert!(!desk.judged("b", None, true));
    }
}
