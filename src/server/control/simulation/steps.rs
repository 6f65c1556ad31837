//! What each operation does, and what its answer has to be.

use std::hash::Hash;
use std::time::Duration;

use super::super::Event;
use super::super::pointer::{Change, ChangeError};
use super::super::realign::{Done, Ended, Stop};
use super::model::{Look, require};
use super::outside::Trouble;
use super::policies::Files;
use super::schedule::{End, Expected, Op, Step};
use super::{Simulation, Swapped};
use crate::api::AdminPort;
use crate::state::Act;
use crate::telemetry::Outcome;
use realign_engine::adapter::generation::GenerationId;

/// The id of no generation.
const UNKNOWN: &str = "cccccccccccc";

impl Simulation {
    pub(super) fn step(&mut self, step: Step) -> Result<(), String> {
        let uncertain = self.model.is_uncertain();
        self.outside.arm(step.fault);
        let look = match step.op {
            Op::Kill => {
                self.outside.kill();
                return self.start(step.fault).and_then(|()| self.check());
            }
            Op::Restart => {
                let process = self.process();
                process.control.close_attempts();
                process.worker.stop();
                return self.start(step.fault).and_then(|()| self.check());
            }
            op => self.act(op)?,
        };
        if self.outside.is_dead() {
            self.outside.kill();
            return self.start(None).and_then(|()| self.check());
        }
        let ticked = matches!(step.op, Op::Tick(_));
        if !self.outside.has_failed() && (ticked || !uncertain) {
            self.model.settle();
        }
        self.model.clearing = false;
        let process = self.process.as_ref().expect("a process runs");
        self.model.end_fallback(&self.outside, process);
        self.model.look(&self.outside, process, look)?;
        if ticked && !self.outside.has_failed() {
            self.model.check_rows(&self.outside, process)?;
        }
        self.check()
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        let process = self.process.as_ref().expect("a process runs");
        let pointer = (process.serving(), process.previous(), process.pinned());
        let named = self.outside.named().map(|id| id.0);
        let running = self.outside.job(|job| job.id.clone());
        (pointer, process.active(), named, running).hash(&mut self.trace);
        self.model.check(&self.outside, process)?;
        self.check_answers()
    }

    /// Does it, and checks the answer; says how the policies were looked at.
    fn act(&mut self, op: Op) -> Result<Look, String> {
        match op {
            Op::Write(name, content) => {
                let mut files = self.outside.files().unwrap_or_default();
                files.insert(name, content);
                self.write(Some(files));
            }
            Op::Remove(name) => {
                let mut files = self.outside.files();
                if let Some(files) = &mut files {
                    files.remove(name);
                }
                self.write(files);
            }
            Op::Vanish => {
                self.away = self.outside.files().or(self.away.take());
                self.write(None);
            }
            Op::Appear => {
                let back = self.outside.files().or(self.away.take());
                self.write(Some(back.unwrap_or_default()));
            }
            Op::Set(trouble, on) => self.outside.set(trouble, on),
            Op::DataChanges => self.outside.change_data(),
            Op::Clock(seconds) => self.outside.set_clock(seconds),
            Op::Damage => {
                let serving = self.model.serving.clone();
                self.outside.damage(&serving, true);
            }
            Op::Repair => self.outside.damage("", false),
            Op::Hint => {
                self.process().worker.handle(Event::PoliciesChanged);
                return Ok(Look::Rested);
            }
            Op::Reload => {
                self.process().worker.handle(Event::Reload);
                return Ok(Look::AtOnce);
            }
            Op::Tick(milliseconds) => {
                self.tick(Duration::from_millis(milliseconds));
                return Ok(Look::Rested);
            }
            Op::Deliver => {
                self.process().deliver();
            }
            Op::Clear => return self.clear(),
            Op::Activate(number, expected) => self.activate(number, expected)?,
            Op::Rollback(expected) => self.rollback(expected)?,
            Op::Unpin => self.unpin()?,
            Op::Begin => {
                // Whatever the answer is, the rows show it.
                let _answer = self.process().worker.start_on_request();
            }
            Op::Cancel => {
                if let Some(id) = self.outside.job(|job| job.id.clone()) {
                    let cancelled = self.process().worker.cancel(&id);
                    require(cancelled, || format!("{id} runs, and cannot be cancelled"))?;
                }
                let cancelled = self.process().worker.cancel("no-such-id");
                require(!cancelled, || "what does not run was cancelled".into())?;
            }
            Op::Swap => self.swap()?,
            Op::End(end) => self.end(end),
            Op::Unhealthy => self.leave()?,
            Op::Kill | Op::Restart => {}
        }
        Ok(Look::None)
    }

