//! A directory of policies as one validated, hashed value.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use realign_core::files::{self, Limit};
use serde::Serialize;

use super::error::{PolicyError, PolicyErrors};
use super::labelled::FileReader;
use super::model::{Gate, Policy};
use super::parse::parse;
use super::sha256_json;
use super::snapshot::Snapshot;

/// Maximum size of one policy file, bytes.
pub(crate) const MAX_POLICY_FILE_BYTES: u64 = 1 << 20;

/// Validated policies, ordered by id. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PolicySet {
    policies: Vec<Arc<Policy>>,
    revision: String,
    content_hash: String,
}

impl Default for PolicySet {
    fn default() -> Self {
        PolicySet::from_policies(Vec::new())
    }
}

impl PolicySet {
    /// Reads all `*.yaml` and `*.yml` files of a directory, except hidden files and editors'
    /// temporary files. A missing or empty directory gives the empty set.
    ///
    /// # Errors
    /// Every error of every file. Examples are not run; see [`PolicySet::run_examples`].
    pub fn load_dir(dir: &Path) -> Result<PolicySet, PolicyErrors> {
        match Snapshot::read(dir) {
            Ok(snapshot) => snapshot.load(dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PolicySet::default()),
            Err(error) => {
                let message = format!("cannot read the policy directory: {error}");
                Err(PolicyErrors(vec![PolicyError::file(dir, message)]))
            }
        }
    }

    /// Reads the given files as one set.
    ///
    /// # Errors
    /// Every error of every file.
    pub fn load_files(files: &[PathBuf]) -> Result<PolicySet, PolicyErrors> {
        let mut errors = Vec::new();
        let mut policies: Vec<Policy> = Vec::new();
        for file in files {
            match read_bounded(file)
                .map_err(|error| vec![unreadable(file, &error)])
                .and_then(|bytes| parse_bytes(file, &bytes, &|name| read_labelled_file(file, name)))
            {
                Ok(policy) => policies.push(policy),
                Err(found) => errors.extend(found),
            }
        }
        PolicySet::unless_errors(policies, errors)
    }

    /// Parses files that were read already; `labelled` gives the files that they name.
    pub(super) fn parse_files(
        files: &[(PathBuf, &[u8])],
        labelled: FileReader<'_>,
    ) -> Result<PolicySet, PolicyErrors> {
        let mut errors = Vec::new();
        let mut policies: Vec<Policy> = Vec::new();
        for (file, bytes) in files {
            match parse_bytes(file, bytes, labelled) {
                Ok(policy) => policies.push(policy),
                Err(found) => errors.extend(found),
            }
        }
        PolicySet::unless_errors(policies, errors)
    }

    fn unless_errors(
        policies: Vec<Policy>,
        mut errors: Vec<PolicyError>,
    ) -> Result<PolicySet, PolicyErrors> {
        errors.extend(duplicate_ids(&policies));
        if errors.is_empty() {
            Ok(PolicySet::from_policies(
                policies.into_iter().map(Arc::new).collect(),
            ))
        } else {
            Err(PolicyErrors(errors))
        }
    }

    /// Parses one policy from text; `name` is the file name in messages. A text has no directory,
    /// so a probe with a `data` file is rejected.
    ///
    /// # Errors
    /// Every error of the text.
    pub fn from_yaml(name: &str, text: &str) -> Result<PolicySet, PolicyErrors> {
        let no_files = |_: &Path| {
            Err(io::Error::other(
                "a policy given as text has no files beside it",
            ))
        };
        let policy = parse(Path::new(name), text, &no_files).map_err(PolicyErrors)?;
        Ok(PolicySet::from_policies(vec![Arc::new(policy)]))
    }

    /// Both sets as one.
    ///
    /// # Errors
    /// If a policy of one has the id of a policy of the other.
    pub fn with(&self, other: &PolicySet) -> Result<PolicySet, PolicyErrors> {
        let policies = self.policies.iter().chain(&other.policies);
        let policies: Vec<Arc<Policy>> = policies.cloned().collect();
        match duplicate_ids(policies.iter().map(|policy| &**policy)) {
            errors if errors.is_empty() => Ok(PolicySet::from_policies(policies)),
            errors => Err(PolicyErrors(errors)),
        }
    }

    fn from_policies(mut policies: Vec<Arc<Policy>>) -> PolicySet {
        policies.sort_by(|a, b| a.id.cmp(&b.id));
        let enforced = policies
            .iter()
            .filter(|p| p.is_enforced())
            .map(|p| canonical(p))
            .collect();
        let all = policies
            .iter()
            .map(|p| (p.enforcement, canonical(p)))
            .collect::<Vec<_>>();
        PolicySet {
            revision: sha256_json::<Vec<CanonicalPolicy<'_>>>(&enforced),
            content_hash: sha256_json(&all),
            policies,
        }
    }

