//! A simulation of the control loop: schedules of operations and faults from a seed, against the real
//! decisions, with a disk, a clock, a judge and a trainer that do as the schedule says. After each
//! step, what is so is compared with a small model of its own.
//!
//! `REALIGN_SIMULATIONS=100000` runs so many schedules; `REALIGN_SIMULATION_SEED=7` runs one.

mod convergence;
mod faults;
mod model;
mod outside;
mod policies;
mod process;
mod schedule;
mod shown;
mod steps;
mod tests;

use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use faults::Fault;
use model::Model;
use outside::Outside;
use policies::Files;
use process::Process;
use realign_core::supervision::panic_message;
use schedule::{Step, schedule};

/// What became of a realignment's swap.
enum Swapped {
    Done,
    Pinned,
    Failed,
}

/// One schedule in progress.
struct Simulation {
    outside: Arc<Outside>,
    /// `None` only between two processes.
    process: Option<Process>,
    model: Model,
    /// What the running realignment's swap came to.
    swapped: Option<Swapped>,
    /// The policy directory while it is away.
    away: Option<Files>,
    /// Whether a generation was left because it computes no numbers: nothing trains it again.
    left: bool,
    /// Whether the last realignment failed for a reason that may pass.
    hindered: bool,
    /// What was so after each step: equal schedules leave equal traces.
    trace: DefaultHasher,
}

impl Simulation {
    fn new() -> Result<Self, String> {
        let (base, base_hash) = process::base();
        let outside = Outside::new(base, base_hash);
        let mut simulation = Self {
            model: Model::new(&outside),
            outside,
            process: None,
            swapped: None,
            away: None,
            left: false,
            hindered: false,
            trace: DefaultHasher::new(),
        };
        simulation.start(None)?;
        Ok(simulation)
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a process runs")
    }

    /// Drops the process and starts another one, whose first writes meet a fault.
    fn start(&mut self, fault: Option<Fault>) -> Result<(), String> {
        self.process = None;
        self.swapped = None;
        self.outside.end_job();
        self.outside.arm(fault);
        let mut process = Process::start(&self.outside);
        if self.outside.is_dead() {
            self.outside.kill();
            drop(process);
            self.outside.arm(None);
            process = Process::start(&self.outside);
        }
        self.model.restarted(&self.outside, &process)?;
        self.model.clearing = false;
        self.process = Some(process);
        Ok(())
    }

    fn run(&mut self, steps: &[Step], at: &mut usize) -> Result<(), String> {
        for (number, step) in steps.iter().enumerate() {
            *at = number;
            self.step(*step)?;
        }
        *at = steps.len();
        self.converge()
    }
}

/// Runs a schedule; returns a digest of what was so after each step.
///
/// # Errors
/// What should not be so, the steps that led to it, and how to run them again.
fn simulate(seed: u64) -> Result<u64, String> {
    let steps = schedule(seed);
    check(&steps).map_err(|(why, at)| {
        let mut text = format!("{why}\n");
        for (number, step) in steps.iter().enumerate().take(at + 1) {
            let _infallible = writeln!(text, "{number:3} {:?} {:?}", step.op, step.fault);
        }
        if at == steps.len() {
            text += "then all troubles end, and time passes\n";
        }
        let command = "cargo test --locked -p realign-server --lib simulation";
        format!("{text}again: REALIGN_SIMULATION_SEED={seed} {command}")
    })
}

/// Runs steps, as [`simulate`]; fails with what should not be so, after which step.
fn check(steps: &[Step]) -> Result<u64, (String, usize)> {
    let mut at = 0;
    let run = || {
        let mut simulation = Simulation::new()?;
        simulation.run(steps, &mut at)?;
        Ok(simulation.trace.finish())
    };
    let result = catch_unwind(AssertUnwindSafe(run));
    result
        .unwrap_or_else(|panic| Err(format!("panic: {}", panic_message(&*panic))))
        .map_err(|why| (why, at))
}
