//! Progress bars on stderr: rate and time left on a terminal, nothing where output is machine's
//! business or nobody looks.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::GlobalArgs;

/// Whether and how a command shows how far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// Shown on a terminal, unless `--quiet` or `--json` is given.
    pub fn new(global: &GlobalArgs) -> Self {
        Self {
            shown: std::io::stderr().is_terminal() && !global.quiet && !global.json,
        }
    }

    /// A bar of `total` units; `what` stands before it.
    pub fn bar(self, total: usize, what: &str) -> ProgressBar {
        self.styled(
            Some(total as u64),
            what,
            "{prefix:10} {wide_bar} {pos}/{len}  {per_sec}  {eta} left  {msg}",
        )
    }

    /// A count without an end that is known.
    pub fn spinner(self, what: &str) -> ProgressBar {
        self.styled(
            None,
            what,
            "{prefix:10} {spinner} {pos}  {per_sec}  {elapsed}",
        )
    }

    fn styled(self, total: Option<u64>, what: &str, template: &str) -> ProgressBar {
        let target = match self.shown {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
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
