//! Which policies are active: the last set that was accepted, with its files stored.
//!
//! A directory that vanishes is not an empty one. Going back to no policies is an operator's act.

use std::io::{self, ErrorKind};

use super::directory::Look;
use super::dryrun::DryRun;
use super::error::{ClearError, ReadPoliciesError};
use super::worker::Worker;
use realign_align::oracle::Prepared;
use realign_align::policy::{PolicySet, Snapshot};
use realign_core::clock::unix_seconds;
use realign_core::{StopReason, Trigger};

impl Worker {
    /// Looks at the policy directory and acts on what is new there. With `at_once`, an operator
    /// asked for it.
    pub(super) fn look_at_policies(&mut self, at_once: bool) {
        if self.context.follows() {
            return;
        }
        let found = self.surroundings.policies(&self.context);
        let now = self.surroundings.now();
        let Look::Act(found) = self.directory.look(found, now, at_once) else {
            return;
        };
        self.read_accepted();
        match self.read_policies(found) {
            Ok((snapshot, set, prepared)) => self.accept(snapshot, set, prepared),
            Err(error) => self.refuse(&error),
        }
    }

    /// Reads which set was accepted last, unless that has been done.
    fn read_accepted(&mut self) {
        if !self.accepted_read
            && let Some(accepted) = self.context.log(self.context.db.accepted_policies())
        {
            self.accepted = accepted;
            self.accepted_read = true;
        }
    }

    /// Whether there are policies that an empty directory must not end. As long as that cannot be
    /// read, there may be; where the state was lost, what serves tells.
    fn is_governed(&self) -> bool {
        match &self.accepted {
            Some(accepted) => accepted.has_policies(),
            None => !self.accepted_read || self.serves_for_policies(),
        }
    }

    /// Whether what serves was trained for policies.
    fn serves_for_policies(&self) -> bool {
        let serving = self.context.registry.lease_current();
        serving.adapter.is_some() && serving.policy_revision.is_some()
    }

    /// What stays as it is without a policy directory.
    fn kept(&self) -> &'static str {
        match self.accepted {
            Some(_) => "policies are active: they stay so",
            None => "what serves was trained for policies: it keeps serving",
        }
    }

    fn read_policies(
        &self,
        found: io::Result<Snapshot>,
    ) -> Result<(Snapshot, PolicySet, Prepared), ReadPoliciesError> {
        let directory = &self.context.config.paths.policies;
        let governed = self.is_governed();
        let snapshot = match found {
            Ok(snapshot) => snapshot,
            Err(error) if error.kind() == ErrorKind::NotFound && !governed => Snapshot::default(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ReadPoliciesError::Vanished {
                    directory: directory.clone(),
                    what: "is missing",
                    kept: self.kept(),
                });
            }
            Err(error) => {
                return Err(ReadPoliciesError::Directory {
                    directory: directory.clone(),
                    error,
                });
            }
        };
        if governed && !snapshot.has_policies() {
            return Err(ReadPoliciesError::Vanished {
                directory: directory.clone(),
                what: "holds no policy any more",
                kept: self.kept(),
            });
        }
        let (set, prepared) = self.prepare(&snapshot)?;
        Ok((snapshot, set, prepared))
    }

    fn prepare(&self, snapshot: &Snapshot) -> Result<(PolicySet, Prepared), ReadPoliciesError> {
        let set = match snapshot.load(&self.context.config.paths.policies) {
            Ok(set) => set,
            Err(errors) if snapshot.has_unreadable() => {
                return Err(ReadPoliciesError::Unreadable(errors));
            }
            Err(errors) => return Err(errors.into()),
        };
        let prepared = self.surroundings.prepare(&self.context, &set)?;
        Ok((set, prepared))
    }

    /// A set that is invalid, fails its examples, has a rule below its minimum trust, or vanished
    /// changes nothing: the last accepted one stays active, also over a restart.
    fn refuse(&mut self, error: &ReadPoliciesError) {
        let text = error.to_string();
        if self.context.refused().as_ref() != Some(&text) {
            self.context.refuse_policies(text);
        }
        if error.may_pass() || !self.accepted_read {
            self.directory.retry_later(self.surroundings.now());
        } else {
            self.directory.settled();
        }
        if !self.context.active().loaded {
            self.restore();
        }
    }

    /// Activates the set that was accepted last, from what is stored of it.
    fn restore(&mut self) {
        let Some(snapshot) = self.accepted.clone() else {
            return;
        };
        match self.prepare(&snapshot) {
            Ok((set, prepared)) => {
                let why = self.context.refused();
                self.activate(set, prepared);
                if let Some(why) = why {
                    self.context.refuse_policies(why);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the policies that were accepted last cannot be used now");
                self.directory.retry_later(self.surroundings.now());
            }
        }
    }

    /// Stores a set and makes it active.
    fn accept(&mut self, snapshot: Snapshot, set: PolicySet, prepared: Prepared) {
        let db = &self.context.db;
        if let Err(error) = db.accept_policies(set.revision(), &snapshot, unix_seconds()) {
            return self.refuse(&ReadPoliciesError::Store(error));
        }
        self.accepted = Some(snapshot);
        self.accepted_read = true;
        self.directory.settled();
        self.activate(set, prepared);
    }

    fn activate(&mut self, set: PolicySet, prepared: Prepared) {
        let revision = set.revision().to_string();
        let active = self.context.active();
        let unchanged = active.loaded && active.set.revision() == revision;
        // What an earlier set's report is about is over.
        self.dryrun = None;
        self.context.activate_policies(set, prepared);
        self.dryrun = DryRun::start(&self.context);
        if unchanged {
            // Its examples or prompts may have changed, and with them the exam.
            self.examine();
            return;
        }
        self.context.clear_board();
        match &self.running {
            Some(running) if running.revision == revision => {}
            Some(running) => {
                running.flag.set(StopReason::Superseded);
                self.pending = Some(Trigger::Policy);
            }
            None => {
                // Before the first set, the process has not begun anything yet.
                let trigger = if active.loaded {
                    Trigger::Policy
                } else {
                    Trigger::Start
                };
                self.begin_or_owe(trigger);
            }
        }
        self.examine_if_unknown();
    }

    /// Makes the empty set the accepted one: an operator's explicit act.
    pub(super) fn clear_policies(&mut self) -> Result<(), ClearError> {
        if self.context.follows() {
            let why =
                "this server follows a store and has no policies; clear them on the controller";
            return Err(ClearError::Refused(why.into()));
        }
        let directory = &self.context.config.paths.policies;
        let found = self.surroundings.policies(&self.context);
        match &found {
            Ok(found) if found.has_policies() => {
                return Err(ClearError::StillThere(directory.clone()));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let error = io::Error::new(error.kind(), error.to_string());
                let directory = directory.clone();
                return Err(ReadPoliciesError::Directory { directory, error }.into());
            }
            _ => {}
        }
        // What comes back later is other content than this.
        let now = self.surroundings.now();
        self.directory.look(found, now, true);
        let snapshot = Snapshot::default();
        let (set, prepared) = self.prepare(&snapshot)?;
        self.accept(snapshot, set, prepared);
        match self.context.refused() {
            Some(why) => Err(ClearError::Refused(why)),
            None => Ok(()),
        }
    }
}
