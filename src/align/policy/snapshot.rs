//! The files of a policy directory, read once: what a set is loaded from, and what is stored when
//! it is accepted.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use realign_core::files;
use sha2::{Digest, Sha256};

use super::error::{PolicyError, PolicyErrors};
use super::parse::yaml_options;
use super::set::{PolicySet, is_policy_file, read_watched, watched_files};

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
    /// If the directory itself is missing or cannot be read.
    pub fn read(dir: &Path) -> io::Result<Snapshot> {
        // A missing directory is an error here; an empty one is not.
        files::list(dir)?;
        let mut snapshot = Snapshot::default();
        for file in watched_files(dir)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
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
