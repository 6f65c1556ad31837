//! Clients in the simulation: requests in a canary, orders of operators, and what must hold of both.

use std::collections::BTreeSet;

use rand::Rng;

use super::simulation::Schedule;
use crate::canary::{Observation, Seen, Unit, takes};
use crate::rollout::{Cause, Command, Durable, Event, Order, Stage, Work};

/// Conversations that are followed.
const KEYS: u64 = 12;

/// Whether a generation answers with errors.
pub(super) fn is_bad(generation: &str) -> bool {
    u64::from_str_radix(generation, 16).is_ok_and(|n| n % 3 == 2)
}

pub(super) fn order(command: Command) -> Order {
    Order {
        command,
        generation: None,
        by: "op".into(),
        why: "a test".into(),
        at: 1,
    }
}

fn unit(n: u64) -> Unit {
    Unit::of_key(&format!("user-{n}"))
}

impl Schedule {
    /// What each conversation would get now.
    pub(super) fn got(&self) -> Vec<Option<String>> {
        let view = self.world.core().view();
        let first = |n| view.choices(unit(n)).next().map(|r| r.generation.clone());
        (0..KEYS).map(first).collect()
    }

    /// Requests of a canary come and are answered.
    pub(super) fn requests(&mut self, count: u64) {
        let Some(canary) = self.world.core().view().canary else {
            return;
        };
        let generation = canary.release.generation;
        for _ in 0..count {
            let unit = Unit::of_request(self.random.random_range(0..u64::MAX));
            let of_candidate = takes(&generation, unit, canary.share);
            let errors = match of_candidate && is_bad(&generation) {
                true => 0.9,
                false => 0.0,
            };
            let seen = Seen::Answer {
                failed: Some(self.random.random_bool(errors)),
                first_byte_ms: Some(self.random.random_range(50..150)),
            };
            self.world.observed.push(Observation {
                candidate: generation.clone(),
                share: canary.share,
                of_candidate,
                key: None,
                seen,
            });
        }
    }

    /// An operator orders something, which may make no sense.
    pub(super) fn order(&mut self) {
        let all = Command::ALL;
        let command = match self.world.durable().paused.is_some() {
            true => Command::Resume,
            false => all[self.random.random_range(0..all.len())],
        };
        let order = order(command);
        let refused = self.world.core().may(&order).is_err();
        let before = self.world.durable();
        let is_heard = self.world.lost.is_empty();
        self.world.event(Event::Order(order));
        let after = self.world.durable();
        let grew = after.history.last() != before.history.last() || after.history.len() == 100;
        assert!(
            !is_heard || !refused || after.paused == before.paused,
            "seed {}",
            self.seed
        );
        let is_written = is_heard && self.world.lost.is_empty();
        assert!(!is_written || refused || grew, "seed {}", self.seed);
    }

    /// What must hold of requests and of rollouts that were ended, after every step.
    pub(super) fn check_requests(&self, before: &Durable, got: &[Option<String>], old_work: usize) {
        let seed = self.seed;
        let durable = self.world.durable();
        let waits = !self.world.lost.is_empty() || self.caught_up;
        let place = |d: &Durable| {
            let rollout = d.rollout.as_ref();
            let rollout =
                rollout.map(|r| (r.to.generation.clone(), r.stage == Stage::Canary, r.share));
            (d.current.as_ref().map(|c| c.generation.clone()), rollout)
        };
        if place(before) == place(&durable) {
            assert_eq!(
                self.got(),
                got,
                "seed {seed}: a conversation flips within a step"
            );
        }
        let view = self.world.core().view();
        if let Some(refused) = durable
            .refused
            .as_ref()
            .filter(|_| durable.rollout.is_none())
        {
            let generation = &refused.release.generation;
            let known: BTreeSet<&String> = view.known().map(|r| &r.generation).collect();
            let kept = durable
                .previous
                .as_ref()
                .is_some_and(|p| p.generation == *generation);
            assert!(
                kept || !known.contains(generation),
                "seed {seed}: a request gets what was given up"
            );
            let would = self.got().contains(&Some(generation.clone()));
            assert!(!would, "seed {seed}: a request gets what was given up");
        }
        // What was aborted or went back is not begun again by itself, whatever the epoch.
        let held = before.refused.as_ref().filter(|r| r.cause != Cause::Failed);
        if let (Some(held), Some(rollout), None) = (held, &durable.rollout, &before.rollout) {
            let again = rollout.to.is_same(&held.release);
            // What was heard while the disk was full is acted upon in one step.
            let orders = |d: &Durable| d.history.iter().filter(|e| e.act == "rollout").count();
            let ordered = orders(&durable) > orders(before);
            assert!(
                !again || ordered || waits,
                "seed {seed}: what was aborted begins again"
            );
        }
        // The skew of what may answer where nothing else can.
        if let (Some(current), Some(fallback)) = (&view.current, &view.fallback) {
            let skew = current.epoch.saturating_sub(fallback.epoch);
            assert!(
                skew <= self.world.core().rules().max_skew_epochs,
                "seed {seed}"
            );
        }
        // A pause holds stage and share.
        if let (Some(_), Some(_), false) = (&before.paused, &durable.paused, waits) {
            let place = |d: &Durable| d.rollout.as_ref().map(|r| (r.stage, r.share));
            let ended = durable.rollout.is_none();
            assert!(
                ended || place(before) == place(&durable),
                "seed {seed}: a pause does not hold"
            );
            assert_eq!(
                before.current.as_ref().map(|c| &c.generation),
                durable.current.as_ref().map(|c| &c.generation)
            );
        }
        // What requests hold is not unloaded.
        let drains = |d: &Durable| d.rollout.as_ref().is_some_and(|r| r.stage >= Stage::Drain);
        // There they may be held for longer than is waited for.
        if drains(before) || drains(&durable) {
            return;
        }
        for (id, work) in &self.world.pending[old_work.min(self.world.pending.len())..] {
            if let Work::Unload { name } = work {
                let held = self.world.held.iter().any(|g| *name == format!("m@{g}"));
                assert!(!held, "seed {seed}: {id} would lose {name}, which is held");
            }
        }
    }
}
