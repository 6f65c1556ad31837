//! `realign triage --merge`: the verdicts of all shards into the state database.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::TriageReport;
use super::verdicts::{EXTENSION, JudgedBy, Verdicts, VerdictsError};
use realign_align::oracle::{CacheCounts, VerdictKey};

/// What all shards found.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) files: usize,
    pub(super) shards: u32,
    /// What the files agree on.
    pub(super) verdicts: Vec<(VerdictKey, bool)>,
    /// Verdicts that two files have, and do not agree on.
    pub(super) disagreements: usize,
}

/// The report of a triage whose verdicts were merged.
#[derive(Debug, Serialize)]
pub struct MergeReport {
    /// Files that were read.
    pub(crate) files: usize,
    /// Shards, all of which are there.
    pub(crate) shards: u32,
    /// Different verdicts in them.
    pub(crate) verdicts: usize,
    /// Those that the state database did not have.
    pub(crate) new: usize,
    /// Verdicts on which two files do not agree, left out.
    pub(crate) disagreements: usize,
    /// Verdicts that were there for the triage of the data here, and that had to be judged.
    pub(crate) used: CacheCounts,
    /// What the data here comes to.
    #[serde(flatten)]
    pub(crate) triage: TriageReport,
}

impl MergeReport {
    /// The report as text for a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "{} files of {} shards: {} verdicts, {} of them new in the state database\n",
            self.files, self.shards, self.verdicts, self.new
        );
        if self.disagreements > 0 {
            let _infallible = writeln!(
                text,
                "{} verdicts differ between files, as a judge's may; they were left out and judged here",
                self.disagreements
            );
        }
        let _infallible = writeln!(
            text,
            "{} verdicts of the data here were there, {} were judged",
            self.used.cached, self.used.judged
        );
        text + &super::triage_text(&self.triage)
    }
}

impl Merged {
    /// Reads all files of verdicts in these directories, and these files.
    ///
    /// # Errors
    /// One that is damaged, was judged by something else than `here`, or a shard that is missing.
    pub(super) fn read(paths: &[PathBuf], here: &JudgedBy) -> Result<Self, VerdictsError> {
        let mut files = BTreeSet::new();
        for path in paths {
            find(path, &mut files)?;
        }
        let mut merged = Self::default();
        let mut known: HashMap<VerdictKey, Option<bool>> = HashMap::new();
        let mut shards = BTreeSet::new();
        for file in &files {
            let read = Verdicts::read(file, here)?;
            shards.insert(read.shard);
            for (key, violates) in read.all {
                let agreed = known.entry(key).or_insert(Some(violates));
                if *agreed != Some(violates) {
                    *agreed = None;
                }
            }
        }
        merged.shards = complete(&shards.iter().map(|s| (s.index(), s.count())).collect())?;
        merged.files = files.len();
        merged.disagreements = known.values().filter(|v| v.is_none()).count();
        let agreed = known.into_iter().filter_map(|(key, v)| Some((key, v?)));
        merged.verdicts = agreed.collect();
        merged.verdicts.sort_unstable();
        Ok(merged)
    }
}

/// Adds a file, or those of a directory.
fn find(path: &Path, into: &mut BTreeSet<PathBuf>) -> Result<(), VerdictsError> {
    let io = |source| VerdictsError::Io {
        path: path.to_owned(),
        source,
    };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        into.insert(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(io)? {
        let found = entry.map_err(io)?.path();
        // What a killed job was writing has another name.
        let is_hidden = found
            .file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && found.extension().is_some_and(|e| e == EXTENSION) {
            into.insert(found);
        }
    }
    Ok(())
}

/// The number of shards, if each is there.
fn complete(shards: &BTreeSet<(u32, u32)>) -> Result<u32, VerdictsError> {
    let incomplete = |why: String| Err(VerdictsError::Incomplete(why));
    let counts: BTreeSet<u32> = shards.iter().map(|(_, count)| *count).collect();
    let Some(count) = counts.first().copied() else {
        return incomplete(format!("there is no file of verdicts (*.{EXTENSION})"));
    };
    if counts.len() > 1 {
        let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
        return incomplete(format!(
            "there are files of {} shards: give those of one triage",
            counts.join(" and of ")
        ));
    }
    let missing = (0..count).filter(|index| !shards.contains(&(*index, count)));
    let missing: Vec<String> = missing.map(|index| format!("{index}/{count}")).collect();
    if !missing.is_empty() {
        let shown = missing
            .iter()
            .take(8)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        return incomplete(format!(
            "{} of {count} shards are missing: {shown}",
            missing.len()
        ));
    }
    Ok(count)
}
