//! What is known of a target, and what it should do next.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Rules, Work};
use super::{Durable, Release, Stage};
use crate::names::{adapter_name, generation_of};
use crate::target::{Listing, TargetError};

/// Longest time between two attempts at what failed.
const LAST_PAUSE: u64 = 30_000;

/// What is known of a target; none of it outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// What it has; `None` while it does not answer.
    pub(super) listing: Option<Listing>,
    /// Whether it was asked at all.
    pub(super) asked: bool,
    /// Generations that it has answered by since it was last seen without them.
    pub(super) probed: BTreeSet<String>,
    /// Those of them that are its base model.
    plain: BTreeSet<String>,
    /// What it does.
    pub(super) busy: Option<Work>,
    /// When it is looked at again.
    pub(super) look_at: u64,
    /// Looks in a row that found nothing.
    pub(super) misses: u32,
    /// Generations and names with which something failed.
    pub(super) failures: BTreeMap<String, Failure>,
    /// What is wrong with it, for people.
    pub(super) problem: Option<String>,
}

/// Attempts that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) attempts: u32,
    pub(super) again_at: u64,
    pub(super) why: String,
}

/// The pause after so many failures in a row.
fn pause(failures: u32, shortest: u64) -> u64 {
    let doubled = shortest.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(LAST_PAUSE)
}

impl Place {
    /// Whether it has the adapter of a release, and not another one under its name.
    pub(super) fn has(&self, release: &Release, rules: &Rules) -> bool {
        let name = adapter_name(&rules.name, &release.generation);
        let path = rules.path(&release.generation);
        let is_it = |from: &Option<String>| from.as_ref().is_none_or(|from| *from == path);
        let listing = self.listing.as_ref();
        listing.is_some_and(|l| release.is_base || l.adapters.get(&name).is_some_and(is_it))
    }

    /// Whether it may answer by a release.
    pub(super) fn is_ready(&self, release: &Release, rules: &Rules) -> bool {
        self.has(release, rules) && self.probed.contains(&release.generation)
    }

    /// What a request sends to get a release.
    pub(super) fn model(&self, release: &Release, rules: &Rules) -> Option<String> {
        let listing = self.listing.as_ref()?;
        Some(match release.is_base {
            true => listing.base.clone(),
            false => {
                let name = adapter_name(&rules.name, &release.generation);
                format!("{}{name}", listing.prefix)
            }
        })
    }

    /// Whether it has failed a generation too often.
    pub(super) fn is_unable(&self, generation: &str, rules: &Rules) -> Option<&str> {
        let failure = self.failures.get(generation)?;
        (failure.attempts >= rules.attempts).then_some(&failure.why)
    }

    /// It does not answer, or may not have what it had.
    pub(super) fn lose(&mut self, why: String, look_at: u64) {
        self.listing = None;
        self.probed.clear();
        self.plain.clear();
        self.problem = Some(why);
        self.look_at = look_at;
    }

    fn fail(&mut self, what: &str, why: String, (now, rules): (u64, &Rules)) {
        let attempts = self.failures.get(what).map_or(0, |f| f.attempts) + 1;
        let again_at = now + pause(attempts, rules.look_ms / 2);
        self.problem = Some(why.clone());
        let failure = Failure {
            attempts,
            again_at,
            why,
        };
        self.failures.insert(what.to_owned(), failure);
    }

    /// Takes note of how a piece of work ended.
    pub(super) fn done(
        &mut self,
        work: &Work,
        result: &Result<Option<Listing>, TargetError>,
        (now, rules): (u64, &Rules),
    ) {
        self.busy = None;
        let listed = matches!(work, Work::List);
        match result {
            Ok(listing) if listed => self.listed(listing.clone().unwrap_or_default(), now, rules),
            Ok(_) => self.did(work, rules),
            Err(error) if listed => {
                self.asked = true;
                self.misses = self.misses.saturating_add(1);
                let look_at = now + pause(self.misses, rules.look_ms);
                self.lose(error.to_string(), look_at);
            }
            Err(TargetError::Unreachable(why)) => {
                // It may have done it. What it has is seen when it is looked at.
                let what = subject(work);
                self.fail(&what, why.clone(), (now, rules));
                self.lose(why.clone(), now);
            }
            Err(TargetError::Refused(why)) => {
                self.fail(&subject(work), why.clone(), (now, rules));
                // It may lack what it was asked about.
                self.look_at = now;
            }
        }
    }

