//! Two controllers and a store that loses answers, in many seeded schedules.
//!
//! Each step, one of them looks after its lease, publishes, gives the lease back or starts anew, and the
//! clocks of both go on, each at a rate of its own. After each step `CURRENT` is compared with what it
//! was: it never goes back, every epoch has one writer, and no token follows a higher one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::faults::Faulty;
use super::{TERM, Time, controller, memory, naming};
use crate::records::Current;
use crate::store::Store;
use crate::{Controller, StoreError};

const STEPS: usize = 120;

/// What was seen of `CURRENT`.
#[derive(Default)]
struct Seen {
    last: Option<Current>,
    epochs: HashMap<u64, (Option<String>, String)>,
    /// Which epochs were confirmed to a publisher, with what.
    confirmed: HashMap<u64, String>,
}

impl Seen {
    fn look(&mut self, store: &Store) {
        let Some(current) = store.current().unwrap() else {
            assert!(self.last.is_none(), "CURRENT is gone");
            return;
        };
        if let Some(last) = &self.last {
            assert!(current.epoch >= last.epoch, "{last:?} then {current:?}");
            assert!(current.epoch <= last.epoch + 1, "{last:?} then {current:?}");
            assert!(current.fencing >= last.fencing, "{last:?} then {current:?}");
        }
        let says = (current.generation.clone(), current.writer.clone());
        let before = self.epochs.entry(current.epoch).or_insert(says.clone());
        assert_eq!(*before, says, "epoch {} was written twice", current.epoch);
        self.last = Some(current);
    }
}

/// One of the two, with a clock of its own.
struct Racer {
    store: Store,
    name: &'static str,
    runs: usize,
    time: Time,
    rate: f64,
    run: Controller,
}

impl Racer {
    fn new(store: &Store, name: &'static str, rate: f64) -> Self {
        let time = Time::default();
        let run = controller(store, &format!("{name}-0"), &time);
        Self {
            store: store.clone(),
            name,
            runs: 0,
            time,
            rate,
            run,
        }
    }

    fn restart(&mut self) {
        self.runs += 1;
        let name = format!("{}-{}", self.name, self.runs);
        self.run = controller(&self.store, &name, &self.time);
    }
}

/// Returns how many publications were confirmed.
fn schedule(seed: u64, percent: u32) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let plain = memory();
    let faulty = Faulty::new(plain.objects.clone(), seed ^ 1, percent);
    let store = Store::over(Arc::new(faulty));
    // A clock that runs a tenth slow is worse than any that is in use.
    let rates = [1.0, rng.random_range(0.9..1.1)];
    let mut racers = [
        Racer::new(&store, "a", rates[0]),
        Racer::new(&store, "b", rates[1]),
    ];
    let mut seen = Seen::default();
    for step in 0..STEPS {
        let passed = Duration::from_millis(rng.random_range(0..TERM.as_millis() as u64 / 3));
        for racer in &racers {
            racer.time.pass(passed.mul_f64(racer.rate));
        }
        let racer = &mut racers[rng.random_range(0..2)];
        match rng.random_range(0..20) {
            0 => racer.restart(),
            1 => drop(racer.run.release()),
            2..8 => publish(racer, step, &mut seen),
            _ => drop(racer.run.tick()),
        }
        seen.look(&plain);
    }
    for (epoch, generation) in &seen.confirmed {
        let kept = plain.epoch(*epoch).unwrap();
        let last = seen.last.as_ref().filter(|last| last.epoch == *epoch);
        let record = kept.or(last.cloned()).expect("an epoch has no record");
        assert_eq!(record.generation.as_ref(), Some(generation));
    }
    seen.confirmed.len()
}

fn publish(racer: &mut Racer, step: usize, seen: &mut Seen) {
    let generation = format!("{step:x}");
    match racer.run.publish(&naming(&generation)) {
        Ok(current) => {
            assert_eq!(current.generation.as_deref(), Some(&*generation));
            let before = seen.confirmed.insert(current.epoch, generation);
            assert_eq!(before, None, "two publishers in epoch {}", current.epoch);
        }
        Err(StoreError::NotHolder(_) | StoreError::Unavailable(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn of_two_controllers_one_publishes_and_current_never_goes_back() {
    let schedules = std::env::var("REALIGN_SIMULATIONS");
    let schedules = schedules.map_or(300, |n| n.parse().unwrap());
    let first = std::env::var("REALIGN_SIMULATION_SEED");
    let first: u64 = first.map_or(0, |n| n.parse().unwrap());
    let mut confirmed = 0;
    for seed in first..first + schedules {
        println!("seed {seed}");
        confirmed += schedule(seed, [0, 5, 25][seed as usize % 3]);
    }
    // The schedules must get somewhere.
    assert!(confirmed > 2 * schedules as usize, "{confirmed}");
}
