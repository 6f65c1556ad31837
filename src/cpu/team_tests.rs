//! Teams on real threads; `proofs/team` explores their interleavings.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::team::{Shards, Team};

#[test]
fn every_piece_runs_once_whatever_the_team() {
    for threads in [1, 2, 5] {
        let mut team = Team::new(threads).unwrap();
        for pieces in [0usize, 1, 2, 7, 300] {
            let mut counts = vec![0u8; pieces];
            let shards = Shards::new(&mut counts);
            // SAFETY: every piece is claimed once, so parts are disjoint.
            team.run(pieces, |_, piece| unsafe { shards.part(piece, 1)[0] += 1 });
            assert!(
                counts.iter().all(|c| *c == 1),
                "{threads} threads, {pieces}"
            );
        }
    }
}

#[test]
fn a_team_that_slept_wakes_and_thousands_of_sections_pass() {
    let mut team = Team::new(3).unwrap();
    let sum = AtomicUsize::new(0);
    for round in 0..3000 {
        if round % 1000 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        team.run(4, |_, piece| {
            sum.fetch_add(piece, Ordering::Relaxed);
        });
    }
    assert_eq!(sum.into_inner(), 3000 * 6);
}

#[test]
fn a_panic_in_a_section_reaches_the_leader_and_the_team_goes_on() {
    let mut team = Team::new(2).unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        team.run(64, |_, piece| assert_ne!(piece, 40, "on purpose"));
    }));
    assert!(outcome.is_err());
    team.run(2, |_, _| {});
}
