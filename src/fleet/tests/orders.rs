//! What operators order.

use super::requests::order;
use super::world::World;
use super::{release, world};
use crate::rollout::{Cause, Command, Event, OnFailure, Stage, Work};

impl World {
    fn order(&mut self, command: Command) {
        let order = order(command);
        self.core().may(&order).unwrap();
        self.event(Event::Order(order));
    }

    fn refusal(&self, command: Command) -> String {
        self.core().may(&order(command)).unwrap_err()
    }

    /// The acts in the history that are no switches.
    fn acts(&self) -> Vec<String> {
        let history = self.durable().history;
        let acts = history.into_iter().map(|e| e.act);
        acts.filter(|act| act != "switch").collect()
    }
}

#[test]
fn a_pause_stops_a_rollout_before_its_next_stage_and_outlives_a_kill() {
    let mut world = world(2, OnFailure::Exclude);
    world.event(Event::Desired(release(1, 1)));
    world.settle();
    world.event(Event::Desired(release(2, 2)));
    world.order(Command::Pause);
    world.settle();
    let stage = |world: &World| world.durable().rollout.map(|r| r.stage);
    assert_eq!(
        stage(&world),
        Some(Stage::Load),
        "it is loaded, and not probed"
    );
    assert_eq!(world.durable().current, Some(release(1, 1)));
    world.kill();
    world.settle();
    assert_eq!(stage(&world), Some(Stage::Load));
    let hold = world.durable().paused.unwrap();
    assert_eq!((&*hold.by, &*hold.why, hold.at), ("op", "a test", 1));
    assert!(
        world
            .refusal(Command::Pause)
            .contains("already, by op: a test")
    );
    assert!(
        world
            .refusal(Command::Rollout)
            .contains("resume them first")
    );
    // What comes meanwhile waits, and is said to.
    world.event(Event::Desired(release(3, 3)));
    world.settle();
    assert_eq!(world.durable().rollout.unwrap().to, release(2, 2));
    assert!(world.core().ignored().unwrap().contains("waits"));
    world.order(Command::Resume);
    assert_eq!(world.durable().rollout.unwrap().to, release(3, 3));
    world.settle();
    assert_eq!(world.durable().current, Some(release(3, 3)));
    assert_eq!(world.core().ignored(), None);
    assert!(world.refusal(Command::Resume).contains("not paused"));
    assert_eq!(world.acts(), ["pause", "resume"]);
}

#[test]
fn what_was_aborted_is_unloaded_and_not_begun_again_by_itself() {
    let mut world = world(2, OnFailure::Exclude);
    world.event(Event::Desired(release(1, 1)));
    world.settle();
    assert!(world.refusal(Command::Abort).contains("nothing to abort"));
    assert!(
        world
            .refusal(Command::Rollout)
            .contains("nothing was given up")
    );
    world.event(Event::Desired(release(2, 2)));
    let at = world.first(|work| matches!(work, Work::Probe { .. }));
    world.finish(at, None);
    world.order(Command::Abort);
    world.settle();
    let refused = world.durable().refused.unwrap();
    assert_eq!(
        (refused.cause, &refused.release),
        (Cause::Aborted, &release(2, 2))
    );
    assert_eq!(refused.why, "aborted by op: a test");
    let second = format!("m@{}", release(2, 2).generation);
    let is_loaded = |world: &World| {
        world
            .ids()
            .iter()
            .any(|id| world.loaded(id).contains(&second))
    };
    assert!(!is_loaded(&world), "what was loaded for it is unloaded");
    // Neither again, nor under another epoch, nor after a kill.
    for epoch in [2, 3] {
        world.event(Event::Desired(release(epoch, 2)));
        world.kill();
        world.event(Event::Desired(release(epoch, 2)));
        world.settle();
        assert!(world.durable().rollout.is_none() && !is_loaded(&world));
        assert_eq!(world.durable().current, Some(release(1, 1)));
    }
    let mut other = order(Command::Rollout);
    other.generation = Some(release(0, 9).generation);
    assert!(world.core().may(&other).unwrap_err().contains("was meant"));
    world.order(Command::Rollout);
    assert!(world.refusal(Command::Rollout).contains("under way"));
    world.settle();
    assert_eq!(world.durable().current, Some(release(3, 2)));
    assert_eq!(world.acts(), ["abort", "rollout"]);
}

#[test]
fn what_serves_cannot_be_aborted_and_another_release_goes_on() {
    let mut world = world(1, OnFailure::Exclude);
    world.event(Event::Desired(release(1, 1)));
    world.settle();
    world.event(Event::Desired(release(2, 2)));
    world.order(Command::Abort);
    world.event(Event::Desired(release(3, 3)));
    world.hold([release(1, 1).generation].into());
    while world
        .durable()
        .rollout
        .is_none_or(|r| r.stage < Stage::Drain)
    {
        let at = world.first(|_| true);
        world.finish(at, None);
    }
    assert_eq!(world.durable().current, Some(release(3, 3)));
    assert!(
        world
            .refusal(Command::Abort)
            .contains("has switched already")
    );
}
