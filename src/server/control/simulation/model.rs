//! What should be so, by a small model of its own.

use std::collections::BTreeSet;
use std::time::Instant;

use super::outside::Outside;
use super::policies::{Files, are_judged, rest, revision, snapshot};
use super::process::{Process, settle};
use crate::state::Act;
use realign_engine::adapter::generation::GenerationId;

/// Fails with a sentence unless it holds.
pub(super) fn require(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// What the accepted acts of operators and realignments led to.
pub(super) struct Model {
    pub(super) serving: String,
    /// What an operator pinned.
    pub(super) pin: Option<String>,
    /// What the last change left, if that was a rollback.
    pub(super) rolled_back: Option<String>,
    /// The accepted policy files, if any ever were.
    pub(super) accepted: Option<Files>,
    /// The revision of the active policies.
    active: Option<String>,
    /// Contents that had rested, or that an operator wanted read, at some look.
    ripe: BTreeSet<Files>,
    /// What the last look found, and since when looks found it.
    seen: Option<(Files, Instant)>,
    /// What changes that failed or were cut off may have left on disk.
    pub(super) doubt: BTreeSet<String>,
    /// Whether the end of a pin may not have been stored.
    pub(super) unpinning: bool,
    /// Whether an operator's clearing of the policies was cut off.
    pub(super) clearing: bool,
    /// Changes of what serves since the process started.
    pub(super) changes: u32,
    /// What `CURRENT` names, where the base serves because that cannot be used.
    fallen: Option<String>,
}

/// How the policies were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    None,
    Rested,
    AtOnce,
    /// An operator cleared them, with success.
    Cleared,
}

impl Model {
    pub(super) fn new(outside: &Outside) -> Self {
        Self {
            serving: outside.base.0.clone(),
            pin: None,
            rolled_back: None,
            accepted: None,
            active: None,
            ripe: BTreeSet::new(),
            seen: None,
            doubt: BTreeSet::new(),
            unpinning: false,
            clearing: false,
            changes: 0,
            fallen: None,
        }
    }

    /// Whether disk and memory may disagree until the next tick without a failure.
    pub(super) fn is_uncertain(&self) -> bool {
        !self.doubt.is_empty() || self.unpinning
    }

    pub(super) fn settle(&mut self) {
        self.doubt.clear();
        self.unpinning = false;
    }

    /// Where the base serves for good from now on, `CURRENT` is written on the next tick.
    pub(super) fn end_fallback(&mut self, outside: &Outside, process: &Process) {
        if process.context().fallback().is_none()
            && let Some(fallen) = self.fallen.take()
            && outside.named().is_some_and(|named| named.0 == fallen)
            && fallen != self.serving
        {
            self.doubt.insert(fallen);
        }
    }

    pub(super) fn is_governed(&self) -> bool {
        self.accepted
            .as_ref()
            .is_some_and(|files| !files.is_empty())
    }

    /// Takes over what a start found, if it may be so.
    pub(super) fn restarted(&mut self, outside: &Outside, process: &Process) -> Result<(), String> {
        let serving = process.serving();
        let fell_back = process.context().fallback().is_some();
        let known = serving == self.serving
            || self.doubt.contains(&serving)
            || self.fallen.as_ref() == Some(&serving)
            || (fell_back && serving == outside.base.0);
        require(known, || {
            let (was, doubt) = (&self.serving, &self.doubt);
            format!("{serving} serves after a start; {was} did, and perhaps {doubt:?}")
        })?;
        let pin = process.pinned();
        let same = serving == self.serving || (fell_back && !self.is_uncertain());
        let stays = same && !self.unpinning && self.pin.is_some();
        let appears = !self.is_uncertain() && self.pin.is_none() && pin.is_some();
        require(!appears && (!stays || pin == self.pin), || {
            format!("{pin:?} is pinned after a start; {:?} was", self.pin)
        })?;
        let may_differ = pin.as_ref().is_none_or(|pin| *pin == serving) || fell_back;
        require(may_differ, || {
            format!("{pin:?} is pinned, and {serving} serves")
        })?;
        let newest = outside.db.activations(1).map_err(|e| e.to_string())?;
        let newest = newest.into_iter().next();
        let rolled_back = newest
            .filter(|row| row.act == Act::Rollback && row.to == serving)
            .map(|row| row.from);
        let may_differ = self.is_uncertain() || serving != self.serving;
        require(may_differ || rolled_back == self.rolled_back, || {
            let was = &self.rolled_back;
            format!("the last rollback left {was:?}, and after a start {rolled_back:?}")
        })?;
        (self.serving, self.pin, self.rolled_back) = (serving, pin, rolled_back);
        self.fallen = outside.named().map(|id| id.0).filter(|_| fell_back);
        self.settle();
        if outside.has_failed() {
            self.unpinning = true;
            self.doubt.insert(self.serving.clone());
        }
        self.active = None;
        self.seen = None;
        self.changes = 0;
        self.look(outside, process, Look::AtOnce)?;
        let judged = self.accepted.as_ref().is_some_and(are_judged);
        let usable = self.accepted.is_some() && !(judged && outside.is_judge_down());
        require(self.active.is_some() || !usable, || {
            "the accepted policies are not active after a start".into()
        })
    }

