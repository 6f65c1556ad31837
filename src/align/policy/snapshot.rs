//! The files of a policy directory, read once: what a set is loaded from, and what is stored when
//! it is accepted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use realign_core::files;
use sha2::{Digest, Sha256};

use super::error::{PolicyError, PolicyErrors};
use super::parse::yaml_options;
use super::set::{PolicySet, is_policy_file, read_watched, watched_files};

/// Tries to read a directory that is exchanged meanwhile.
const READS: usize = 3;
/// The link that a mounted ConfigMap exchanges to replace all files at once.
const MOUNTED: &str = "..data";

/// Names and bytes of the policy files and of the files that policies may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    files: BTreeMap<String, Vec<u8>>,
    /// Files that could not be read, with the reason.
    unreadable: BTreeMap<String, String>,
    newest: Option<SystemTime>,
}

impl Snapshot {
    /// Reads a directory. Files that cannot be read are kept as such.
    ///
    /// # Errors
    /// If the directory itself is missing, cannot be read, or is exchanged again and again.
    pub fn read(dir: &Path) -> io::Result<Snapshot> {
        Snapshot::read_by(dir, Snapshot::read_once)
    }

    /// Reads until the directory is the same before and after: files of two directories are no set.
    fn read_by(
        dir: &Path,
        mut read: impl FnMut(&Path) -> io::Result<Snapshot>,
    ) -> io::Result<Snapshot> {
        let mut before = place(dir);
        for _ in 0..READS {
            let snapshot = read(dir)?;
            let after = place(dir);
            if before == after {
                return Ok(snapshot);
            }
            before = after;
        }
        let why = "the directory was exchanged each time that it was read";
        Err(io::Error::other(why))
    }

    fn read_once(dir: &Path) -> io::Result<Snapshot> {
        // A missing directory is an error here; an empty one is not.
        files::list(dir)?;
        let mut snapshot = Snapshot::default();
        for file in watched_files(dir)? {
            let shown = file.file_name().unwrap_or_default().to_string_lossy();
            let Some(name) = file.file_name().and_then(|name| name.to_str()) else {
                // Two such names may look the same.
                let why = "its name is not UTF-8: rename it";
                snapshot.unreadable.insert(shown.into(), why.into());
                continue;
            };
            let asked = file.clone();
            let modified = files::within_deadline(&file, || std::fs::metadata(asked)?.modified());
            snapshot.newest = snapshot.newest.max(modified.ok());
            match read_watched(&file) {
                Ok(bytes) => drop(snapshot.files.insert(name.into(), bytes)),
                Err(error) => drop(snapshot.unreadable.insert(name.into(), error.to_string())),
            }
        }
        Ok(snapshot)
    }

    /// SHA-256 over names and bytes, and over what could not be read.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        // Hashing each part on its own keeps the boundary between name and content.
        for (name, bytes) in &self.files {
            hasher.update(Sha256::digest(name));
            hasher.update(Sha256::digest(bytes));
        }
        for (name, error) in &self.unreadable {
            hasher.update(Sha256::digest(name));
            hasher.update(error);
        }
        hasher.finalize().into()
    }

    /// Whether there is a policy file, readable or not.
    pub fn has_policies(&self) -> bool {
        let mut names = self.files.keys().chain(self.unreadable.keys());
        names.any(|name| is_policy_file(Path::new(name)))
    }

    /// Whether a file could not be read, which may pass.
    pub fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }

    /// Whether all files of `other` are still there.
    pub fn keeps_files_of(&self, other: &Snapshot) -> bool {
        let names = |s: &'_ Snapshot| -> Vec<String> {
            s.files.keys().chain(s.unreadable.keys()).cloned().collect()
        };
        let here = names(self);
        names(other).iter().all(|name| here.contains(name))
    }

    /// When a file was last modified; `None` if there is none or the file system does not say.
    pub fn newest(&self) -> Option<SystemTime> {
        self.newest
    }

    /// Whether a policy file does not end with a line end, as one does that is still being written.
    pub fn looks_unfinished(&self) -> bool {
        self.files.iter().any(|(name, bytes)| {
            is_policy_file(Path::new(name)) && bytes.last().is_some_and(|last| *last != b'\n')
        })
    }

    /// The set that these files define; `dir` is where error messages say they are.
    ///
    /// # Errors
    /// Every error of every file.
    pub fn load(&self, dir: &Path) -> Result<PolicySet, PolicyErrors> {
        let unreadable = self.unreadable.iter().map(|(name, error)| {
            PolicyError::file(&dir.join(name), format!("cannot read the file: {error}"))
        });
        let mut errors: Vec<PolicyError> = unreadable
            .filter(|error| is_policy_file(&error.file))
            .collect();
        let policies = self.files.iter();
        let policies: Vec<_> = policies
            .filter(|(name, _)| is_policy_file(Path::new(name)))
            .map(|(name, bytes)| (dir.join(name), bytes.as_slice()))
            .collect();
        let labelled = |name: &Path| {
            let name = name.to_string_lossy();
            if let Some(error) = self.unreadable.get(&*name) {
                return Err(io::Error::other(error.clone()));
            }
            let bytes = self.files.get(&*name).cloned();
            bytes.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        match PolicySet::parse_files(&policies, &labelled) {
            Ok(set) if errors.is_empty() => Ok(set),
            Ok(_) => Err(PolicyErrors(errors)),
            Err(found) => {
                errors.extend(found.0);
                Err(PolicyErrors(errors))
            }
        }
    }

    /// The name and the text of the file that holds a policy; `None` if no file does.
    pub fn file_of(&self, policy: &str) -> Option<(&str, &str)> {
        self.files.iter().find_map(|(name, bytes)| {
            let text = std::str::from_utf8(bytes).ok()?;
            let file = is_policy_file(Path::new(name)).then_some(text)?;
            let file: serde_json::Value =
                serde_saphyr::from_str_with_options(file, yaml_options()).ok()?;
            (file["id"] == policy).then_some((name.as_str(), text))
        })
    }

    /// The files as JSON: names to text. Only a snapshot that loads holds nothing but text.
    pub fn to_json(&self) -> String {
        let files: BTreeMap<&str, std::borrow::Cow<'_, str>> = self
            .files
            .iter()
            .map(|(name, bytes)| (name.as_str(), String::from_utf8_lossy(bytes)))
            .collect();
        // Maps of text to text always serialise.
        serde_json::to_string(&files).unwrap_or_default()
    }

    /// Reads what [`Snapshot::to_json`] wrote.
    ///
    /// # Errors
    /// If it is not a map of names to text.
    pub fn from_json(text: &str) -> Result<Snapshot, serde_json::Error> {
        let files: BTreeMap<String, String> = serde_json::from_str(text)?;
        let files = files.into_iter();
        Ok(Snapshot {
            files: files
                .map(|(name, text)| (name, text.into_bytes()))
                .collect(),
            ..Snapshot::default()
        })
    }
}

