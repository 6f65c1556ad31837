//! What a rollout tells the log, and the crash points.

use crate::canary::WHOLE;
use crate::rollout::{Durable, Entry, Rollout, Stage};

/// Where a rollout stands, as a crash point names it.
pub(crate) fn stage(durable: &Durable) -> &'static str {
    durable
        .rollout
        .as_ref()
        .map_or("idle", |r| r.stage.as_str())
}

pub(crate) fn announce(before: &Durable, after: &Durable) {
    let rollout = after.rollout.as_ref();
    if let Some(current) = after
        .current
        .as_ref()
        .filter(|c| Some(*c) != before.current.as_ref())
    {
        tracing::info!(
            epoch = current.epoch,
            generation = current.generation,
            "it serves"
        );
    }
    if let Some(refused) = after
        .refused
        .as_ref()
        .filter(|r| Some(*r) != before.refused.as_ref())
    {
        let why = &refused.why;
        tracing::error!(
            epoch = refused.release.epoch,
            why,
            "a rollout was given up; what serves stays"
        );
    }
    let place = |r: &Rollout| (r.to.epoch, r.stage, r.share);
    let before_it = before.rollout.as_ref().map(place);
    if let Some(rollout) = rollout.filter(|r| before_it != Some(place(r))) {
        let (epoch, excluded) = (rollout.to.epoch, rollout.excluded.len());
        let share = f64::from(rollout.share) / f64::from(WHOLE);
        tracing::info!(
            epoch,
            stage = rollout.stage.as_str(),
            share,
            excluded,
            "rollout"
        );
    }
    if rollout.is_none() && before_it.is_some_and(|(_, stage, _)| stage == Stage::Unload) {
        tracing::info!("rollout: done");
    }
    let known = before.history.last();
    for entry in after.history.iter().rev().take_while(|e| Some(*e) != known) {
        let generation = entry.release.as_ref().map(|r| r.generation.as_str());
        let Entry { by, act, why, .. } = entry;
        tracing::info!(by, act, generation, why, "rollout history");
    }
}
