//! Targets that exist only in memory, and the clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::canary::Observation;
use crate::rollout::{Core, Durable, Event, Heard, Work};
use crate::target::{Listing, TargetError, TargetId};

/// An engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Engine {
    pub(super) up: bool,
    pub(super) adapters: BTreeMap<String, String>,
    /// Generations that it cannot take.
    pub(super) refuses: BTreeSet<String>,
    /// Whether it went or restarted since the core last heard from it.
    pub(super) changed: bool,
}

pub(super) struct World {
    core: Core,
    pub(super) now: u64,
    pub(super) engines: BTreeMap<TargetId, Engine>,
    pub(super) pending: Vec<(TargetId, Work)>,
    /// Work at targets that went meanwhile.
    pub(super) orphans: Vec<(TargetId, Work)>,
    pub(super) held: BTreeSet<String>,
    /// What was seen of requests since the last tick.
    pub(super) observed: Vec<Observation>,
    written: Durable,
    /// Whether writing fails.
    pub(super) disk_full: bool,
    /// What the core could not act upon yet.
    pub(super) lost: Vec<Event>,
}

impl World {
    pub(super) fn new(targets: usize, core: Core) -> Self {
        let ids = (0..targets).map(|n| TargetId(format!("http://t{n}")));
        let engine = |id| {
            let engine = Engine {
                up: true,
                ..Engine::default()
            };
            (id, engine)
        };
        let mut world = Self {
            written: core.durable().clone(),
            core,
            now: 0,
            engines: ids.map(engine).collect(),
            pending: Vec::new(),
            orphans: Vec::new(),
            held: BTreeSet::new(),
            observed: Vec::new(),
            disk_full: false,
            lost: Vec::new(),
        };
        world.announce();
        world
    }

    /// Tells the core which targets there are.
    pub(super) fn announce(&mut self) {
        let all = self.engines.keys().cloned().collect();
        self.event(Event::Targets(all));
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn durable(&self) -> Durable {
        self.written.clone()
    }

    pub(super) fn ids(&self) -> Vec<TargetId> {
        self.engines.keys().cloned().collect()
    }

    pub(super) fn loaded(&self, id: &TargetId) -> BTreeSet<String> {
        self.engines[id].adapters.keys().cloned().collect()
    }

    pub(super) fn path(&self, id: &TargetId, name: &str) -> String {
        self.engines[id].adapters[name].clone()
    }

    fn engine(&mut self, id: &TargetId) -> &mut Engine {
        self.engines.get_mut(id).unwrap()
    }

    pub(super) fn refuse(&mut self, id: &TargetId, generation: &str) {
        self.engine(id).refuses.insert(generation.into());
    }

    pub(super) fn mend(&mut self) {
        self.engines.values_mut().for_each(|e| e.refuses.clear());
    }

    pub(super) fn occupy(&mut self, id: &TargetId, name: &str, path: &str) {
        self.engine(id).adapters.insert(name.into(), path.into());
    }

    pub(super) fn restart(&mut self, id: &TargetId) {
        let engine = self.engine(id);
        engine.adapters.clear();
        engine.changed = true;
    }

    pub(super) fn hold(&mut self, held: BTreeSet<String>) {
        self.held = held;
    }

    pub(super) fn wait(&mut self, time: u64) {
        self.now += time;
        let heard = Heard {
            leased: self.held.clone(),
            observed: std::mem::take(&mut self.observed),
            at: self.now / 1000,
        };
        self.event(Event::Tick(heard));
    }

    /// As the runner does it: what is durable is written first, or nothing happens.
    pub(super) fn event(&mut self, event: Event) {
        let mut events = std::mem::take(&mut self.lost);
        events.push(event);
        for event in events {
            let step = self.core.step(self.now, event.clone());
            if *step.core.durable() != self.written {
                if self.disk_full {
                    self.lost.push(event);
                    continue;
                }
                self.written = step.core.durable().clone();
            }
            self.core = step.core;
            self.pending.extend(step.work);
        }
    }

    /// The process is killed and begins again with what was written.
    pub(super) fn kill(&mut self) {
        let rules = self.core.rules().clone();
        self.core = Core::new(rules, self.written.clone());
        self.pending.clear();
        self.orphans.clear();
        self.lost.clear();
        self.held.clear();
        self.observed.clear();
        self.announce();
    }

    /// A target goes; its work is on its way.
    pub(super) fn remove(&mut self, id: &TargetId) {
        self.engines.remove(id);
        self.orphans
            .extend(self.pending.extract_if(.., |(at, _)| at == id));
    }

    /// The first piece of work of this kind, waiting for it to come up.
    pub(super) fn first(&mut self, is: impl Fn(&Work) -> bool) -> usize {
        for _ in 0..1000 {
            if let Some(at) = self.pending.iter().position(|(_, work)| is(work)) {
                return at;
            }
            match self.pending.is_empty() {
                true => self.wait(100),
                false => self.finish(0, None),
            }
        }
        panic!("no such work comes up");
    }

    /// The first piece of work that is not this target's.
    pub(super) fn next_but(&self, id: &TargetId) -> Option<usize> {
        self.pending.iter().position(|(at, _)| at != id)
    }

    /// A piece of work is done, and its answer arrives or is lost.
    pub(super) fn finish(&mut self, at: usize, lost: Option<TargetError>) {
        let (id, work) = self.pending.swap_remove(at);
        let result = match self.engines.get_mut(&id) {
            Some(engine) => engine.work(&work),
            None => Err(TargetError::Unreachable("it is gone".into())),
        };
        let result = lost.map_or(result, Err);
        self.event(Event::Done(id, work, result));
    }

    /// Lets everything happen, until nothing but looks at targets happens.
    pub(super) fn settle(&mut self) {
        for _ in 0..400 {
            while !self.pending.is_empty() {
                self.finish(0, None);
            }
            self.wait(10);
        }
    }
}

impl Engine {
    pub(super) fn work(&mut self, work: &Work) -> Result<Option<Listing>, TargetError> {
        if !self.up {
            return Err(TargetError::Unreachable("connection refused".into()));
        }
        let refused = |why: &str| Err(TargetError::Refused(why.into()));
        match work {
            Work::List => {
                self.changed = false;
                let adapters = self.adapters.iter();
                Ok(Some(Listing {
                    base: "base".into(),
                    prefix: String::new(),
                    adapters: adapters
                        .map(|(n, p)| (n.clone(), Some(p.clone())))
                        .collect(),
                }))
            }
            Work::Load {
                generation,
                name,
                path,
            } => {
                assert_eq!(*path, format!("/adapters/{generation}"));
                if self.refuses.contains(generation) {
                    return refused("it does not fit");
                }
                let there = self.adapters.entry(name.clone()).or_insert(path.clone());
                if there == path {
                    Ok(None)
                } else {
                    refused("taken")
                }
            }
            Work::Probe { model, .. } => match model == "base" || self.adapters.contains_key(model)
            {
                true => Ok(None),
                false => refused("no such model"),
            },
            Work::Unload { name } => {
                self.adapters.remove(name);
                Ok(None)
            }
        }
    }
}
