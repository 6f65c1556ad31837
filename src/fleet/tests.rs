//! The core by itself: what it decides step by step, and in many schedules with faults.

mod canary;
mod orders;
mod requests;
mod simulation;
mod world;

use std::collections::BTreeSet;

use crate::canary::CanaryRules;
use crate::rollout::{Core, Durable, Event, OnFailure, Release, Rules, Stage, Work};
use crate::target::TargetError;
use world::World;

pub(crate) fn release(epoch: u64, n: u64) -> Release {
    Release {
        epoch,
        generation: format!("{n:012x}"),
        is_base: n == 0,
    }
}

pub(crate) fn rules(on_failure: OnFailure) -> Rules {
    Rules {
        name: "m".into(),
        adapters_path: "/adapters".into(),
        on_failure,
        max_skew_epochs: 1,
        max_request_ms: 5000,
        look_ms: 1000,
        attempts: 3,
        canary: CanaryRules::default(),
    }
}

fn world(targets: usize, on_failure: OnFailure) -> World {
    World::new(targets, Core::new(rules(on_failure), Durable::default()))
}

#[test]
fn a_rollout_loads_probes_switches_drains_and_unloads() {
    let mut world = world(3, OnFailure::Exclude);
    world.event(Event::Desired(release(1, 0)));
    world.settle();
    assert_eq!(
        world.durable().current,
        Some(release(1, 0)),
        "the base needs no adapter"
    );
    for n in 1..=4 {
        world.event(Event::Desired(release(n + 1, n)));
        world.settle();
        let durable = world.durable();
        assert_eq!(durable.current, Some(release(n + 1, n)));
        assert_eq!(durable.previous, Some(release(n, n - 1)));
        assert_eq!(durable.rollout, None);
        for id in world.ids() {
            let kept: BTreeSet<String> = (n.saturating_sub(1).max(1)..=n)
                .map(|n| format!("m@{n:012x}"))
                .collect();
            assert_eq!(world.loaded(&id), kept, "current and previous");
        }
    }
    // Going back needs no loading: what served before is kept.
    world.event(Event::Desired(release(6, 3)));
    let back = world.durable();
    assert_eq!(
        (back.current, back.previous),
        (Some(release(6, 3)), Some(release(5, 4)))
    );
}

#[test]
fn nothing_is_switched_before_every_target_that_answers_has_answered_by_it() {
    let mut world = world(3, OnFailure::Exclude);
    world.event(Event::Desired(release(1, 1)));
    world.settle();
    world.event(Event::Desired(release(2, 2)));
    let late = world.ids()[1].clone();
    while let Some(at) = world.next_but(&late) {
        world.finish(at, None);
        assert_eq!(world.durable().current, Some(release(1, 1)));
    }
    let rollout = world.durable().rollout.unwrap();
    assert_eq!(rollout.stage, Stage::Load, "one of three is missing");
    world.settle();
    assert_eq!(world.durable().current, Some(release(2, 2)));
}

#[test]
fn a_target_that_cannot_is_left_out_or_ends_the_rollout() {
    for (on_failure, bad, switches) in [
        (OnFailure::Exclude, 1, true),
        (OnFailure::Exclude, 2, false),
        (OnFailure::Abort, 1, false),
    ] {
        let mut world = world(3, on_failure);
        world.event(Event::Desired(release(1, 1)));
        world.settle();
        for id in world.ids().into_iter().take(bad) {
            world.refuse(&id, &release(2, 2).generation);
        }
        world.event(Event::Desired(release(2, 2)));
        world.settle();
        let durable = world.durable();
        let serves = if switches {
            release(2, 2)
        } else {
            release(1, 1)
        };
        assert_eq!(durable.current, Some(serves), "{on_failure:?}, {bad} bad");
        assert_eq!(durable.refused.is_some(), !switches);
        let view = world.core().view();
        let now = view.current.unwrap().generation;
        let in_pool = view
            .seats
            .iter()
            .filter(|s| s.models.contains_key(&now))
            .count();
        assert_eq!(in_pool, if switches { 3 - bad } else { 3 });
        if !switches {
            let surplus = format!("m@{}", release(2, 2).generation);
            assert!(
                world
                    .ids()
                    .iter()
                    .all(|id| !world.loaded(id).contains(&surplus))
            );
            // The same publication is not tried again; the next one is.
            world.event(Event::Desired(release(2, 2)));
            assert!(world.durable().rollout.is_none());
            world.mend();
            world.event(Event::Desired(release(3, 2)));
            world.settle();
            assert_eq!(world.durable().current, Some(release(3, 2)));
        }
    }
}

