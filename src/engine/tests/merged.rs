//! Swaps of an engine that has a copy of the weights for each generation, with stand-ins for the
//! copies: what they say depends on their generation, and they say it one token at a time.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::super::driver::Driver;
use super::super::engine::EngineHandle;
use super::super::handle::{EngineConfig, start_merged};
use super::super::merged::{BuildError, Builder, ModelCopy, PrepareError};
use super::super::request::*;
use super::fake::{Answer, VOCABULARY, generation, request, tokenizer};
use crate::adapter::generation::Generation;
use crate::adapter::registry::Registry;

/// What tests see and steer of the copies.
#[derive(Default)]
struct World {
    state: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    built: Vec<u32>,
    freed: Vec<u32>,
    /// Steps that copies may still make; each takes one.
    steps: usize,
    /// Generations whose copies cannot be built.
    broken: Vec<u32>,
    /// Builds wait while it is set.
    closed: bool,
}

impl World {
    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait<T>(&self, mut look: impl FnMut(&mut Seen) -> Option<T>) -> T {
        let mut seen = self.state.lock().unwrap();
        loop {
            if let Some(found) = look(&mut seen) {
                self.changed.notify_all();
                return found;
            }
            let waited = self.changed.wait_timeout(seen, Duration::from_secs(60));
            let (again, timeout) = waited.unwrap();
            assert!(!timeout.timed_out(), "nothing happened for a minute");
            seen = again;
        }
    }

    fn steps(&self, steps: usize) {
        self.change(|seen| seen.steps += steps);
    }

    fn freed(&self) -> Vec<u32> {
        self.state.lock().unwrap().freed.clone()
    }

    fn built(&self) -> Vec<u32> {
        self.state.lock().unwrap().built.clone()
    }
}

fn number(generation: &Generation) -> u32 {
    u32::from_str_radix(&generation.id.0, 16).unwrap()
}

struct Builds(Arc<World>);

impl Builder for Builds {
    fn build(&self, generation: &Generation) -> Result<Box<dyn ModelCopy>, BuildError> {
        let number = number(generation);
        self.0.wait(|seen| (!seen.closed).then_some(()));
        if self.0.state.lock().unwrap().broken.contains(&number) {
            return Err(BuildError::Load("the disk is on fire".into()));
        }
        self.0.change(|seen| seen.built.push(number));
        let (inbox, drivers) = channel::<Driver>();
        let world = self.0.clone();
        std::thread::spawn(move || {
            for driver in drivers {
                let world = world.clone();
                // Each sequence on its own, as if the copy batched them.
                std::thread::spawn(move || compute(&world, driver, number));
            }
        });
        Ok(Box::new(Stand {
            inbox: Mutex::new(inbox),
            number,
            world: self.0.clone(),
        }))
    }
}

struct Stand {
    inbox: Mutex<Sender<Driver>>,
    number: u32,
    world: Arc<World>,
}

impl ModelCopy for Stand {
    fn submit(&self, driver: Driver) {
        self.inbox.lock().unwrap().send(driver).unwrap();
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.world.change(|seen| seen.freed.push(self.number));
    }
}

/// The most probable token is the generation's number.
fn compute(world: &World, mut driver: Driver, number: u32) {
    let mut logits = vec![0.0; VOCABULARY];
    logits[number as usize] = 5.0;
    // The token that a copy is warmed with is not one of the test's.
    let warming = driver.prompt() == [0];
    loop {
        if !warming {
            world.wait(|seen| {
                seen.steps = seen.steps.checked_sub(1)?;
                Some(())
            });
        }
        match driver.advance(&logits) {
            Some(token) => assert_eq!(token, number),
            None => return,
        }
    }
}

fn engine(copies: usize) -> (EngineHandle, Arc<World>) {
    let world = Arc::new(World::default());
    let builds = Box::new(Builds(world.clone()));
    let config = EngineConfig::default();
    (
        start_merged(builds, tokenizer(), 4096, config, copies),
        world,
    )
}

fn ask(generation: &Arc<Generation>, max_tokens: usize) -> GenerateRequest {
    let mut request = request(vec![1, 2, 3], max_tokens, 0);
    request.sampling.temperature = 0.0;
    request.generation = generation.clone();
    request
}

fn finish(mut stream: GenerateStream) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = stream.blocking_next() {
        answer.take(event);
    }
    answer
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < limit, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const NOT: &dyn Fn(Duration) -> bool = &|_| false;

/// Makes a generation ready and lets it serve, as the control loop does.
fn swap(engine: &EngineHandle, registry: &Registry, to: &Arc<Generation>) {
    engine.prepare(to, NOT).unwrap();
    registry.swap(to.clone(), None).unwrap();
    engine.serve(&to.id);
}

#[test]
fn a_swap_moves_new_requests_over_and_lets_running_ones_finish() {
    let (engine, world) = engine(2);
    let (old, new) = (generation(1), generation(2));
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &old);

    let running = engine.submit(ask(&registry.lease_current(), 6)).unwrap();
    world.steps(2);
    world.wait(|seen| (seen.steps == 0).then_some(()));
    assert!(engine.is_busy());

    // The next copy is built beside the old one, which still serves.
    engine.prepare(&new, NOT).unwrap();
    assert_eq!((world.built(), world.freed()), (vec![1, 2], vec![]));
    let before = engine.submit(ask(&registry.lease_current(), 2)).unwrap();
    registry.swap(new.clone(), None).unwrap();
    engine.serve(&new.id);
    let after = engine.submit(ask(&registry.lease_current(), 2)).unwrap();
    assert!(
        world.freed().is_empty(),
        "sequences still run on the old copy"
    );

    world.steps(100);
    assert_eq!(finish(after).ids, [2, 2]);
    assert_eq!(finish(before).ids, [1, 1]);
    assert_eq!(finish(running).ids, [1; 6]);
    until("free copy", || world.freed() == [1]);
    // A sequence is over for its client a moment before it is for the engine.
    until("idle engine", || !engine.is_busy());
    assert_eq!(engine.stats().running, 0);
}

