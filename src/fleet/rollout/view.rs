//! What requests and people see.

use std::collections::BTreeMap;

use serde::Serialize;

use super::durable::{Durable, Release, Stage};
use super::{Core, Work};
use crate::canary::{TrialStatus, Unit, takes};
use crate::target::TargetId;

/// What requests may be sent where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What serves.
    pub current: Option<Release>,
    /// What served before, if it may answer where nothing else can.
    pub fallback: Option<Release>,
    /// What served before.
    pub previous: Option<Release>,
    /// What a share of the requests gets.
    pub canary: Option<Canary>,
    /// Targets that answer.
    pub seats: Vec<Seat>,
}

/// A generation that a share of the requests gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Which one.
    pub release: Release,
    /// The share, in parts of [`WHOLE`](crate::WHOLE).
    pub share: u16,
}

impl View {
    /// What a request gets, in the order in which it is looked for. The same for all requests of a unit,
    /// as long as the view is.
    pub fn choices(&self, unit: Unit) -> impl Iterator<Item = &Release> {
        let canary = self.canary.iter().map(|c| (&c.release, c.share));
        let own = canary.filter(move |(r, share)| takes(&r.generation, unit, *share));
        let own = own.map(|(release, _)| release);
        own.chain(&self.current).chain(&self.fallback)
    }

    /// Every generation that requests may name.
    pub fn known(&self) -> impl Iterator<Item = &Release> {
        let canary = self.canary.iter().map(|c| &c.release);
        self.current.iter().chain(&self.previous).chain(canary)
    }
}

/// A target that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Which one.
    pub target: TargetId,
    /// Generations that it was probed with, and what to send as `model` to get them.
    pub models: BTreeMap<String, String>,
}

/// A target, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// Which one.
    pub target: TargetId,
    /// The newest epoch that it answers by; 0 is none.
    pub epoch: u64,
    /// Whether requests for what serves are sent to it.
    pub in_pool: bool,
    /// What it does at the moment.
    pub doing: Option<&'static str>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// This fleet's adapters that it has.
    pub adapters: Vec<String>,
}

impl Core {
    /// What requests see.
    pub fn view(&self) -> View {
        let Durable {
            current, previous, ..
        } = &self.durable;
        let within = |previous: &&Release| {
            let epoch = current.as_ref().map_or(0, |c| c.epoch);
            epoch.saturating_sub(previous.epoch) <= self.rules.max_skew_epochs
        };
        let rollout = self.durable.rollout.as_ref();
        let canary = rollout
            .filter(|r| r.stage == Stage::Canary)
            .map(|r| Canary {
                release: r.to.clone(),
                share: r.share,
            });
        let seats = self.places.iter().filter_map(|(target, place)| {
            let coming = canary.iter().map(|c| &c.release);
            let both = current.iter().chain(previous).chain(coming);
            let ready = both.filter(|r| place.is_ready(r, &self.rules));
            let model = |r: &Release| Some((r.generation.clone(), place.model(r, &self.rules)?));
            let models: BTreeMap<String, String> = ready.filter_map(model).collect();
            (!models.is_empty()).then(|| Seat {
                target: target.clone(),
                models,
            })
        });
        View {
            current: current.clone(),
            fallback: previous.as_ref().filter(within).cloned(),
            previous: previous.clone(),
            seats: seats.collect(),
            canary,
        }
    }

    /// What people see of each target.
    pub fn targets(&self) -> Vec<TargetStatus> {
        let Durable {
            current, previous, ..
        } = &self.durable;
        let status = |(target, place): (&TargetId, &super::seats::Place)| {
            let ready = |r: &&Release| place.is_ready(r, &self.rules);
            let epoch = current
                .iter()
                .chain(previous)
                .filter(ready)
                .map(|r| r.epoch);
            let listing = place.listing.iter().flat_map(|l| l.adapters.keys());
            let ours =
                listing.filter(|n| crate::names::generation_of(&self.rules.name, n).is_some());
            TargetStatus {
                target: target.clone(),
                epoch: epoch.max().unwrap_or(0),
                in_pool: current.as_ref().is_some_and(|r| ready(&r)),
                doing: place.busy.as_ref().map(|work| match work {
                    Work::List => "list",
                    Work::Load { .. } => "load",
                    Work::Probe { .. } => "probe",
                    Work::Unload { .. } => "unload",
                }),
                problem: place.problem.clone(),
                adapters: ours.cloned().collect(),
            }
        };
        self.places.iter().map(status).collect()
    }

    /// The comparison of two generations under way.
    pub fn trial(&self, now: u64) -> Option<TrialStatus> {
        Some(self.trial.as_ref()?.status(now))
    }

    /// Why what was desired last is not followed, if so.
    pub fn ignored(&self) -> Option<&str> {
        self.ignored.as_deref()
    }
}