#[test]
fn a_target_that_restarts_gets_no_traffic_before_it_has_what_serves() {
    let mut world = world(2, OnFailure::Exclude);
    world.event(Event::Desired(release(1, 1)));
    world.settle();
    let id = world.ids()[0].clone();
    world.restart(&id);
    world.event(Event::Suspect(id.clone()));
    let in_pool = |world: &World| {
        let status = world.core().targets();
        status.into_iter().find(|s| s.target == id).unwrap().in_pool
    };
    assert!(!in_pool(&world));
    world.settle();
    assert!(in_pool(&world) && world.loaded(&id).len() == 1);
    // Without a request that notices, the next look does.
    world.restart(&id);
    world.wait(1000);
    world.settle();
    assert!(in_pool(&world) && world.loaded(&id).len() == 1);
}

#[test]
fn requests_keep_what_they_hold_until_the_limit() {
    let mut world = world(1, OnFailure::Exclude);
    for n in 1..=2 {
        world.event(Event::Desired(release(n, n)));
        world.settle();
    }
    let held = BTreeSet::from([release(1, 1).generation]);
    world.hold(held.clone());
    world.event(Event::Desired(release(3, 3)));
    world.settle();
    let id = world.ids()[0].clone();
    let first = format!("m@{}", release(1, 1).generation);
    assert_eq!(world.durable().current, Some(release(3, 3)));
    assert_eq!(world.durable().rollout.unwrap().stage, Stage::Drain);
    assert!(world.loaded(&id).contains(&first));
    world.wait(5000);
    world.settle();
    assert!(world.durable().rollout.is_none() && !world.loaded(&id).contains(&first));
}

#[test]
fn a_name_that_means_something_else_is_not_taken_over() {
    let mut world = world(3, OnFailure::Exclude);
    let id = world.ids()[2].clone();
    let name = format!("m@{}", release(1, 1).generation);
    world.occupy(&id, &name, "/elsewhere");
    world.event(Event::Desired(release(1, 1)));
    world.settle();
    let excluded = world.core().targets();
    let status = excluded.into_iter().find(|s| s.target == id).unwrap();
    assert!(!status.in_pool, "{status:?}");
    assert_eq!(world.path(&id, &name), "/elsewhere");
    assert_eq!(world.durable().current, Some(release(1, 1)));
}

#[test]
fn the_newest_release_wins_and_an_epoch_that_goes_back_is_not_followed() {
    let mut world = world(2, OnFailure::Exclude);
    world.event(Event::Desired(release(5, 1)));
    world.settle();
    world.event(Event::Desired(release(6, 2)));
    world.event(Event::Desired(release(7, 3)));
    world.settle();
    assert_eq!(world.durable().current, Some(release(7, 3)));
    assert_eq!(world.durable().previous, Some(release(5, 1)));
    world.event(Event::Desired(release(6, 2)));
    world.settle();
    assert_eq!(world.durable().current, Some(release(7, 3)));
    assert!(world.core().ignored().unwrap().contains("went back"));
    // The same content of a new publication is not rolled out again.
    world.event(Event::Desired(release(8, 3)));
    assert_eq!(world.durable().current, Some(release(8, 3)));
    assert!(world.durable().rollout.is_none());
}

#[test]
fn a_fallback_is_within_the_skew() {
    let mut world = world(1, OnFailure::Exclude);
    for (epoch, n) in [(1, 1), (2, 2), (9, 3)] {
        world.event(Event::Desired(release(epoch, n)));
        world.settle();
        let fallback = world.core().view().fallback;
        assert_eq!(fallback.is_some(), epoch == 2, "epoch {epoch}");
    }
}

#[test]
fn work_that_was_lost_is_done_again_and_counts_as_an_attempt() {
    let mut world = world(1, OnFailure::Abort);
    world.event(Event::Desired(release(1, 1)));
    let lost = || Some(TargetError::Unreachable("timeout".into()));
    let at = world.first(|work| matches!(work, Work::Load { .. }));
    world.finish(at, lost());
    let at = world.first(|work| matches!(work, Work::Probe { .. }));
    world.finish(at, lost());
    world.settle();
    assert_eq!(world.durable().current, Some(release(1, 1)));
}
