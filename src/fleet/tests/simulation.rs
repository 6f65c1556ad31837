//! Many schedules: work ends in any order, answers are lost, targets restart, come and go, the disk
//! is full, the process is killed between any two steps.
//!
//! `REALIGN_SIMULATIONS=100000` for more of them, `REALIGN_SIMULATION_SEED=7` for one again.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::requests::{is_bad, order};
use super::world::{Engine, World};
use super::{release, rules};
use crate::canary::CanaryRules;
use crate::rollout::{
    Cause, Command, Core, Durable, Event, OnFailure, Release, Rollout, Rules, Stage, Work,
};
use crate::target::{TargetError, TargetId};

/// Steps of a schedule.
const STEPS: usize = 200;

#[test]
fn schedules_with_faults_keep_every_promise() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let (first, count) = match number("REALIGN_SIMULATION_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("REALIGN_SIMULATIONS").unwrap_or(400)),
    };
    let mut seen = Seen::default();
    for seed in first..first + count {
        Schedule::new(seed).run(&mut seen);
    }
    if count >= 100 {
        assert!(
            2 * seen.switches > count && seen.kills > count && seen.restarts > count,
            "{seen:?}"
        );
        assert!(seen.excluded + seen.refused > 0, "{seen:?}");
        assert!(
            seen.wider > 0 && seen.back > 0 && seen.aborted > 0,
            "{seen:?}"
        );
    }
    println!("{count} schedules: {seen:?}");
}

/// What happened in all schedules.
#[derive(Debug, Default)]
struct Seen {
    switches: u64,
    kills: u64,
    restarts: u64,
    excluded: u64,
    refused: u64,
    /// Canaries that went on to a greater share, and back.
    wider: u64,
    back: u64,
    aborted: u64,
}

impl Seen {
    fn count(&mut self, before: &Durable, after: &Durable) {
        let share = |d: &Durable| d.rollout.as_ref().map_or(0, |r| r.share);
        self.wider += u64::from(share(before) > 0 && share(after) > share(before));
        if before.refused != after.refused {
            let cause = after.refused.as_ref().map(|r| r.cause);
            self.back += u64::from(cause == Some(Cause::Canary));
            self.aborted += u64::from(cause == Some(Cause::Aborted));
        }
    }
}

pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) random: ChaCha8Rng,
    pub(super) world: World,
    epoch: u64,
    newest: u64,
    wanted: Option<Release>,
    /// Whether events that the disk had kept from being acted upon were waiting before this step.
    pub(super) caught_up: bool,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let on_failure = match random.random_bool(0.7) {
            true => OnFailure::Exclude,
            false => OnFailure::Abort,
        };
        let targets = random.random_range(1..=4);
        // Kills forget what failed, so many attempts seldom come together.
        let attempts = random.random_range(1..=3);
        let shares = match random.random_range(0..4) {
            0 | 1 => vec![],
            2 => vec![5000],
            _ => vec![1000, 5000],
        };
        let rules = Rules {
            attempts,
            canary: CanaryRules {
                shares,
                min_requests: 20,
                min_ms: 500,
                max_ms: 20_000,
            },
            ..rules(on_failure)
        };
        let core = Core::new(rules, Durable::default());
        Self {
            seed,
            random,
            world: World::new(targets, core),
            epoch: 0,
            newest: 0,
            wanted: None,
            caught_up: false,
        }
    }

    fn run(mut self, seen: &mut Seen) {
        for _ in 0..STEPS {
            let before = self.world.durable();
            let started = self.world.pending.len();
            let got = self.got();
            self.caught_up = !self.world.lost.is_empty();
            self.one(seen);
            self.check(&before, started.min(self.world.pending.len()));
            self.check_requests(&before, &got, started);
            let after = self.world.durable();
            seen.count(&before, &after);
            seen.switches += u64::from(before.current != after.current);
            seen.refused += u64::from(before.refused != after.refused && after.refused.is_some());
            let excluded = |d: &Durable| d.rollout.as_ref().is_some_and(|r| !r.excluded.is_empty());
            seen.excluded += u64::from(!excluded(&before) && excluded(&after));
        }
        self.converges();
    }

    /// Something happens.
    fn one(&mut self, seen: &mut Seen) {
        let ids = self.world.ids();
        let some = ids[self.random.random_range(0..ids.len())].clone();
        if self.world.durable().paused.is_some() && self.random.random_bool(0.2) {
            // Pauses are short, or nothing would happen.
            return self.order();
        }
        match self.random.random_range(0..116) {
            100..114 => self.requests(150),
            114.. => self.order(),
            0..50 if !self.world.pending.is_empty() => self.finish(),
            0..64 => {
                let time = self.random.random_range(1..1500);
                self.world.wait(time);
            }
            64..69 => self.desire(),
            69..71 => self.world.wait(5_000),
            71..78 => {
                self.world.restart(&some);
                seen.restarts += 1;
            }
            78..82 => {
                let engine = self.world.engines.get_mut(&some).unwrap();
                engine.up = !engine.up;
                engine.changed = true;
                if !engine.up {
                    engine.adapters.clear();
                }
            }
            82..86 => self.world.event(Event::Suspect(some)),
            86..91 => {
                let before = self.world.core().view().canary;
                let is_known = self.world.lost.is_empty();
                self.world.kill();
                seen.kills += 1;
                // The same share after a kill.
                let after = self.world.core().view().canary;
                assert!(after == before || !is_known, "seed {}", self.seed);
                // What should serve is read again.
                if let Some(wanted) = self.wanted.clone() {
                    self.world.event(Event::Desired(wanted));
                }
            }
            91..93 => self.world.disk_full = !self.world.disk_full,
            93..95 => self
                .world
                .refuse(&some, &release(0, self.newest + 1).generation),
            95..97 => self.come_and_go(some),
            _ => self.hold(),
        }
    }

    fn finish(&mut self) {
        if let Some((id, work)) = self.world.orphans.pop() {
            // The target went, and may be back: the answer is not its own.
            let lost = Err(TargetError::Unreachable("gone".into()));
            self.world.event(Event::Done(id, work, lost));
            return;
        }
        let at = self.random.random_range(0..self.world.pending.len());
        match self.random.random_range(0..10) {
            // The answer is lost; the work was done.
            0 => self
                .world
                .finish(at, Some(TargetError::Unreachable("lost".into()))),
            // It never arrived.
            1 => {
                let (id, work) = self.world.pending.swap_remove(at);
                let lost = Err(TargetError::Unreachable("lost".into()));
                self.world.event(Event::Done(id, work, lost));
            }
            _ => self.world.finish(at, None),
        }
    }

    fn desire(&mut self) {
        self.epoch += 1;
        let back = self.newest > 0 && self.random.random_bool(0.25);
        if !back {
            self.newest += 1;
        }
        let n = if back {
            self.random.random_range(0..=self.newest)
        } else {
            self.newest
        };
        let wanted = release(self.epoch, n);
        self.wanted = Some(wanted.clone());
        self.world.event(Event::Desired(wanted));
    }

    fn come_and_go(&mut self, some: TargetId) {
        if self.world.engines.len() > 1 && self.random.random_bool(0.5) {
            self.world.remove(&some);
        } else if self.world.engines.len() < 6 {
            let id = TargetId(format!("http://new{}", self.random.random_range(0..100)));
            let engine = Engine {
                up: true,
                changed: true,
                ..Engine::default()
            };
            self.world.engines.entry(id).or_insert(engine);
        }
        self.world.announce();
    }

    /// Requests hold what they were sent to.
    fn hold(&mut self) {
        let view = self.world.core().view();
        let all = view.seats.iter().flat_map(|s| s.models.keys()).cloned();
        let held: BTreeSet<String> = all.filter(|_| self.random.random_bool(0.5)).collect();
        self.world.hold(held);
    }

    /// What must hold after every step.
    fn check(&self, before: &Durable, old_work: usize) {
        let seed = self.seed;
        let durable = self.world.durable();
        let epoch = |d: &Durable| d.current.as_ref().map_or(0, |c| c.epoch);
        assert!(
            epoch(&durable) >= epoch(before),
            "seed {seed}: the epoch went back"
        );
        assert!(
            before.current.is_none() || durable.current.is_some(),
            "seed {seed}"
        );
        if before.current.as_ref().map(|c| &c.generation)
            != durable.current.as_ref().map(|c| &c.generation)
        {
            self.check_switch(before);
        }
        let view = self.world.core().view();
        // While the disk is full, what was heard is not acted upon.
        let waits = !self.world.lost.is_empty();
        for seat in &view.seats {
            let Some(engine) = self.world.engines.get(&seat.target) else {
                assert!(waits, "seed {seed}: a seat without a target");
                continue;
            };
            for model in seat.models.values() {
                let there = model == "base" || engine.adapters.contains_key(model);
                assert!(
                    (engine.up && there) || engine.changed || waits,
                    "seed {seed}: {} would be asked for {model}, which it does not have",
                    seat.target
                );
            }
        }
        let kept = durable.current.iter().chain(&durable.previous);
        let kept: Vec<String> = kept.map(|r| format!("m@{}", r.generation)).collect();
        for (id, work) in &self.world.pending[old_work.min(self.world.pending.len())..] {
            if let Work::Unload { name } = work {
                assert!(!kept.contains(name), "seed {seed}: {id} would lose {name}");
            }
        }
        let busy: BTreeSet<&TargetId> = self.world.pending.iter().map(|(id, _)| id).collect();
        assert!(
            busy.len() == self.world.pending.len(),
            "seed {seed}: two things at once"
        );
    }

    /// At the switch every target that the core hears from, and was not excluded, has answered by it.
    fn check_switch(&self, before: &Durable) {
        // What was heard while the disk was full may end rollouts and take targets away in one step.
        if self.caught_up {
            return;
        }
        let seed = self.seed;
        let durable = self.world.durable();
        let current = durable.current.clone().unwrap();
        let rollout = durable.rollout.clone();
        let excluded = rollout.map(|r| r.excluded).unwrap_or_default();
        // A newer release takes the place of one that is drained.
        let to = |r: &&Rollout| r.to.generation == current.generation;
        let stage = before.rollout.as_ref().filter(to).map(|r| r.stage);
        // Several stages may pass in one step, where nothing is left to do in them.
        assert!(
            stage < Some(Stage::Drain) || before.current.is_none(),
            "seed {seed}: {stage:?}"
        );
        let ready: Vec<TargetId> = (self.world.core().view().seats.into_iter())
            .filter(|seat| seat.models.contains_key(&current.generation))
            .map(|seat| seat.target)
            .collect();
        assert!(
            !ready.is_empty(),
            "seed {seed}: a switch to what nothing has"
        );
        // Where nothing was left to drain or to unload, the rollout is over, and what it excluded forgotten.
        let known = durable.rollout.is_some();
        for id in self.world.core().answering() {
            let counts = known && !excluded.contains_key(&id);
            assert!(
                !counts || ready.contains(&id),
                "seed {seed}: switched before {id} was there"
            );
        }
    }

    /// Seconds in which all work is done.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.requests(150);
            self.world.wait(1000);
            while !self.world.pending.is_empty() {
                self.world.finish(0, None);
            }
        }
    }

    /// Without further faults, everything comes about.
    fn converges(&mut self) {
        let seed = self.seed;
        self.world.disk_full = false;
        for engine in self.world.engines.values_mut() {
            engine.refuses.clear();
            engine.changed = !engine.up || engine.changed;
            engine.up = true;
        }
        self.world.hold(BTreeSet::new());
        // What waited for the disk may have been a pause.
        self.world.wait(1);
        if self.world.durable().paused.is_some() {
            let resume = order(Command::Resume);
            self.world.event(Event::Order(resume));
        }
        self.newest += 1;
        while is_bad(&release(0, self.newest).generation) {
            self.newest += 1;
        }
        // What restarted is noticed first: asking it for what it lost is a failed attempt.
        self.pass(20);
        self.epoch += 1;
        let wanted = release(self.epoch, self.newest);
        self.world.event(Event::Desired(wanted.clone()));
        self.pass(60);
        let durable = self.world.durable();
        assert_eq!(durable.current, Some(wanted), "seed {seed}: {durable:?}");
        assert_eq!(durable.rollout, None, "seed {seed}");
        let status = self.world.core().targets();
        assert!(status.iter().all(|s| s.in_pool), "seed {seed}: {status:?}");
        let kept = durable.current.iter().chain(&durable.previous);
        let kept: BTreeSet<String> = kept.map(|r| format!("m@{}", r.generation)).collect();
        for id in self.world.ids() {
            let loaded = self.world.loaded(&id);
            assert!(
                loaded.is_subset(&kept),
                "seed {seed}: {id} keeps {loaded:?}"
            );
        }
    }
}
