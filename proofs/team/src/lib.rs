//! Every interleaving of a small team, by loom: with the memory orderings that the code asks for, and
//! with reads and writes of the shared cells checked against each other.
#![cfg(test)]

mod sync;
#[path = "../../../src/cpu/team.rs"]
#[allow(dead_code)]
mod team;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use team::Team;

/// Explores all schedules with at most this many preemptions.
fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

#[test]
fn every_piece_runs_once_and_the_leader_waits_for_all() {
    explore(3, || {
        let mut team = Team::new(2).unwrap();
        for pieces in [2usize, 3] {
            let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            team.run(pieces, |_, piece| {
                counts[piece].fetch_add(1, Ordering::Relaxed);
            });
            // `run` returned: what the workers wrote is seen, and nothing is written any more.
            for count in &counts {
                assert_eq!(count.load(Ordering::Relaxed), 1);
            }
        }
    });
}

#[test]
fn three_threads_share_a_section() {
    explore(2, || {
        let sum = Arc::new(AtomicUsize::new(0));
        let mut team = Team::new(3).unwrap();
        let shared = sum.clone();
        team.run(2, move |_, piece| {
            shared.fetch_add(piece + 1, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn a_team_that_did_nothing_ends() {
    explore(4, || drop(Team::new(2).unwrap()));
}