#[test]
fn a_copy_that_nothing_runs_on_is_freed_by_the_swap_itself() {
    let (engine, world) = engine(2);
    let registry = Registry::new(generation(0), 4);
    for number in 1..=4 {
        swap(&engine, &registry, &generation(number));
        // The sequence that warms a copy lets go of it in its own time.
        let before: Vec<u32> = (1..number).collect();
        until("free copies", || world.freed() == before);
    }
    // A rollback builds again: the registry kept the adapter, not the copy.
    let previous = registry.previous().unwrap();
    swap(&engine, &registry, &previous);
    assert_eq!(world.built(), [1, 2, 3, 4, 3]);
}

#[test]
fn a_generation_without_a_copy_gets_one_while_its_requests_wait() {
    let (engine, world) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    world.change(|seen| seen.closed = true);
    let pinned = [2, 2].map(|n| engine.submit(ask(&generation(n), 3)).unwrap());
    assert_eq!(engine.stats().waiting, 2);
    world.change(|seen| seen.closed = false);
    world.steps(100);
    for stream in pinned {
        assert_eq!(finish(stream).ids, [2; 3]);
    }
    assert_eq!(world.built(), [1, 2], "one copy for both");
    // A stream ends a moment before its sequence gives its copy back.
    until("idle engine", || !engine.is_busy());

    // A third generation takes the place of the one that is idle, never of the one that serves.
    let third = engine.submit(ask(&generation(3), 1)).unwrap();
    assert_eq!(finish(third).ids, [3]);
    until("free copy", || world.freed() == [2]);
}

#[test]
fn without_room_a_request_is_refused_and_nothing_is_counted() {
    let (engine, world) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    let pinned = engine.submit(ask(&generation(2), 3)).unwrap();
    world.wait(|seen| (seen.built == [1, 2]).then_some(()));
    let refused = engine.submit(ask(&generation(3), 1)).unwrap_err();
    assert!(
        matches!(refused, SubmitError::NoCopy { limit: 2, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("engine.copies"), "{refused}");
    let waited = engine.prepare(&generation(3), NOT).unwrap_err();
    assert!(matches!(waited, PrepareError::NoRoom { .. }), "{waited}");
    world.steps(100);
    assert_eq!(finish(pinned).ids, [2; 3]);
    until("idle engine", || !engine.is_busy());
    // What is prepared to serve next keeps its place.
    engine.prepare(&generation(3), NOT).unwrap();
    let refused = engine.submit(ask(&generation(4), 1)).unwrap_err();
    assert!(matches!(refused, SubmitError::NoCopy { .. }), "{refused}");
    // A candidate that was refused does not.
    engine.release(&generation(3).id);
    let mut pinned = None;
    until("place", || {
        pinned = engine.submit(ask(&generation(4), 1)).ok();
        pinned.is_some()
    });
    assert_eq!(pinned.map(|stream| finish(stream).ids), Some(vec![4]));
}

#[test]
fn a_copy_that_cannot_be_built_is_an_error_to_whoever_asked() {
    let (engine, world) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    world.change(|seen| seen.broken.push(2));
    let error = engine.prepare(&generation(2), NOT).unwrap_err().to_string();
    assert!(
        error.contains("000000000002") && error.contains("on fire"),
        "{error}"
    );
    let failed = finish(engine.submit(ask(&generation(2), 1)).unwrap());
    assert!(failed.failed.unwrap().contains("on fire"));
    world.steps(100);
    let serving = engine.submit(ask(&generation(1), 2)).unwrap();
    assert_eq!(finish(serving).ids, [1, 1], "what served still does");
    assert!(!engine.is_busy());
    // The place is free again.
    world.change(|seen| seen.broken.clear());
    engine.prepare(&generation(2), NOT).unwrap();
}

#[test]
fn a_client_that_hangs_up_and_the_end_of_the_server_end_sequences() {
    let (engine, world) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    let gone = engine.submit(ask(&generation(1), 1000)).unwrap();
    world.steps(1);
    world.wait(|seen| (seen.steps == 0).then_some(()));
    drop(gone);
    world.steps(1);
    until("free place", || !engine.is_busy());

    let cut = engine.submit(ask(&generation(1), 1000)).unwrap();
    world.steps(3);
    world.wait(|seen| (seen.steps == 0).then_some(()));
    world.steps(1);
    std::thread::scope(|scope| {
        scope.spawn(|| engine.shutdown());
        let steps = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            world.steps(1);
        });
        steps.join().unwrap();
    });
    let answer = finish(cut);
    assert!(answer.failed.unwrap().contains("shutting down"));
    let late = engine.submit(ask(&generation(1), 1)).unwrap_err();
    assert_eq!(late, SubmitError::ShuttingDown);
}
