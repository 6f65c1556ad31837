//! Fitted probes that no policy has used for long.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Probes used within this time stay. Using one sets its file's time.
const RECENT: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// Removes all but the `most` last used probes of a directory, and what interrupted writes left, and
/// returns how many probes. With `apply` false they are only counted.
pub(super) fn collect(dir: &Path, most: Option<usize>, apply: bool) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let aged = entries.filter_map(|entry| {
        let age = entry.metadata().ok()?.modified().ok()?.elapsed();
        // A time to come is no age.
        Some((age.unwrap_or_default(), entry.path()))
    });
    let is_probe = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
    let (mut probes, others): (Vec<_>, Vec<_>) = aged.partition(|(_, path)| is_probe(path));
    probes.sort();
    let surplus = probes.split_off(most.unwrap_or(probes.len()).min(probes.len()));
    let is_old = |(age, _): &&(Duration, PathBuf)| *age > RECENT;
    let remove = |path: &Path| {
        let removed = std::fs::remove_file(path);
        removed
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a probe stays"))
            .is_ok()
    };
    if apply {
        let left = others.iter().filter(is_old).filter(|(_, path)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with('.')
        });
        left.for_each(|(_, path)| {
            remove(path);
        });
    }
    let gone = surplus.iter().filter(is_old);
    gone.filter(|(_, path)| !apply || remove(path)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::UNIX_EPOCH;

    #[test]
    fn only_probes_that_were_not_used_for_long_go() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, at: Option<u64>| {
            let file = File::create(dir.path().join(name)).unwrap();
            if let Some(at) = at {
                file.set_modified(UNIX_EPOCH + Duration::from_secs(at))
                    .unwrap();
            }
        };
        for (name, at) in [
            ("a.json", Some(1)),
            ("b.json", Some(2)),
            ("c.json", None),
            ("d.json", None),
            (".e.17", Some(3)),
            ("notes", Some(4)),
        ] {
            write(name, at);
        }
        let left = || {
            let names = ["a.json", "b.json", "c.json", "d.json", ".e.17", "notes"];
            names.map(|name| dir.path().join(name).exists())
        };
        assert_eq!(collect(dir.path(), Some(3), false), 1);
        assert_eq!(left(), [true; 6]);
        assert_eq!(collect(dir.path(), None, false), 0);
        assert_eq!(collect(dir.path(), Some(1), true), 2);
        assert_eq!(left(), [false, false, true, true, false, true]);
        assert_eq!(collect(&dir.path().join("none"), Some(1), true), 0);
    }
}