    /// Compares the policies with what they may be after a look.
    pub(super) fn look(
        &mut self,
        outside: &Outside,
        process: &Process,
        look: Look,
    ) -> Result<(), String> {
        let found = outside.readable();
        // Where no policies were active, a missing directory is an empty one.
        let missing = outside.is_missing() && !self.is_governed();
        let found = found.or_else(|| missing.then(Files::new));
        if look != Look::None {
            self.see(found.as_ref(), look, outside.now());
        }
        let stored = outside.db.accepted_policies().map_err(|e| e.to_string())?;
        let same = self.accepted.as_ref().map(snapshot) == stored;
        if !same {
            let cleared = Files::new();
            let cut_off = self.clearing && stored == Some(snapshot(&cleared));
            let look = if cut_off { Look::Cleared } else { look };
            let new = match (&found, look) {
                (_, Look::Cleared) => &cleared,
                (Some(found), Look::Rested | Look::AtOnce) => found,
                _ => return Err(format!("{stored:?} was accepted, and {look:?} looked")),
            };
            require(Some(snapshot(new)) == stored, || {
                format!("{stored:?} was accepted, and {new:?} is there")
            })?;
            self.may_accept(outside, new, look)?;
            self.accepted = Some(new.clone());
        }
        let active = process.active();
        let expected = self.accepted.as_ref().and_then(revision);
        // After a start, what was accepted may have to wait for its judge.
        let waits = active.is_none() && self.active.is_none();
        require(waits || active == expected, || {
            format!("revision {active:?} is active, and {expected:?} was accepted")
        })?;
        self.active = active;
        Ok(())
    }

    fn see(&mut self, found: Option<&Files>, look: Look, now: Instant) {
        let before = self.seen.take().filter(|(seen, _)| Some(seen) == found);
        self.seen = before.or_else(|| Some((found?.clone(), now)));
        if let Some((files, since)) = &self.seen {
            let rested = now - *since >= settle() * rest(files);
            if rested || look == Look::AtOnce {
                self.ripe.insert(files.clone());
            }
        }
    }

    fn may_accept(&self, outside: &Outside, new: &Files, look: Look) -> Result<(), String> {
        require(revision(new).is_some(), || {
            format!("{new:?} is invalid, and was accepted")
        })?;
        if look == Look::Cleared {
            return Ok(());
        }
        require(!(are_judged(new) && outside.is_judge_down()), || {
            format!("{new:?} was accepted without a judge")
        })?;
        require(!new.is_empty() || !self.is_governed(), || {
            "policies vanished, and none are active now".into()
        })?;
        require(self.ripe.contains(new), || {
            format!("{new:?} was accepted before it rested")
        })
    }

    /// Memory is what the accepted acts say, and disk and history are what memory is.
    pub(super) fn check(&self, outside: &Outside, process: &Process) -> Result<(), String> {
        if let Some(breach) = outside.breach() {
            return Err(breach);
        }
        let (serving, pin) = (process.serving(), process.pinned());
        require(serving == self.serving && pin == self.pin, || {
            let (expected, pinned) = (&self.serving, &self.pin);
            format!("{serving} serves, pinned {pin:?}; should be {expected}, {pinned:?}")
        })?;
        if self.is_uncertain() {
            return Ok(());
        }
        let of_base = |id: Option<String>| id.unwrap_or_else(|| outside.base.0.clone());
        let named = of_base(outside.named().map(|GenerationId(id)| id));
        let fell_back = process.context().fallback().is_some();
        require(named == serving || fell_back, || {
            format!("{serving} serves, and CURRENT names {named}")
        })?;
        let newest = outside.db.activations(1).map_err(|e| e.to_string())?;
        let newest = of_base(newest.into_iter().next().map(|row| row.to));
        require(newest == serving, || {
            format!("{serving} serves, and the history names {newest}")
        })?;
        let stored = outside.db.pin().map_err(|e| e.to_string())?;
        let stored = stored.map(|pin| pin.generation);
        require(stored == pin, || {
            format!("{pin:?} is pinned, and {stored:?} is stored")
        })
    }

    /// No realignment is open that does not run and is not due.
    pub(super) fn check_rows(&self, outside: &Outside, process: &Process) -> Result<(), String> {
        let open = outside.db.unfinished_realignments();
        let open: Vec<String> = open
            .map_err(|e| e.to_string())?
            .into_iter()
            .map(|row| row.id)
            .collect();
        let running = outside.job(|job| job.id.clone());
        let due = process.worker.owed.is_some() || process.active().is_none();
        let runs = open.iter().all(|id| Some(id) == running.as_ref());
        require(runs || (running.is_none() && due), || {
            format!("{open:?} are open, and {running:?} runs")
        })?;
        require(running.is_none_or(|id| open.contains(&id)), || {
            "a realignment runs whose row is closed".into()
        })
    }
}
