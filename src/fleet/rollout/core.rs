//! Decides.

use std::collections::{BTreeMap, BTreeSet};

use super::durable::{Cause, Durable, Refused, Release, Rollout, Stage};
use super::event::{Event, OnFailure, Rules, Step};
use super::seats::Place;
use crate::canary::Trial;
use crate::target::TargetId;

/// A fleet as it is known.
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) rules: Rules,
    pub(super) durable: Durable,
    pub(super) places: BTreeMap<TargetId, Place>,
    /// Since when answers of earlier generations are waited for.
    drained_from: Option<u64>,
    /// Generations that requests hold.
    leased: BTreeSet<String>,
    /// Whether that was asked since requests got something else.
    pub(super) leases_known: bool,
    /// The comparison of the canary under way.
    pub(super) trial: Option<Trial>,
    /// What should serve, and waits for the end of a pause.
    pub(super) waiting: Option<Release>,
    /// The time of day when it was last heard of.
    pub(super) clock: u64,
    /// Why what was desired last is not followed, if so.
    pub(super) ignored: Option<String>,
}

impl Core {
    /// A fleet of which nothing is known but what an earlier process wrote.
    pub fn new(rules: Rules, durable: Durable) -> Self {
        Self {
            rules,
            durable,
            places: BTreeMap::new(),
            drained_from: None,
            leased: BTreeSet::new(),
            leases_known: false,
            trial: None,
            waiting: None,
            clock: 0,
            ignored: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The targets that are known to answer.
    #[cfg(test)]
    pub(crate) fn answering(&self) -> Vec<TargetId> {
        let places = self.places.iter();
        let answering = places.filter(|(_, place)| place.listing.is_some());
        answering.map(|(id, _)| id.clone()).collect()
    }

    /// What must outlive the process.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// What follows from an event at this time, in milliseconds.
    pub fn step(&self, now: u64, event: Event) -> Step {
        let mut next = self.clone();
        next.take(now, event);
        next.advance(now);
        let work = next.assign(now);
        next.durable.format = Durable::FORMAT;
        Step { core: next, work }
    }

    fn take(&mut self, now: u64, event: Event) {
        match event {
            Event::Desired(release) => self.desire(release),
            Event::Targets(all) => {
                self.places.retain(|id, _| all.contains(id));
                for id in all {
                    self.places.entry(id).or_default();
                }
            }
            Event::Done(id, work, result) => {
                let place = self.places.get_mut(&id);
                // Work of a target that went and came back is not this target's.
                if let Some(place) = place.filter(|p| p.busy.as_ref() == Some(&work)) {
                    place.done(&work, &result, (now, &self.rules));
                }
            }
            Event::Suspect(id) => {
                if let Some(place) = self.places.get_mut(&id) {
                    place.lose(
                        "a request found it gone, or without its adapter".into(),
                        now,
                    );
                }
            }
            Event::Tick(heard) => {
                self.leased = heard.leased;
                self.leases_known = true;
                self.clock = heard.at;
                if let Some(trial) = &mut self.trial {
                    heard.observed.iter().for_each(|seen| trial.see(seen));
                }
            }
            Event::Order(order) => self.order(now, order),
        }
    }

    fn desire(&mut self, release: Release) {
        let durable = &mut self.durable;
        self.ignored = None;
        self.waiting = None;
        if let Some(current) = &mut durable.current {
            if current.epoch > release.epoch {
                self.ignored = Some(format!(
                    "what should serve went back from epoch {} to {}, which no controller does: the \
                     store was restored or changed by hand; remove the gateway's state to follow it",
                    current.epoch, release.epoch
                ));
                return;
            }
            if current.is_same(&release) {
                current.epoch = release.epoch;
                let coming = |r: &mut Rollout| r.stage < Stage::Drain;
                let left = durable.rollout.take_if(coming);
                durable.refused = None;
                self.left(left, "the store names what serves again");
                return;
            }
        }
        if let Some(refused) = durable.refused.as_mut().filter(|r| r.holds(&release)) {
            refused.release.epoch = release.epoch;
            return;
        }
        match &mut durable.rollout {
            // What should serve is said again and again.
            Some(under_way) if under_way.stage < Stage::Drain && under_way.to.is_same(&release) => {
                under_way.to.epoch = release.epoch;
            }
            _ if durable.paused.is_some() => self.wait(release),
            // The newest release wins.
            _ => self.start(release),
        }
    }

    /// Begins a rollout. What failed before may have been mended since.
    pub(super) fn start(&mut self, release: Release) {
        for place in self.places.values_mut() {
            place.failures.remove(&release.generation);
        }
        let rollout = Rollout {
            to: release,
            stage: Stage::Load,
            share: 0,
            excluded: BTreeMap::new(),
        };
        let before = self.durable.rollout.replace(rollout);
        self.left(before, "a newer release came");
    }

    /// Takes every step that what is known allows.
    fn advance(&mut self, now: u64) {
        while let Some(rollout) = self.durable.rollout.clone() {
            let went_on = match rollout.stage {
                Stage::Load => self.barrier(&rollout, |place, rules| place.has(&rollout.to, rules)),
                Stage::Probe => {
                    self.barrier(&rollout, |place, rules| place.is_ready(&rollout.to, rules))
                }
                Stage::Canary => self.canary(&rollout, now),
                Stage::Drain => self.is_drained(now),
                Stage::Unload => self.is_unloaded(),
            };
            if !went_on || self.durable.paused.is_some() {
                break;
            }
            self.go_on(now);
        }
    }

    /// Whether every target that answers is as far as `is_there` says. Excludes those that cannot
    /// get there, or gives the rollout up.
    pub(super) fn barrier(
        &mut self,
        rollout: &Rollout,
        is_there: impl Fn(&Place, &Rules) -> bool,
    ) -> bool {
        let to = &rollout.to.generation;
        let mut excluded = rollout.excluded.clone();
        let mut waits = self.places.is_empty();
        let (mut there, mut new) = (0, false);
        for (id, place) in &self.places {
            if excluded.contains_key(id) {
                continue;
            }
            if is_there(place, &self.rules) {
                there += 1;
            } else if let Some(why) = place.is_unable(to, &self.rules) {
                excluded.insert(id.clone(), why.to_owned());
                new = true;
            } else {
                // One that has not been asked yet may be there.
                waits |= place.listing.is_some() || !place.asked;
            }
        }
        if new {
            let text = |(id, why): (&TargetId, &String)| format!("{id}: {why}");
            let why: Vec<String> = excluded.iter().map(text).collect();
            let known = |id: &&TargetId| self.places.contains_key(id);
            let out = excluded.keys().filter(known).count();
            let answering = self.places.values().filter(|p| p.listing.is_some()).count();
            if self.rules.on_failure == OnFailure::Abort || out * 2 > answering.max(1) {
                self.give_up(why.join("; "), Cause::Failed, "give up");
                return false;
            }
            if let Some(rollout) = &mut self.durable.rollout {
                rollout.excluded = excluded;
            }
        }
        !waits && there > 0
    }

    /// Ends the rollout; what serves goes on to serve.
    pub(super) fn give_up(&mut self, why: String, cause: Cause, act: &str) {
        let Some(rollout) = self.durable.rollout.take() else {
            return;
        };
        self.trial = None;
        // Requests may hold it still.
        self.leases_known = false;
        let release = rollout.to;
        if cause != Cause::Aborted {
            self.note(act, Some(&release), &why);
        }
        self.durable.refused = Some(Refused {
            release,
            why,
            cause,
        });
    }

    fn is_drained(&mut self, now: u64) -> bool {
        let from = *self.drained_from.get_or_insert(now);
        let current = self.durable.current.as_ref().map(|c| &c.generation);
        if !self.leases_known {
            return false;
        }
        let earlier = self.leased.iter().any(|held| Some(held) != current);
        !earlier || now.saturating_sub(from) >= self.rules.max_request_ms
    }

    fn is_unloaded(&self) -> bool {
        self.places.values().all(|place| {
            let mut left = place.surplus(&self.durable, &self.rules);
            // What cannot be unloaded is tried again later, beside everything else.
            left.all(|(name, _)| place.is_unable(name, &self.rules).is_some())
        })
    }

    /// The next stage. The one after the probe begins with the switch.
    fn go_on(&mut self, now: u64) {
        let wants_canary = self.wants_canary();
        let durable = &mut self.durable;
        let Some(rollout) = &mut durable.rollout else {
            return;
        };
        match rollout.stage {
            Stage::Load => rollout.stage = Stage::Probe,
            Stage::Probe if wants_canary => self.begin_canary(now),
            Stage::Probe | Stage::Canary => {
                rollout.stage = Stage::Drain;
                rollout.share = 0;
                let to = rollout.to.clone();
                let before = durable.current.replace(to.clone());
                durable.previous = before.or(durable.previous.take());
                durable.refused = None;
                self.drained_from = Some(now);
                self.leases_known = false;
                self.trial = None;
                self.note("switch", Some(&to), "every target that answers has it");
            }
            Stage::Drain => {
                rollout.stage = Stage::Unload;
                // Requests beyond the limit do not keep it any longer.
                let current = durable.current.as_ref().map(|c| c.generation.clone());
                self.leased.retain(|held| Some(held) == current.as_ref());
            }
            Stage::Unload => durable.rollout = None,
        }
    }

    /// Gives every target that is free its next piece of work.
    fn assign(&mut self, now: u64) -> Vec<(TargetId, super::Work)> {
        let mut work = Vec::new();
        let excluded = self.durable.rollout.as_ref().map(|r| &r.excluded);
        for (id, place) in &mut self.places {
            let out = excluded.is_some_and(|e| e.contains_key(id));
            let leased = self.leases_known.then_some(&self.leased);
            let next = place.next(&self.durable, leased, (now, &self.rules), out);
            if let Some(next) = next {
                place.busy = Some(next.clone());
                work.push((id.clone(), next));
            }
        }
        work
    }
}
