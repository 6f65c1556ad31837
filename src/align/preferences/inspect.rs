//! What files of preference data hold, and what of it is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::dataset::{Contradiction, DatasetError, SkippedLine, for_each_row};
use super::formats::is_read;
use super::rows::Form;
use super::{LineSource, Pair, PairId};

/// What one file holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FileReport {
    /// The file.
    pub file: PathBuf,
    /// How its rows are written.
    pub form: &'static str,
    /// Rows that are not blank.
    pub rows: usize,
    /// Rows that are pairs, copies included.
    pub pairs: usize,
    /// Pairs that this file or one before it has already; they are merged.
    pub duplicates: usize,
    /// Pairs by the format that they were read as.
    pub formats: BTreeMap<&'static str, usize>,
    /// Columns that are read.
    pub used: BTreeSet<String>,
    /// Columns that are not read, and in how many rows they are.
    pub unused: BTreeMap<String, usize>,
    /// Rows that are no pairs, with the reason.
    pub refused: Vec<SkippedLine>,
    /// Pairs whose responses an earlier pair has with the opposite preference; both are kept.
    pub contradictions: Vec<Contradiction>,
    /// The first pair.
    #[serde(skip)]
    pub sample: Option<Pair>,
}

/// Pairs that were read, whatever file they are in.
#[derive(Debug, Default)]
struct Known {
    ids: BTreeSet<PairId>,
    /// By [`Pair::unordered_hash`]: the order of the first pair with these responses, and its place.
    compared: HashMap<[u8; 32], (bool, LineSource)>,
}

/// Reads files and says how, as the data set that they are together.
///
/// # Errors
/// [`DatasetError`] if one cannot be read; rows that are no pairs are in the reports.
pub fn inspect(files: &[PathBuf]) -> Result<Vec<FileReport>, DatasetError> {
    let mut known = Known::default();
    files.iter().map(|file| one(file, &mut known)).collect()
}

fn one(file: &Path, known: &mut Known) -> Result<FileReport, DatasetError> {
    let mut report = FileReport {
        file: file.to_owned(),
        form: Form::of(file).unwrap_or(Form::Lines).as_str(),
        ..FileReport::default()
    };
    for_each_row(file, |row, parsed| {
        report.rows += 1;
        if let Some(Value::Object(object)) = &row {
            for name in object.keys() {
                if is_read(object, name) {
                    report.used.insert(name.clone());
                } else {
                    *report.unused.entry(name.clone()).or_default() += 1;
                }
            }
        }
        match parsed {
            Ok(parsed) => {
                *report.formats.entry(parsed.format).or_default() += 1;
                report.take(parsed.pair, known);
            }
            Err(skipped) => report.refused.push(skipped),
        }
    })?;
    Ok(report)
}

impl FileReport {
    fn take(&mut self, pair: Pair, known: &mut Known) {
        self.pairs += 1;
        if !known.ids.insert(pair.id.clone()) {
            self.duplicates += 1;
            return;
        }
        let (hash, order) = pair.unordered_hash();
        let place = || (order, pair.source.clone());
        let (first, source) = known.compared.entry(hash).or_insert_with(place);
        if *first != order {
            self.contradictions.push(Contradiction {
                first: source.clone(),
                second: pair.source.clone(),
            });
        }
        self.sample.get_or_insert(pair);
    }

    /// The reasons for which rows are refused, each with the lines, the most frequent first.
    pub fn reasons(&self) -> Vec<(&str, Vec<usize>)> {
        let mut reasons: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for refused in &self.refused {
            reasons
                .entry(refused.cause())
                .or_default()
                .push(refused.source.line);
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, lines)| std::cmp::Reverse(lines.len()));
        reasons
    }
}
