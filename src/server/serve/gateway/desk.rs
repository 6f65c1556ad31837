//! Leases: which generation a request gets, and which target answers it.
//!
//! One lock holds what may be leased and what is: a generation that nothing holds, and that may not
//! be leased any more, is held by nothing from then on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use realign_fleet::{Release, TargetId, View};

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
}

/// Which generation a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What serves.
    Current,
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

    /// The generations that requests hold.
    pub(super) fn leased(&self) -> BTreeSet<String> {
        self.state().leased.keys().cloned().collect()
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
            Wanted::Current => view.current.iter().chain(&view.fallback).collect(),
            Wanted::Generation(id) => {
                let known = view.current.iter().chain(&view.previous);
                let known: Vec<_> = known.filter(|r| r.generation == *id).take(1).collect();
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
        *state.outstanding.entry(target.clone()).or_default() += 1;
        *state.leased.entry(generation.clone()).or_default() += 1;
        Ok(Lease {
            desk: Arc::clone(self),
            target,
            generation,
            model,
        })
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
    use realign_fleet::Seat;

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
        assert_eq!(
            desk.lease(&Wanted::Current, &[]).unwrap_err(),
            NoLease::NoTarget
        );
        let view = View {
            current: Some(release(2, "b")),
            fallback: Some(release(1, "a")),
            previous: Some(release(1, "a")),
            seats: vec![seat("1", &["a", "b"]), seat("2", &["b"]), seat("3", &["a"])],
        };
        desk.show(view);
        let first = desk.lease(&Wanted::Current, &[]).unwrap();
        let second = desk.lease(&Wanted::Current, &[]).unwrap();
        assert_ne!(first.target, second.target);
        assert_eq!((&*first.generation, &*second.model), ("b", "m@b"));
        let third = desk
            .lease(&Wanted::Current, std::slice::from_ref(&first.target))
            .unwrap();
        assert_eq!(third.target, second.target, "the other one was tried");
        // Where nothing else can, the previous generation answers.
        let tried = [first.target.clone(), second.target.clone()];
        let fallback = desk.lease(&Wanted::Current, &tried).unwrap();
        assert_eq!((&*fallback.generation, &*fallback.target.0), ("a", "3"));
        let pinned = Wanted::Generation("c".into());
        assert_eq!(desk.lease(&pinned, &[]).unwrap_err(), NoLease::Unknown);
        assert_eq!(desk.leased().len(), 2);
        drop((first, second, third, fallback));
        assert!(desk.leased().is_empty());
        assert_eq!(desk.outstanding(&TargetId("2".into())), 0);
    }
}