    fn listed(&mut self, listing: Listing, now: u64, rules: &Rules) {
        self.asked = true;
        self.misses = 0;
        self.look_at = now + rules.look_ms;
        if self
            .listing
            .as_ref()
            .is_some_and(|l| l.base != listing.base)
        {
            self.plain.clear();
        }
        let plain = &self.plain;
        self.probed.retain(|generation| {
            let name = adapter_name(&rules.name, generation);
            plain.contains(generation) || listing.adapters.contains_key(&name)
        });
        self.listing = Some(listing);
        if self.failures.is_empty() {
            self.problem = None;
        }
    }

    fn did(&mut self, work: &Work, rules: &Rules) {
        self.failures.remove(&subject(work));
        if self.failures.is_empty() {
            self.problem = None;
        }
        let Some(listing) = &mut self.listing else {
            return;
        };
        match work {
            Work::List => {}
            Work::Load { name, path, .. } => {
                listing.adapters.insert(name.clone(), Some(path.clone()));
            }
            Work::Probe { generation, model } => {
                if *model == listing.base {
                    self.plain.insert(generation.clone());
                }
                self.probed.insert(generation.clone());
            }
            Work::Unload { name } => {
                listing.adapters.remove(name);
                if let Some(generation) = generation_of(&rules.name, name) {
                    self.probed.remove(generation);
                }
            }
        }
    }

    /// What it should do next, if anything.
    pub(super) fn next(
        &self,
        durable: &Durable,
        leased: Option<&BTreeSet<String>>,
        (now, rules): (u64, &Rules),
        excluded: bool,
    ) -> Option<Work> {
        if self.busy.is_some() {
            return None;
        }
        if self.look_at <= now {
            return Some(Work::List);
        }
        self.listing.as_ref()?;
        let rollout = durable.rollout.as_ref();
        let coming = rollout.filter(|r| r.stage < Stage::Drain && !excluded);
        let wanted = durable.current.iter().chain(coming.map(|r| &r.to));
        for release in wanted {
            let waits = |f: &Failure| f.again_at > now;
            if self.failures.get(&release.generation).is_some_and(waits) {
                continue;
            }
            if let Some(work) = self.towards(release, rules) {
                return Some(work);
            }
        }
        let unloads = rollout.is_none_or(|r| r.stage == Stage::Unload);
        let mut surplus = self.surplus(durable, rules).filter(|_| unloads);
        surplus.find_map(|(name, generation)| {
            let waits = |f: &Failure| f.again_at > now;
            let waiting = self.failures.get(name).is_some_and(waits);
            // As long as it is not known what requests hold, they may hold it.
            let is_free = leased.is_some_and(|leased| !leased.contains(generation));
            (!waiting && is_free).then(|| Work::Unload { name: name.clone() })
        })
    }

    /// What it lacks to answer by a release.
    fn towards(&self, release: &Release, rules: &Rules) -> Option<Work> {
        if self.is_ready(release, rules) {
            return None;
        }
        let generation = release.generation.clone();
        if !self.has(release, rules) {
            return Some(Work::Load {
                name: adapter_name(&rules.name, &generation),
                path: rules.path(&generation),
                generation,
            });
        }
        let model = self.model(release, rules)?;
        Some(Work::Probe { generation, model })
    }

    /// Adapters of this fleet that are neither current nor previous nor to come, with their
    /// generations.
    pub(super) fn surplus<'a>(
        &'a self,
        durable: &'a Durable,
        rules: &'a Rules,
    ) -> impl Iterator<Item = (&'a String, &'a str)> {
        let kept = durable.current.iter().chain(&durable.previous);
        let kept: Vec<&str> = kept
            .chain(durable.rollout.as_ref().map(|r| &r.to))
            .map(|r| r.generation.as_str())
            .collect();
        let names = self.listing.iter().flat_map(|l| l.adapters.keys());
        names.filter_map(move |name| {
            let generation = generation_of(&rules.name, name)?;
            (!kept.contains(&generation)).then_some((name, generation))
        })
    }
}

/// What a failure of this work is remembered under.
fn subject(work: &Work) -> String {
    match work {
        Work::List => String::new(),
        Work::Load { generation, .. } | Work::Probe { generation, .. } => generation.clone(),
        Work::Unload { name } => name.clone(),
    }
}
