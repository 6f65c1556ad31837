//! Removing directories so that a kill leaves none that looks whole.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Beginning of the name of a directory that is being removed.
const TRASH_PREFIX: &str = ".trash-";

/// Takes a directory's name away, durably. [`sweep`] deletes what it held.
///
/// # Errors
/// The operating system's; the directory is unchanged then.
pub fn discard(parent: &Path, name: &str) -> io::Result<()> {
    fs::rename(
        parent.join(name),
        parent.join(format!("{TRASH_PREFIX}{name}")),
    )?;
    if cfg!(unix) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Deletes what was discarded in a directory, now or before a kill, and what else begins with one of
/// `prefixes`. What cannot be deleted is logged and tried again the next time.
pub fn sweep(parent: &Path, prefixes: &[&str]) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let begins = |prefix: &&str| name.starts_with(prefix);
        if !name.starts_with(TRASH_PREFIX) && !prefixes.iter().any(begins) {
            continue;
        }
        let path = entry.path();
        tracing::debug!(path = %path.display(), "removing a leftover");
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "a leftover cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_discarded_is_swept_and_nothing_else() {
        let root = std::env::temp_dir().join(format!("realign-trash-{}", std::process::id()));
        for name in ["a", "b", ".staging-c"] {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "x").unwrap();
        }
        discard(&root, "a").unwrap();
        assert!(discard(&root, "none").is_err());
        assert!(!root.join("a").exists() && root.join(".trash-a/file").exists());
        sweep(&root, &[]);
        assert!(!root.join(".trash-a").exists() && root.join(".staging-c").exists());
        sweep(&root, &[".staging-"]);
        assert!(!root.join(".staging-c").exists() && root.join("b/file").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
