//! When troubles end and time passes, what is wanted is what is.

use std::time::Duration;

use super::Simulation;
use super::model::{Look, require};
use super::policies::revision;
use super::schedule::End;
use crate::state::{Act, RealignmentRow};
use crate::telemetry::Outcome;

/// More than the longest wait between two tries.
const LONG: Duration = Duration::from_secs(700);
const TICKS: usize = 6;

impl Simulation {
    pub(super) fn converge(&mut self) -> Result<(), String> {
        self.heal();
        self.unpin()?;
        self.process().deliver();
        self.pass_time()?;
        self.is_at_rest()?;
        self.check_metrics()?;
        self.policies_are_active()?;
        let Some(wanted) = self.wanted() else {
            return Ok(());
        };
        if self.model.serving != wanted[..12] && self.may_differ(&wanted)? {
            let begun = self.process().worker.start_on_request();
            begun.map_err(|e| format!("a realignment cannot be started: {e}"))?;
            self.pass_time()?;
        }
        let serving = &self.model.serving;
        require(*serving == wanted[..12], || {
            format!(
                "{serving} serves, and the policies require {}",
                &wanted[..12]
            )
        })
    }

    /// Time passes, and what is started ends well.
    fn pass_time(&mut self) -> Result<(), String> {
        for _ in 0..TICKS {
            self.tick(LONG);
            self.process().deliver();
            while self.outside.job(|_| ()).is_some() {
                self.swap()?;
                self.end(End::Failed);
            }
            self.model.settle();
            let process = self.process.as_ref().expect("a process runs");
            self.model.look(&self.outside, process, Look::Rested)?;
            self.check()?;
        }
        Ok(())
    }

    fn is_at_rest(&mut self) -> Result<(), String> {
        let process = self.process.as_ref().expect("a process runs");
        self.model.check_rows(&self.outside, process)?;
        let worker = &process.worker;
        require(
            worker.running.is_none() && worker.closing.is_empty(),
            || "something still runs".into(),
        )?;
        require(worker.owed.is_none(), || {
            "a realignment is still owed".into()
        })
    }

    /// What the directory holds is active, if it can be.
    fn policies_are_active(&self) -> Result<(), String> {
        let files = self.outside.files().unwrap_or_default();
        let accepted = self.model.accepted.as_ref();
        let valid = revision(&files).is_some() && !(files.is_empty() && self.model.is_governed());
        require(!valid || accepted == Some(&files), || {
            format!("the directory holds {files:?}, and {accepted:?} is accepted")
        })
    }

    /// Hash of what the active policies require.
    fn wanted(&mut self) -> Option<String> {
        let active = self.process().active()?;
        Some(self.outside.hash(&active))
    }

    /// Whether what serves may be something else until an operator starts a realignment.
    fn may_differ(&self, wanted: &str) -> Result<bool, String> {
        let db = &self.outside.db;
        let text = |error: crate::state::StateError| error.to_string();
        let newest = db.realignments(1).map_err(text)?.into_iter().next();
        let without = |row: &RealignmentRow| {
            matches!(
                row.outcome,
                Some(
                    Outcome::Failed | Outcome::Rejected | Outcome::Cancelled | Outcome::NoConflict
                )
            )
        };
        // What failed for a reason that may pass is tried again.
        let came_to_nothing =
            !self.hindered && newest.is_some_and(|row| row.inputs_hash == wanted && without(&row));
        let died = db.deaths(wanted).map_err(text)?.is_some();
        let last = db.activations(1).map_err(text)?.into_iter().next();
        let recovered = last.is_some_and(|row| row.act == Act::Recover);
        // Without policies, other data changes nothing.
        let nothing_asked = !self.model.is_governed();
        Ok(self.left || came_to_nothing || died || recovered || nothing_asked)
    }
}
