//! Swaps of an engine that has a copy of the weights for each generation, on fake copies: their
//! answers depend on their generation, and a test controls their every step.

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

/// What tests observe and control of the fake copies.
#[derive(Default)]
struct FakeCopies {
    state: Mutex<FakeState>,
    changed: Condvar,
}

#[derive(Default)]
struct FakeState {
    built: Vec<u32>,
    freed: Vec<u32>,
    /// Steps that copies may still make; each takes one.
    steps: usize,
    /// Generations whose copies cannot be built.
    broken: Vec<u32>,
    /// FakeBuilder wait while it is set.
    closed: bool,
}

impl FakeCopies {
    fn change(&self, change: impl FnOnce(&mut FakeState)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait<T>(&self, mut look: impl FnMut(&mut FakeState) -> Option<T>) -> T {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = look(&mut state) {
                self.changed.notify_all();
                return found;
            }
            let waited = self.changed.wait_timeout(state, Duration::from_secs(60));
            let (again, timeout) = waited.unwrap();
            assert!(!timeout.timed_out(), "nothing happened for a minute");
            state = again;
        }
    }

    fn steps(&self, steps: usize) {
        self.change(|state| state.steps += steps);
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

struct FakeBuilder(Arc<FakeCopies>);

impl Builder for FakeBuilder {
    fn build(&self, generation: &Generation) -> Result<Box<dyn ModelCopy>, BuildError> {
        let number = number(generation);
        self.0.wait(|state| (!state.closed).then_some(()));
        if self.0.state.lock().unwrap().broken.contains(&number) {
            return Err(BuildError::Load("the disk is on fire".into()));
        }
        self.0.change(|state| state.built.push(number));
        let (inbox, drivers) = channel::<Driver>();
        let copies = self.0.clone();
        std::thread::spawn(move || {
            for driver in drivers {
                let copies = copies.clone();
                // Each sequence on its own, as if the copy batched them.
                std::thread::spawn(move || compute(&copies, driver, number));
            }
        });
        Ok(Box::new(FakeCopy {
            inbox: Mutex::new(inbox),
            number,
            copies: self.0.clone(),
        }))
    }
}

struct FakeCopy {
    inbox: Mutex<Sender<Driver>>,
    number: u32,
    copies: Arc<FakeCopies>,
}

impl ModelCopy for FakeCopy {
    fn submit(&self, driver: Driver) {
        self.inbox.lock().unwrap().send(driver).unwrap();
    }
}

impl Drop for FakeCopy {
    fn drop(&mut self) {
        self.copies.change(|state| state.freed.push(self.number));
    }
}

/// The most probable token is the generation's number.
fn compute(copies: &FakeCopies, mut driver: Driver, number: u32) {
    let mut logits = vec![0.0; VOCABULARY];
    logits[number as usize] = 5.0;
    // The token that a copy is warmed with is not one of the test's.
    let warming = driver.prompt() == [0];
    loop {
        if !warming {
            copies.wait(|state| {
                state.steps = state.steps.checked_sub(1)?;
                Some(())
            });
        }
        match driver.advance(&logits) {
            Some(token) => assert_eq!(token, number),
            None => return,
        }
    }
}

fn engine(limit: usize) -> (EngineHandle, Arc<FakeCopies>) {
    let copies = Arc::new(FakeCopies::default());
    let builder = Box::new(FakeBuilder(copies.clone()));
    let config = EngineConfig::default();
    (
        start_merged(builder, tokenizer(), 4096, config, limit),
        copies,
    )
}

fn greedy(generation: &Arc<Generation>, max_tokens: usize) -> GenerateRequest {
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

const DO_NOT_WAIT: &dyn Fn(Duration) -> bool = &|_| false;

/// Makes a generation ready and lets it serve, as the control loop does.
fn swap(engine: &EngineHandle, registry: &Registry, to: &Arc<Generation>) {
    engine.prepare(to, DO_NOT_WAIT).unwrap();
    registry.swap(to.clone(), None).unwrap();
    engine.serve(&to.id);
}

#[test]
fn a_swap_moves_new_requests_over_and_lets_running_ones_finish() {
    let (engine, copies) = engine(2);
    let (old, new) = (generation(1), generation(2));
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &old);

    let running = engine.submit(greedy(&registry.lease_current(), 6)).unwrap();
    copies.steps(2);
    copies.wait(|state| (state.steps == 0).then_some(()));
    assert!(engine.is_busy());

    // The next copy is built while the old one still serves.
    engine.prepare(&new, DO_NOT_WAIT).unwrap();
    assert_eq!((copies.built(), copies.freed()), (vec![1, 2], vec![]));
    let before = engine.submit(greedy(&registry.lease_current(), 2)).unwrap();
    registry.swap(new.clone(), None).unwrap();
    engine.serve(&new.id);
    let after = engine.submit(greedy(&registry.lease_current(), 2)).unwrap();
    assert!(
        copies.freed().is_empty(),
        "sequences still run on the old copy"
    );

    copies.steps(100);
    assert_eq!(finish(after).ids, [2, 2]);
    assert_eq!(finish(before).ids, [1, 1]);
    assert_eq!(finish(running).ids, [1; 6]);
    until("free copy", || copies.freed() == [1]);
    // A sequence is over for its client a moment before it is for the engine.
    until("idle engine", || !engine.is_busy());
    assert_eq!(engine.stats().running, 0);
}

#[test]
fn a_copy_that_nothing_runs_on_is_freed_by_the_swap_itself() {
    let (engine, copies) = engine(2);
    let registry = Registry::new(generation(0), 4);
    for number in 1..=4 {
        swap(&engine, &registry, &generation(number));
        // The sequence that warms a copy may release it a little later.
        let before: Vec<u32> = (1..number).collect();
        until("free copies", || copies.freed() == before);
    }
    // A rollback builder again: the registry kept the adapter, not the copy.
    let previous = registry.previous().unwrap();
    swap(&engine, &registry, &previous);
    assert_eq!(copies.built(), [1, 2, 3, 4, 3]);
}

#[test]
fn a_generation_without_a_copy_gets_one_while_its_requests_wait() {
    let (engine, copies) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    copies.change(|state| state.closed = true);
    let pinned = [2, 2].map(|n| engine.submit(greedy(&generation(n), 3)).unwrap());
    assert_eq!(engine.stats().waiting, 2);
    copies.change(|state| state.closed = false);
    copies.steps(100);
    for stream in pinned {
        assert_eq!(finish(stream).ids, [2; 3]);
    }
    assert_eq!(copies.built(), [1, 2], "one copy for both");
    // A stream ends a moment before its sequence gives its copy back.
    until("idle engine", || !engine.is_busy());

    // A third generation evicts the one that is idle, never the one that serves. A copy may take a moment
    // to be idle after its sequences ended.
    let mut third = None;
    until("room for a copy", || {
        third = engine.submit(greedy(&generation(3), 1)).ok();
        third.is_some()
    });
    assert_eq!(third.map(|stream| finish(stream).ids), Some(vec![3]));
    until("free copy", || copies.freed() == [2]);
}

#[test]
fn without_room_a_request_is_refused_and_nothing_is_counted() {
    let (engine, copies) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    let pinned = engine.submit(greedy(&generation(2), 3)).unwrap();
    copies.wait(|state| (state.built == [1, 2]).then_some(()));
    let refused = engine.submit(greedy(&generation(3), 1)).unwrap_err();
    assert!(
        matches!(refused, SubmitError::NoCopy { limit: 2, .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("engine.copies"), "{refused}");
    let error = engine.prepare(&generation(3), DO_NOT_WAIT).unwrap_err();
    assert!(matches!(error, PrepareError::NoRoom { .. }), "{error}");
    copies.steps(100);
    assert_eq!(finish(pinned).ids, [2; 3]);
    until("idle engine", || !engine.is_busy());
    // The copy that is prepared to serve next is not evicted. The one of the sequence that ended may
    // take a moment to go.
    let a_moment = |waited| waited < std::time::Duration::from_secs(10);
    engine.prepare(&generation(3), &a_moment).unwrap();
    let refused = engine.submit(greedy(&generation(4), 1)).unwrap_err();
    assert!(matches!(refused, SubmitError::NoCopy { .. }), "{refused}");
    // A candidate that was refused is.
    engine.release(&generation(3).id);
    let mut pinned = None;
    until("room for a copy", || {
        pinned = engine.submit(greedy(&generation(4), 1)).ok();
        pinned.is_some()
    });
    assert_eq!(pinned.map(|stream| finish(stream).ids), Some(vec![4]));
}

#[test]
fn a_copy_that_cannot_be_built_is_an_error_for_the_caller() {
    let (engine, copies) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    copies.change(|state| state.broken.push(2));
    let error = engine
        .prepare(&generation(2), DO_NOT_WAIT)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("000000000002") && error.contains("on fire"),
        "{error}"
    );
    let failed = finish(engine.submit(greedy(&generation(2), 1)).unwrap());
    assert!(failed.failed.unwrap().contains("on fire"));
    copies.steps(100);
    let serving = engine.submit(greedy(&generation(1), 2)).unwrap();
    assert_eq!(finish(serving).ids, [1, 1], "what served still does");
    assert!(!engine.is_busy());
    // There is room again.
    copies.change(|state| state.broken.clear());
    engine.prepare(&generation(2), DO_NOT_WAIT).unwrap();
}

#[test]
fn a_client_that_disconnects_and_a_shutdown_end_sequences() {
    let (engine, copies) = engine(2);
    let registry = Registry::new(generation(0), 4);
    swap(&engine, &registry, &generation(1));
    let gone = engine.submit(greedy(&generation(1), 1000)).unwrap();
    copies.steps(1);
    copies.wait(|state| (state.steps == 0).then_some(()));
    drop(gone);
    copies.steps(1);
    until("idle engine after the disconnect", || !engine.is_busy());

    let cut = engine.submit(greedy(&generation(1), 1000)).unwrap();
    copies.steps(3);
    copies.wait(|state| (state.steps == 0).then_some(()));
    copies.steps(1);
    std::thread::scope(|scope| {
        scope.spawn(|| engine.shutdown());
        let steps = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            copies.steps(1);
        });
        steps.join().unwrap();
    });
    let answer = finish(cut);
    assert!(answer.failed.unwrap().contains("shutting down"));
    let late = engine.submit(greedy(&generation(1), 1)).unwrap_err();
    assert_eq!(late, SubmitError::ShuttingDown);
}
