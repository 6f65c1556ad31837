//! What operators see: the API's answers and the metrics say what is so.

use super::Simulation;
use super::model::require;
use super::process::Process;
use crate::api::AdminPort;
use crate::state::Act;
use realign_core::AlignmentState;

impl Simulation {
    /// The answers of the operator routes agree with memory and with each other.
    pub(super) fn check_answers(&self) -> Result<(), String> {
        let process = self.process.as_ref().expect("a process runs");
        let control = &process.control;
        let generations = control.generations();
        let serving = process.serving();
        require(
            generations.current == serving
                && generations.previous == process.previous()
                && generations.pinned == process.pinned(),
            || format!("{serving} serves, and the API answers {generations:?}"),
        )?;
        let policies = control.policies();
        let active = process.active();
        require(
            active.is_none_or(|active| active == policies.revision),
            || "the API shows other policies than those that are active".into(),
        )?;
        self.history_is_a_chain(control)?;
        self.alignment_is_measured(process)
    }

    /// Each activation leaves what the one before it led to, whatever the clock said.
    fn history_is_a_chain(&self, control: &impl AdminPort) -> Result<(), String> {
        if self.model.is_uncertain() {
            return Ok(());
        }
        let history = control.history().map_err(|e| e.to_string())?.activations;
        let newest = history.first().map(|row| &row.to);
        require(
            newest.is_none_or(|newest| *newest == self.model.serving),
            || {
                format!(
                    "{} serves, and the history ends {newest:?}",
                    self.model.serving
                )
            },
        )?;
        for pair in history.windows(2) {
            let (later, earlier) = (&pair[0], &pair[1]);
            require(later.seq > earlier.seq && later.from == earlier.to, || {
                format!("{earlier:?} was followed by {later:?}")
            })?;
        }
        let moved = |row: &crate::state::Activation| row.from != row.to || row.act == Act::Recover;
        require(history.iter().all(moved), || {
            "the history names a change that changed nothing".into()
        })
    }

    /// Nothing sat an exam here: what has to comply with policies is never called aligned.
    fn alignment_is_measured(&self, process: &Process) -> Result<(), String> {
        let alignment = process.control.alignment();
        let aligned = alignment.state == AlignmentState::Aligned;
        let idle = process.active().is_some() && !self.model.is_governed();
        let fell_back = process.context().fallback().is_some();
        require(!aligned || (idle && !fell_back), || {
            format!("aligned without an exam: {alignment:?}")
        })?;
        require(aligned || !idle || fell_back, || {
            format!("nothing is asked, and the API answers {alignment:?}")
        })
    }

    /// At rest, the metrics count what happened since the process started.
    pub(super) fn check_metrics(&self) -> Result<(), String> {
        let process = self.process.as_ref().expect("a process runs");
        let text = process.context().telemetry.metrics().render();
        let sum = |name: &str, label: &str| -> f64 {
            let of = |line: &&str| line.starts_with(name) && line.contains(label);
            let values = text.lines().filter(of);
            values
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        let swaps = sum("realign_swaps_total{", "result=\"ok\"");
        require(swaps == f64::from(self.model.changes), || {
            format!(
                "{} changes were made, and {swaps} counted",
                self.model.changes
            )
        })?;
        let serving = format!("generation=\"{}\"", process.serving());
        require(sum("realign_generation_info{", &serving) == 1.0, || {
            format!("the metrics do not name {serving}, which serves")
        })?;
        let refused = process.context().refused().is_some();
        let successful = sum("realign_policy_last_reload_successful", "");
        require((successful == 1.0) != refused, || {
            format!("refused: {refused}, and the metric says {successful}")
        })?;
        let ended = self.outside.ended_rows()?;
        let since = ended - process.ended_before;
        let counted = sum("realign_realignments_total{", "");
        require(counted == since as f64, || {
            format!("{since} realignments ended, and {counted} are counted")
        })
    }
}
