//! Errors in policy files, with their positions.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_saphyr::{Location, MessageFormatter, UserMessageFormatter};

/// One error in one policy file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PolicyError {
    /// The policy file, or the directory if that cannot be read.
    pub(crate) file: PathBuf,
    /// Line from 1; `None` if the error concerns the file as a whole.
    pub(crate) line: Option<u64>,
    /// Column in characters, from 1; `None` if `line` is.
    pub(crate) column: Option<u64>,
    /// What is wrong, what is allowed, what to do.
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl PolicyError {
    /// An error that concerns a file (or directory) as a whole.
    pub(super) fn file(file: &Path, message: impl Into<String>) -> PolicyError {
        PolicyError {
            file: file.to_owned(),
            line: None,
            column: None,
            message: message.into(),
        }
    }

    /// An error at a position; an unknown position (line 0) means the file as a whole.
    pub(super) fn at(file: &Path, location: Location, message: impl Into<String>) -> PolicyError {
        let known = location.line() > 0;
        PolicyError {
            file: file.to_owned(),
            line: known.then(|| location.line()),
            column: known.then(|| location.column()),
            message: message.into(),
        }
    }

    /// A YAML or type error, with the nearest valid name if a name is unknown.
    pub(super) fn yaml(file: &Path, error: &serde_saphyr::Error) -> PolicyError {
        let error = match error.without_snippet() {
            serde_saphyr::Error::AliasError { error, .. } => error.as_ref(),
            other => other,
        };
        let location = error.location().unwrap_or(Location::UNKNOWN);
        PolicyError::at(file, location, yaml_message(error))
    }
}

fn yaml_message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => not_known("key", field, expected),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => not_known("value", variant, expected),
        Error::SerdeMissingField { field, .. } => format!("the key `{field}` is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` stands here a second time")
        }
        Error::MultipleDocuments { .. } => {
            "a policy file holds one policy; put the documents after `---` in files of their own"
                .to_owned()
        }
        Error::Eof { .. } => "the file ends before a policy is complete".to_owned(),
        other => UserMessageFormatter.format_message(other).into_owned(),
    }
}

fn not_known(what: &str, got: &str, expected: &[&str]) -> String {
    // Names that are parsed only to be rejected with a better message are not suggested.
    let offered: Vec<&str> = expected
        .iter()
        .copied()
        .filter(|name| !(matches!(*name, "probe" | "judge") && expected.contains(&"any_regex")))
        .collect();
    let hint = match nearest(got, &offered) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    };
    format!(
        "unknown {what} `{got}`{hint} (allowed: {})",
        offered.join(", ")
    )
}

/// The candidate with the smallest edit distance, if small enough to be a typo.
pub(super) fn nearest<'a>(got: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let fold = |s: &str| s.to_lowercase().replace('-', "_");
    let got = fold(got);
    candidates
        .iter()
        .map(|name| (edit_distance(&got, &fold(name)), *name))
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn edit_distance(a: &str, b: &str) -> usize {
    // Keys are short. A long one is no typo of a key, and must not cost quadratic work.
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substitute = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substitute.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// All errors of a directory of policy files; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct PolicyErrors(pub Vec<PolicyError>);

/// One line per error, each as `file:line:column: message`.
impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}
