//! A share of the requests first.

use std::collections::BTreeSet;

use super::requests::order;
use super::world::World;
use super::{release, rules};
use crate::canary::{CanaryRules, Observation, Seen, Unit};
use crate::rollout::{Cause, Command, Core, Durable, Event, OnFailure, Release, Rules, Stage};

fn world() -> World {
    let rules = Rules {
        canary: CanaryRules {
            shares: vec![500, 5000],
            min_requests: 100,
            min_ms: 1000,
            max_ms: 60_000,
        },
        ..rules(OnFailure::Exclude)
    };
    let mut world = World::new(2, Core::new(rules, Durable::default()));
    world.event(Event::Desired(release(1, 1)));
    world.settle();
    assert_eq!(
        world.durable().current,
        Some(release(1, 1)),
        "the first one has nothing to be compared with"
    );
    world
}

fn stage(world: &World) -> Option<(Stage, u16)> {
    world.durable().rollout.map(|r| (r.stage, r.share))
}

/// Requests come, of which the next generation fails this share.
fn requests(world: &mut World, count: u64, failing: u64) {
    let canary = world.core().view().canary.unwrap();
    for n in 0..count {
        let view = world.core().view();
        let unit = Unit::of_request(n);
        let of_candidate = view.choices(unit).next() == Some(&canary.release);
        world.observed.push(Observation {
            candidate: canary.release.generation.clone(),
            share: canary.share,
            of_candidate,
            key: None,
            seen: Seen::Answer {
                failed: Some(of_candidate && n % 100 < failing),
                first_byte_ms: Some(100),
            },
        });
    }
    world.wait(1);
}

/// How many of many conversations get a release.
fn share_of(world: &World, release: &Release) -> usize {
    let view = world.core().view();
    let units = (0..10_000).map(|n| Unit::of_key(&format!("user-{n}")));
    units
        .filter(|unit| view.choices(*unit).next() == Some(release))
        .count()
}

#[test]
fn a_good_generation_goes_through_step_by_step() {
    let mut world = world();
    world.event(Event::Desired(release(2, 2)));
    world.settle();
    assert_eq!(stage(&world), Some((Stage::Canary, 500)));
    assert!((400..600).contains(&share_of(&world, &release(2, 2))));
    assert_eq!(world.durable().current, Some(release(1, 1)));
    world.wait(2000);
    assert_eq!(
        stage(&world),
        Some((Stage::Canary, 500)),
        "without requests nothing is known"
    );
    requests(&mut world, 4000, 0);
    assert_eq!(stage(&world), Some((Stage::Canary, 5000)));
    assert!((4800..5200).contains(&share_of(&world, &release(2, 2))));
    requests(&mut world, 1000, 0);
    assert_eq!(
        stage(&world),
        Some((Stage::Canary, 5000)),
        "a step takes its time"
    );
    // A kill keeps the share; what was seen is forgotten.
    world.kill();
    world.settle();
    assert_eq!(stage(&world), Some((Stage::Canary, 5000)));
    assert!((4800..5200).contains(&share_of(&world, &release(2, 2))));
    requests(&mut world, 1000, 0);
    world.wait(2000);
    world.settle();
    assert_eq!(world.durable().current, Some(release(2, 2)));
    assert_eq!(
        (stage(&world), share_of(&world, &release(2, 2))),
        (None, 10_000)
    );
    // Back to the one before, at once.
    world.event(Event::Desired(release(3, 1)));
    assert_eq!(world.durable().current, Some(release(3, 1)));
}

#[test]
fn a_generation_that_fails_goes_back_and_nothing_gets_it_any_more() {
    let mut world = world();
    world.event(Event::Desired(release(2, 2)));
    world.settle();
    world.hold(BTreeSet::from([release(2, 2).generation]));
    requests(&mut world, 500, 50);
    let refused = world.durable().refused.unwrap();
    assert_eq!(
        (refused.cause, refused.release),
        (Cause::Canary, release(2, 2))
    );
    assert!(refused.why.contains("errors"), "{}", refused.why);
    assert_eq!(share_of(&world, &release(2, 2)), 0);
    let second = format!("m@{}", release(2, 2).generation);
    let is_loaded = |world: &World| {
        world
            .ids()
            .iter()
            .any(|id| world.loaded(id).contains(&second))
    };
    world.settle();
    assert!(is_loaded(&world), "requests hold it");
    world.hold(BTreeSet::new());
    world.settle();
    assert!(!is_loaded(&world));
    let last = world.durable().history.pop().unwrap();
    assert_eq!((&*last.act, &*last.by), ("back", "gateway"));
    // It is not begun again by itself, but the next one is.
    world.event(Event::Desired(release(3, 2)));
    world.settle();
    assert_eq!(stage(&world), None);
    world.event(Event::Desired(release(4, 3)));
    world.settle();
    assert_eq!(stage(&world), Some((Stage::Canary, 500)));
}

#[test]
fn a_pause_holds_the_share_but_not_the_way_back() {
    let mut world = world();
    world.event(Event::Desired(release(2, 2)));
    world.settle();
    world.event(Event::Order(order(Command::Pause)));
    requests(&mut world, 4000, 0);
    world.wait(120_000);
    world.settle();
    assert_eq!(stage(&world), Some((Stage::Canary, 500)));
    world.event(Event::Order(order(Command::Resume)));
    world.wait(2000);
    assert_eq!(stage(&world), Some((Stage::Canary, 5000)));
    world.event(Event::Order(order(Command::Pause)));
    requests(&mut world, 500, 50);
    assert_eq!(stage(&world), None);
    assert_eq!(world.durable().refused.unwrap().cause, Cause::Canary);
}

#[test]
fn too_few_requests_and_another_release_end_a_canary() {
    let mut world = world();
    world.event(Event::Desired(release(2, 2)));
    world.settle();
    world.wait(61_000);
    let refused = world.durable().refused.unwrap();
    assert!(refused.why.contains("too few requests"), "{}", refused.why);
    world.event(Event::Desired(release(3, 3)));
    world.settle();
    world.event(Event::Desired(release(4, 4)));
    world.settle();
    assert_eq!(stage(&world), Some((Stage::Canary, 500)));
    assert_eq!(world.durable().rollout.unwrap().to, release(4, 4));
    let acts: Vec<String> = world.durable().history.into_iter().map(|e| e.act).collect();
    assert_eq!(acts, ["switch", "back", "leave"]);
    // The store goes back to what serves.
    world.event(Event::Desired(release(5, 1)));
    world.settle();
    assert_eq!((stage(&world), share_of(&world, &release(4, 4))), (None, 0));
    assert!(world.ids().iter().all(|id| world.loaded(id).len() == 1));
}
