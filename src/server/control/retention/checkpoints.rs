//! Checkpoints of training runs that will not be resumed.

use std::path::Path;
use std::time::Duration;

use super::super::inputs::{checkpoint_root, command_run};
use crate::config::Config;
use realign_core::lock::{DirLock, Holder, LOCK_FILE, Place};
use realign_core::trash::{discard, sweep};

/// Time without a checkpoint after which a killed `realign train` counts as given up.
const GIVEN_UP: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Digits of the inputs' hash in a directory's name.
const DIGITS: usize = 16;

/// Removes the runs whose inputs are not in `resumable`, and returns how many. With `apply` false
/// they are only counted.
pub(super) fn collect(config: &Config, resumable: &[String], apply: bool) -> u64 {
    let root = checkpoint_root(config);
    if apply {
        sweep(&root, &[]);
    }
    let entries = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let gone: Vec<String> = names
        .filter(|name| is_over(&root, name, resumable))
        .filter(|name| {
            !apply
                || discard(&root, name)
                    .inspect_err(|error| tracing::warn!(name, %error, "checkpoints stay"))
                    .is_ok()
        })
        .collect();
    if apply {
        sweep(&root, &[]);
    }
    gone.len() as u64
}

/// Whether a run will not be resumed. Names of another form are not ours.
fn is_over(root: &Path, name: &str, resumable: &[String]) -> bool {
    let is_hash = |text: &str| text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
    match command_run(name) {
        Some(hash) => is_hash(hash) && is_given_up(&root.join(name)),
        None => is_hash(name) && !resumable.iter().any(|inputs| inputs.starts_with(name)),
    }
}

/// Whether a command's run was not touched for long, and no command holds it.
fn is_given_up(dir: &Path) -> bool {
    let modified = std::fs::metadata(dir).and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    if age.is_none_or(|age| age < GIVEN_UP) {
        return false;
    }
    let place = Place {
        dir,
        file: LOCK_FILE,
        advice: "",
    };
    DirLock::take(place, &Holder::this_process(None), Duration::ZERO).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    #[test]
    fn runs_that_will_not_go_on_leave_no_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::resolve(RawConfig::default()).unwrap();
        config.paths.state = dir.path().into();
        let root = checkpoint_root(&config);
        let names = [
            "0123456789abcdef",
            "fedcba9876543210",
            "train-0123456789abcdef",
            "notes",
            ".trash-1111111111111111",
        ];
        for name in names {
            std::fs::create_dir_all(root.join(name)).unwrap();
            std::fs::write(root.join(name).join("step-8.safetensors"), "x").unwrap();
        }
        let resumable = ["0123456789abcdef0000".to_owned()];
        assert_eq!(collect(&config, &resumable, false), 1);
        assert!(names.iter().all(|name| root.join(name).exists()));
        assert_eq!(collect(&config, &resumable, true), 1);
        let left = names.map(|name| root.join(name).exists());
        assert_eq!(left, [true, false, true, true, false]);
        config.paths.state = dir.path().join("none");
        assert_eq!(collect(&config, &[], true), 0);
    }
}
