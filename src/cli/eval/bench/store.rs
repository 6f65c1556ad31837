//! The file of finished candidates, a JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde_json::json;

use super::figures::{Row, Wrong};
use crate::CliError;

/// Finished candidates, on disk if a file was named.
pub(super) struct Store {
    rows: Vec<Row>,
    file: Option<File>,
}

impl Store {
    /// Opens or creates a file; without one nothing is kept. A last line that an interrupted run left
    /// unfinished is passed over.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let Some(path) = path else {
            return Ok(Self {
                rows: Vec::new(),
                file: None,
            });
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        let read = |line: &str| serde_json::from_str(line).ok();
        Ok(Self {
            rows: text.lines().filter_map(read).collect(),
            file: Some(file),
        })
    }

    /// The finished candidates of a policy and of these inputs, each seed once. Those that failed run
    /// again.
    pub(super) fn known(&self, policy: &str, inputs: &str) -> Vec<Row> {
        let mut known: Vec<Row> = Vec::new();
        let same =
            |row: &&Row| row.policy == policy && row.inputs == inputs && row.failed.is_none();
        for row in self.rows.iter().filter(same) {
            if known.iter().all(|other| other.seed != row.seed) {
                known.push(row.clone());
            }
        }
        known
    }

    /// Appends a candidate.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn append(&mut self, row: &Row) -> Result<(), CliError> {
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_string(row)?;
            line.push('\n');
            file.write_all(line.as_bytes())?;
            file.sync_data()?;
        }
        Ok(())
    }
}

/// The file of answers that count against candidates, if one was named.
pub(super) struct Answers(Option<File>);

impl Answers {
    /// Opens or creates a file; without one nothing is kept.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(path.map(open).transpose()?))
    }

    /// Appends the answers of a candidate.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn append(&mut self, of: &Row, answers: &[Wrong]) -> Result<(), CliError> {
        if let Some(file) = &mut self.0 {
            for answer in answers {
                let line = json!({ "policy": of.policy, "seed": of.seed, "wrong": answer });
                writeln!(file, "{line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: u64, inputs: &str) -> Row {
        Row {
            policy: "brevity".into(),
            seed,
            inputs: inputs.into(),
            ..Row::default()
        }
    }

    #[test]
    fn an_interrupted_run_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("bench.jsonl");
        let mut store = Store::open(Some(&path)).expect("a store");
        store.append(&row(17, "a")).expect("appended");
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"{\"policy\": \"brev"))
            .expect("half a line");
        let mut store = Store::open(Some(&path)).expect("a store");
        store.append(&row(18, "a")).expect("appended");
        store.append(&row(18, "b")).expect("appended");
        let store = Store::open(Some(&path)).expect("a store");
        let seeds = |inputs: &str| {
            let known = store.known("brevity", inputs);
            known.iter().map(|row| row.seed).collect::<Vec<_>>()
        };
        assert_eq!(seeds("a"), [17, 18]);
        assert_eq!(seeds("b"), [18]);
        assert!(store.known("disclaimer", "a").is_empty());
    }
}
