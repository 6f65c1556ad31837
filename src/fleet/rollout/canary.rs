//! The stage in which a share of the requests gets the next generation.

use super::durable::{Cause, Rollout, Stage};
use super::{Core, Release};
use crate::canary::{Trial, Verdict};

impl Core {
    /// Whether the release that has passed its probe is given to a share of the requests first. Where
    /// nothing serves there is nothing to compare with; what served before the current one is known
    /// already, and going back to it must not take long.
    pub(super) fn wants_canary(&self) -> bool {
        let durable = &self.durable;
        let to = durable.rollout.as_ref().map(|r| &r.to);
        let goes_back = match (&durable.previous, to) {
            (Some(previous), Some(to)) => previous.is_same(to),
            _ => false,
        };
        durable.current.is_some() && !goes_back && !self.rules.canary.shares.is_empty()
    }

    pub(super) fn begin_canary(&mut self, now: u64) {
        let Some(share) = self.rules.canary.after(0) else {
            return;
        };
        if let Some(rollout) = &mut self.durable.rollout {
            rollout.stage = Stage::Canary;
            rollout.share = share;
            self.trial = Some(Trial::new(&rollout.to.generation, share, now));
        }
    }

    /// Goes on to the next share, or back, if what was seen says so. Whether all requests may be switched.
    pub(super) fn canary(&mut self, rollout: &Rollout, now: u64) -> bool {
        let generation = &rollout.to.generation;
        // A process that begins in the middle of a canary compares anew, with the same share.
        let trial = match &mut self.trial {
            Some(trial) if trial.is_of(generation) => trial,
            other => other.insert(Trial::new(generation, rollout.share, now)),
        };
        let is_paused = self.durable.paused.is_some();
        if is_paused {
            // Going back is not paused, but waiting for requests is.
            trial.restart_clock(now);
        }
        match trial.verdict(now, &self.rules.canary) {
            Verdict::Back(why) => {
                self.give_up(why, Cause::Canary, "back");
                false
            }
            Verdict::Wait => false,
            Verdict::On if is_paused => false,
            Verdict::On => match self.rules.canary.after(rollout.share) {
                Some(share) => {
                    trial.widen(share, now);
                    if let Some(rollout) = &mut self.durable.rollout {
                        rollout.share = share;
                    }
                    false
                }
                None => self.barrier(rollout, |place, rules| place.is_ready(&rollout.to, rules)),
            },
        }
    }

    /// A rollout ended before its switch, for something that is published.
    pub(super) fn left(&mut self, rollout: Option<Rollout>, why: &str) {
        let Some(rollout) = rollout.filter(|r| r.stage < Stage::Drain) else {
            return;
        };
        self.trial = None;
        if rollout.stage == Stage::Canary {
            // Requests may hold it still.
            self.leases_known = false;
            self.note("leave", Some(&rollout.to), why);
        }
    }

    /// What should serve waits for the end of the pause.
    pub(super) fn wait(&mut self, release: Release) {
        let by = self
            .durable
            .paused
            .as_ref()
            .map_or("?", |hold| hold.by.as_str());
        self.ignored = Some(format!(
            "epoch {} (generation {}) waits: rollouts were paused by {by}",
            release.epoch, release.generation
        ));
        self.waiting = Some(release);
    }
}