/// Which directory a path leads to: its real path, its number, and what its files lead to.
fn place(dir: &Path) -> Option<(PathBuf, u64, Option<PathBuf>)> {
    let asked = dir.to_owned();
    let place = files::within_deadline(dir, move || {
        let real = asked.canonicalize()?;
        let number = inode(&std::fs::metadata(&real)?);
        let mounted = std::fs::read_link(real.join(MOUNTED)).ok();
        Ok((real, number, mounted))
    });
    place.ok()
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn exchange(link: &Path, to: &Path) {
        let new = link.with_file_name("new");
        symlink(to, &new).unwrap();
        std::fs::rename(new, link).unwrap();
    }

    /// Two directories of the same files, each with its own name in them.
    fn directories() -> (tempfile::TempDir, [PathBuf; 2]) {
        let root = tempfile::tempdir().unwrap();
        let both = ["one", "two"].map(|name| {
            let dir = root.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            for file in ["a.yaml", "b.yaml"] {
                std::fs::write(dir.join(file), name).unwrap();
            }
            dir
        });
        (root, both)
    }

    fn texts(snapshot: &Snapshot) -> Vec<&[u8]> {
        snapshot.files.values().map(Vec::as_slice).collect()
    }

    /// Reads `dir` while `exchange` is called in the middle of each of the first `times` reads.
    fn torn(dir: &Path, times: usize, exchange: impl Fn()) -> (io::Result<Snapshot>, usize) {
        let mut reads = 0;
        let read = Snapshot::read_by(dir, |dir| {
            reads += 1;
            let first = Snapshot::read_once(dir)?;
            if reads <= times {
                exchange();
            }
            let mut both = Snapshot::read_once(dir)?;
            both.files.extend(first.files.into_iter().take(1));
            Ok(both)
        });
        (read, reads)
    }

    #[test]
    fn files_of_two_directories_are_no_set() {
        let (root, [one, two]) = directories();
        // A link to a release, and the link within a mounted ConfigMap.
        let current = root.path().join("current");
        let map = root.path().join("map");
        std::fs::create_dir(&map).unwrap();
        for (dir, link) in [(&current, current.clone()), (&map, map.join(MOUNTED))] {
            exchange(&link, &one);
            if *dir == map {
                for file in ["a.yaml", "b.yaml"] {
                    symlink(Path::new(MOUNTED).join(file), map.join(file)).unwrap();
                }
            }
            let (read, reads) = torn(dir, 1, || exchange(&link, &two));
            assert_eq!(texts(&read.unwrap()), [b"two", b"two"]);
            assert_eq!(reads, 2);
        }
        let turn = std::cell::Cell::new(false);
        let (read, reads) = torn(&current, usize::MAX, || {
            exchange(
                &current,
                if turn.replace(!turn.get()) {
                    &two
                } else {
                    &one
                },
            );
        });
        assert_eq!(
            (read.unwrap_err().kind(), reads),
            (io::ErrorKind::Other, READS)
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn names_that_are_not_utf8_are_refused_instead_of_merged() {
        let dir = tempfile::tempdir().unwrap();
        for byte in [0xfe, 0xff] {
            let name = [b"a", &[byte][..], b".yaml"].concat();
            let name = std::ffi::OsStr::from_bytes(&name);
            std::fs::write(dir.path().join(name), "id: x").unwrap();
        }
        let snapshot = Snapshot::read(dir.path()).unwrap();
        assert!(snapshot.has_policies() && snapshot.has_unreadable());
        let refused = snapshot.load(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("not UTF-8: rename it"), "{refused}");
    }
}
