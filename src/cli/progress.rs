//! Progress bars on stderr: rate and time left on a terminal, nothing where the output is for a
//! machine or goes to a file.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::GlobalArgs;
use realign_align::pipeline::{self, Cache, NoCache, Phase};
use realign_align::train::{self, StepReport, memory};
use realign_model::host_memory::Headroom;
use realign_model::{Backend, Recompute};
use realign_server::config::TrainConfig;

/// Whether a command shows progress bars.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    shown: bool,
}

impl Progress {
    /// Shown on a terminal, unless `--quiet` or `--json` is given.
    pub(crate) fn new(global: &GlobalArgs) -> Self {
        Self {
            shown: std::io::stderr().is_terminal() && !global.quiet && !global.json,
        }
    }

    /// A bar of `total` units, with `what` as its label.
    pub(crate) fn bar(self, total: usize, what: &str) -> ProgressBar {
        self.styled(
            Some(total as u64),
            what,
            "{prefix:10} {wide_bar} {pos}/{len}  {per_sec}  {eta} left  {msg}",
        )
    }

    /// A counter whose total is unknown.
    pub(crate) fn spinner(self, what: &str) -> ProgressBar {
        self.styled(
            None,
            what,
            "{prefix:10} {spinner} {pos}  {per_sec}  {elapsed}",
        )
    }

    fn styled(self, total: Option<u64>, what: &str, template: &str) -> ProgressBar {
        let target = if self.shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(total, target);
        // The template is ours and well-formed; a bar without style still counts.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        bar
    }
}

/// A run of the learning pipeline with a bar for each of its phases, within the memory that the
/// `[train]` section allows.
pub(super) struct Bars<'a> {
    progress: Progress,
    train: &'a TrainConfig,
    bar: RefCell<ProgressBar>,
    checkpoints: Option<PathBuf>,
    cache: &'a dyn Cache,
}

impl<'a> Bars<'a> {
    /// Without checkpoints and without results of earlier runs.
    pub(crate) fn new(progress: Progress, train: &'a TrainConfig) -> Self {
        Self {
            progress,
            train,
            bar: RefCell::new(ProgressBar::hidden()),
            checkpoints: None,
            cache: &NoCache,
        }
    }

    /// Continues from the checkpoints of a directory, and leaves some there.
    pub(crate) fn with_checkpoints(mut self, directory: PathBuf) -> Self {
        self.checkpoints = Some(directory);
        self
    }

    /// Reuses results of earlier runs.
    pub(crate) fn with_cache(mut self, cache: &'a dyn Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Removes the bar that is shown.
    pub(crate) fn clear(&self) {
        self.bar.borrow().finish_and_clear();
    }
}

impl train::Observer for Bars<'_> {
    fn proceed(&self) -> bool {
        true
    }

    fn memory(&self, backend: &dyn Backend) -> Option<Headroom> {
        memory::limit(self.train.memory_mb, backend)
    }

    fn recompute(&self) -> Recompute {
        self.train.recompute
    }

    fn on_step(&self, report: &StepReport) {
        let bar = self.bar.borrow();
        bar.set_position(report.step as u64);
        bar.set_message(format!("loss {:.3}", report.loss.total()));
    }
}

impl pipeline::Observer for Bars<'_> {
    fn enter(&self, phase: Phase, units: usize) {
        self.clear();
        let name = match phase {
            Phase::Reference => "reference",
            Phase::Impact => "impact",
            Phase::Train => "train",
            Phase::Again => "train again",
        };
        self.bar.replace(self.progress.bar(units, name));
    }

    fn on_pass(&self, _phase: Phase, _done: usize, _units: usize) {
        self.bar.borrow().inc(1);
    }

    fn checkpoints(&self) -> Option<PathBuf> {
        self.checkpoints.clone()
    }

    fn cache(&self) -> &dyn Cache {
        self.cache
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_count_whether_they_are_shown_or_not() {
        let quiet = GlobalArgs {
            quiet: true,
            ..GlobalArgs::default()
        };
        let bar = Progress::new(&quiet).bar(3, "pairs");
        assert!(bar.is_hidden());
        bar.inc(2);
        assert_eq!((bar.position(), bar.length()), (2, Some(3)));
    }
}