    /// The policies, ordered by id.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// The policy with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Policy>> {
        self.policies.iter().find(|policy| policy.id == id)
    }

    /// Whether the set has no policies, `dryrun` ones included.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    #[cfg(test)]
    /// The policies that train: the set without its `dryrun` policies. Its revision is the same.
    pub(crate) fn enforced(&self) -> PolicySet {
        let kept = self
            .policies
            .iter()
            .filter(|p| p.is_enforced())
            .cloned()
            .collect();
        PolicySet::from_policies(kept)
    }

    /// What a realignment depends on: SHA-256 (64 hex digits) over the meaning of the enforced
    /// policies, i.e. ids, versions, gates, and each rule's id, severity and [`super::Rule::hash`].
    /// Comments, layout, file names, the order of rules, descriptions, examples and `dryrun`
    /// policies do not change it.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Like [`PolicySet::revision`], but over all policies, including `dryrun` ones, and their
    /// enforcement.
    pub(crate) fn content_hash(&self) -> &str {
        &self.content_hash
    }

    /// The strictest combination of the enforced policies' gates, with defaults for policies that
    /// declare none; the default gate if no policy is enforced.
    pub fn gate(&self) -> Gate {
        let gates = self
            .policies
            .iter()
            .filter(|p| p.is_enforced())
            .map(|p| p.gate);
        gates.reduce(Gate::strictest).unwrap_or_default()
    }
}

/// What a policy's hash covers, in an order that does not depend on the file.
#[derive(Serialize)]
struct CanonicalPolicy<'a> {
    id: &'a str,
    version: &'a str,
    gate: Gate,
    rules: Vec<CanonicalRule<'a>>,
}

#[derive(Serialize)]
struct CanonicalRule<'a> {
    id: &'a str,
    severity: &'a str,
    hash: &'a str,
}

fn canonical(policy: &Policy) -> CanonicalPolicy<'_> {
    let mut rules: Vec<CanonicalRule<'_>> = policy
        .rules
        .iter()
        .map(|r| CanonicalRule {
            id: &r.id,
            severity: r.severity.as_str(),
            hash: r.hash(),
        })
        .collect();
    rules.sort_by_key(|rule| rule.id);
    CanonicalPolicy {
        id: &policy.id,
        version: &policy.version,
        gate: policy.gate,
        rules,
    }
}

fn duplicate_ids<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Vec<PolicyError> {
    let mut first: BTreeMap<String, &Policy> = BTreeMap::new();
    let mut errors = Vec::new();
    for policy in policies {
        let key = policy.id.to_ascii_lowercase();
        if let Some(other) = first.get(&key) {
            let as_written = if other.id == policy.id {
                String::new()
            } else {
                format!(" as `{}`", other.id)
            };
            errors.push(PolicyError {
                file: policy.source.file.clone(),
                line: Some(policy.source.line),
                column: Some(policy.source.column),
                message: format!(
                    "policy id `{}` is used already in {}{as_written}; policy ids are unique, and upper and lower case count as equal",
                    policy.id, other.source
                ),
            });
        } else {
            first.insert(key, policy);
        }
    }
    errors
}

/// The policy files of a directory, sorted by name; empty if the directory does not exist.
pub(super) fn policy_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = match files::list(dir) {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    paths.retain(|path| is_policy_file(path));
    Ok(paths)
}

/// Decides by the name only: `.x.yaml.swp`, `.#x.yaml`, `x.yaml~`, `#x.yaml#` and vi's `4913` are
/// not policies.
pub(super) fn is_policy_file(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy())
        .unwrap_or_default();
    let hidden = name.starts_with('.') || name.starts_with('#');
    let extension = path.extension().map(|e| e.to_ascii_lowercase());
    !hidden && extension.is_some_and(|e| e == "yaml" || e == "yml")
}

/// The policy files and labelled files of a directory: everything a set can depend on.
pub(super) fn watched_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = policy_files(dir)?;
    if let Ok(paths) = files::list(dir) {
        files.extend(paths.into_iter().filter(|path| {
            let named = path.file_name().map(|n| n.to_string_lossy());
            let hidden = named.is_some_and(|n| n.starts_with('.') || n.starts_with('#'));
            !hidden
                && path
                    .extension()
                    .is_some_and(|e| e == "jsonl" || e == "json" || e == "txt")
        }));
    }
    files.sort();
    Ok(files)
}

/// Reads a labelled file from the directory of a policy.
fn read_labelled_file(policy: &Path, name: &Path) -> io::Result<Vec<u8>> {
    let dir = policy.parent().unwrap_or(Path::new(""));
    read_at_most(&dir.join(name), super::labelled::MAX_LABELLED_BYTES)
}

/// Reads a policy file; an error if it exceeds [`MAX_POLICY_FILE_BYTES`].
pub(super) fn read_bounded(file: &Path) -> io::Result<Vec<u8>> {
    read_at_most(file, MAX_POLICY_FILE_BYTES)
}

/// Reads a policy file or labelled file, each with its own size limit.
pub(super) fn read_watched(file: &Path) -> io::Result<Vec<u8>> {
    if is_policy_file(file) {
        read_bounded(file)
    } else {
        read_at_most(file, super::labelled::MAX_LABELLED_BYTES)
    }
}

fn read_at_most(file: &Path, bound: u64) -> io::Result<Vec<u8>> {
    files::read(file, Limit::bytes(bound))
}

fn unreadable(file: &Path, error: &io::Error) -> PolicyError {
    PolicyError::file(file, format!("cannot read the file: {error}"))
}

fn parse_bytes(
    file: &Path,
    bytes: &[u8],
    labelled: FileReader<'_>,
) -> Result<Policy, Vec<PolicyError>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = &bytes[..error.valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        let message = format!("line {line} is not valid UTF-8; save the file as UTF-8");
        vec![PolicyError::file(file, message)]
    })?;
    parse(file, text, labelled)
}