    fn write(&mut self, files: Option<Files>) {
        self.outside.write(files);
    }

    pub(super) fn tick(&mut self, time: Duration) {
        self.outside.pass(time);
        let now = self.outside.now();
        self.process().worker.reconcile(now);
    }

    fn clear(&mut self) -> Result<Look, String> {
        self.model.clearing = true;
        let cleared = self.process().worker.clear_policies().is_ok();
        let readable = self.outside.readable();
        let allowed = match &readable {
            Some(files) => files.is_empty(),
            None => self.outside.is_missing(),
        };
        if self.outside.is_dead() {
            return Ok(Look::None);
        }
        require(allowed || !cleared, || {
            format!("{readable:?} is there, and the policies were cleared")
        })?;
        require(cleared || !allowed || self.outside.has_failed(), || {
            "the policies could not be cleared".into()
        })?;
        Ok(match (cleared, allowed) {
            (true, _) => Look::Cleared,
            // It was looked at, but could not be stored.
            (false, true) => Look::AtOnce,
            (false, false) => Look::None,
        })
    }

    fn expected(&self, expected: Expected) -> Option<String> {
        match expected {
            Expected::Anything => None,
            Expected::Right => Some(self.model.serving.clone()),
            Expected::Left => {
                let left = self.model.rolled_back.clone();
                Some(left.unwrap_or_else(|| UNKNOWN.into()))
            }
            Expected::Wrong => Some(UNKNOWN.into()),
        }
    }

    /// What serves changes, because somebody wanted it.
    fn serves(&mut self, to: &str) {
        if to != self.model.serving {
            self.model.rolled_back = None;
            self.model.changes += 1;
        }
        self.model.serving = to.into();
    }

    fn activate(&mut self, number: usize, expected: Expected) -> Result<(), String> {
        let mut known = self.outside.published();
        known.push(self.outside.base.0.clone());
        let to = known.swap_remove(number % known.len());
        let expected = self.expected(expected);
        let serving = self.model.serving.clone();
        let conflicts = expected.as_ref().is_some_and(|e| *e != serving);
        self.model.doubt.insert(to.clone());
        let control = &self.process().control;
        let answer = AdminPort::activate(control, &to, expected.as_deref());
        let loads = self.outside.load(&GenerationId(to.clone())).is_ok();
        if self.outside.is_dead() {
            return Ok(());
        }
        require(!(conflicts && answer.is_ok()), || {
            format!("{to} was activated, expecting {expected:?} where {serving} serves")
        })?;
        let free = !conflicts && loads && !self.outside.has_failed();
        require(!free || answer.is_ok(), || {
            format!("{to} could not be activated: {answer:?}")
        })?;
        if answer.is_ok() {
            self.serves(&to);
            self.model.pin = Some(to);
        }
        Ok(())
    }

    fn rollback(&mut self, expected: Expected) -> Result<(), String> {
        let expected = self.expected(expected);
        let uncertain = self.model.is_uncertain();
        let serving = self.model.serving.clone();
        let previous = self.process().previous();
        self.model.doubt.extend(previous.clone());
        let answer = AdminPort::rollback(&self.process().control, expected.as_deref());
        if self.outside.is_dead() {
            return Ok(());
        }
        let repeated = self.model.rolled_back.is_some();
        let allowed = match &self.model.rolled_back {
            Some(left) => expected.as_ref() == Some(left),
            None => {
                let conflicts = expected.as_ref().is_some_and(|e| *e != serving);
                previous.is_some() && !conflicts
            }
        };
        let as_it_should = answer.is_ok() == allowed;
        let failed = self.outside.has_failed() && answer.is_err();
        require(as_it_should || failed || uncertain, || {
            format!("a rollback expecting {expected:?} from {serving}: {answer:?}")
        })?;
        let Ok(swap) = answer else {
            return Ok(());
        };
        // A repeated one is answered as the first one was, and changes nothing.
        if swap.to == serving {
            return Ok(());
        }
        require(!repeated || uncertain, || {
            format!("a repeated rollback went from {serving} to {}", swap.to)
        })?;
        require(Some(&swap.to) == previous.as_ref(), || {
            format!("a rollback went to {}, not to {previous:?}", swap.to)
        })?;
        self.model.serving = swap.to.clone();
        self.model.changes += 1;
        self.model.rolled_back = Some(serving);
        self.model.pin = Some(swap.to);
        Ok(())
    }

    pub(super) fn unpin(&mut self) -> Result<(), String> {
        self.model.unpinning = true;
        let answer = AdminPort::unpin(&self.process().control);
        if self.outside.is_dead() {
            return Ok(());
        }
        require(answer.is_ok() || self.outside.has_failed(), || {
            format!("unpinning failed: {answer:?}")
        })?;
        if let Ok(unpinned) = answer {
            require(unpinned.released == self.model.pin, || {
                format!("{:?} was pinned: {unpinned:?}", self.model.pin)
            })?;
            self.model.pin = None;
        }
        Ok(())
    }

    /// The running realignment publishes its result and makes it serve.
    pub(super) fn swap(&mut self) -> Result<(), String> {
        let job = self.outside.job(|job| (job.id.clone(), job.hash.clone()));
        let (Some((id, hash)), None) = (job, &self.swapped) else {
            return Ok(());
        };
        let to = hash[..12].to_owned();
        self.outside.publish(&to);
        let generation = self.outside.load(&GenerationId(to.clone()));
        self.model.doubt.insert(to.clone());
        let change = Change {
            to: generation.map_err(|e| e.to_string())?.into(),
            act: Act::Realign,
            reason: &id,
            expected: None,
        };
        let answer = self.process().context().change_serving(change);
        if self.outside.is_dead() {
            return Ok(());
        }
        let pinned = self.model.pin.as_ref().is_some_and(|pin| *pin != to);
        let swapped = match &answer {
            Ok(_) => Swapped::Done,
            Err(ChangeError::Pinned(_)) => Swapped::Pinned,
            Err(_) => Swapped::Failed,
        };
        let right = match swapped {
            Swapped::Done => !pinned,
            Swapped::Pinned => pinned,
            Swapped::Failed => self.outside.has_failed(),
        };
        require(right, || {
            format!("{:?} is pinned, and {to}: {answer:?}", self.model.pin)
        })?;
        if answer.is_ok() {
            self.serves(&to);
            self.left = false;
        }
        self.swapped = Some(swapped);
        Ok(())
    }

    pub(super) fn end(&mut self, end: End) {
        let Some(job) = self.outside.end_job() else {
            return;
        };
        let generation = job.hash[..12].to_owned();
        let done = |outcome, generation| {
            Ok(Done {
                outcome,
                generation,
                detail: None,
            })
        };
        let result = match (self.swapped.take(), end) {
            (Some(Swapped::Done), _) => done(Outcome::Succeeded, generation),
            (Some(Swapped::Pinned), _) => done(Outcome::Superseded, generation),
            (Some(Swapped::Failed), _) => Err(Stop::Hindered("the swap failed".into())),
            (None, _) if job.flag.get().is_some() => Err(Stop::Asked),
            (None, End::Failed) => Err(Stop::Failed("it diverged".into())),
            (None, End::Hindered) => Err(Stop::Hindered("the judge is down".into())),
            (None, End::Rejected) => Err(Stop::Rejected {
                generation,
                reason: "it is no better".into(),
            }),
            (None, End::NoConflict) => done(Outcome::NoConflict, self.model.serving.clone()),
        };
        self.hindered = matches!(result, Err(Stop::Hindered(_)));
        let ended = Ended { id: job.id, result };
        let process = self.process();
        let context = process.context();
        context.log(context.db.close_attempts(Some(&job.hash)));
        process.worker.handle(Event::Ended(Box::new(ended)));
    }

    /// What serves is left for what served before, or the base.
    fn leave(&mut self) -> Result<(), String> {
        let broken = self.model.serving.clone();
        let previous = self.process().previous();
        let base = self.outside.base.0.clone();
        let others = previous.into_iter().chain([base]);
        let others: Vec<String> = others.filter(|id| *id != broken).collect();
        self.model.doubt.extend(others.iter().cloned());
        self.model.unpinning = true;
        let event = Event::Unhealthy(GenerationId(broken.clone()));
        self.process().worker.handle(event);
        if self.outside.is_dead() {
            return Ok(());
        }
        let serving = self.process().serving();
        if serving == broken {
            return require(others.is_empty() || self.outside.has_failed(), || {
                format!("{broken} still serves, and {others:?} could")
            });
        }
        require(others.contains(&serving), || {
            format!("{broken} was left for {serving}, not for {others:?}")
        })?;
        if self.model.pin.as_ref() == Some(&broken) {
            self.model.pin = None;
        }
        self.serves(&serving);
        self.left = true;
        Ok(())
    }

    /// All troubles end.
    pub(super) fn heal(&mut self) {
        for trouble in [
            Trouble::ReadError,
            Trouble::JudgeDown,
            Trouble::NoThreads,
            Trouble::NoData,
            Trouble::DiskFull,
        ] {
            self.outside.set(trouble, false);
        }
        self.outside.arm(None);
    }
}
