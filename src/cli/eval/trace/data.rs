//! The data of a comparison: pairs, their human labels, and the held-out part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;

use crate::{CliError, require};
use realign_align::preferences::{Dataset, Pair, Split, for_each_raw_line, split};
use realign_core::Category;

/// The human labels of a pair's responses: whether each complies.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Truth {
    /// Whether the chosen response complies.
    #[serde(rename = "chosen_compliant")]
    pub(crate) chosen: bool,
    /// Whether the rejected response complies.
    #[serde(rename = "rejected_compliant")]
    pub(crate) rejected: bool,
}

#[derive(Deserialize)]
struct TruthOfLine {
    truth: Option<Truth>,
}

/// The pairs of a file or a directory.
pub(super) fn pairs(file: Option<&Path>, directory: &Path) -> Result<Dataset, CliError> {
    let dataset = match file {
        Some(file) => {
            require(file, "a file of preference pairs (--data)")?;
            Dataset::load_file(file)?
        }
        None => {
            require(directory, "a directory of preference data (--preferences)")?;
            Dataset::load_dir(directory)?
        }
    };
    if dataset.pairs.is_empty() {
        Err(CliError::Eval("there are no preference pairs".into()))
    } else {
        Ok(dataset)
    }
}

/// The labels of every pair; `None` if no line has any. It is an error if only some have.
pub(super) fn truth(dataset: &Dataset) -> Result<Option<Vec<Truth>>, CliError> {
    let mut lines: HashMap<&Path, Vec<Option<Truth>>> = HashMap::new();
    let mut found = Vec::with_capacity(dataset.pairs.len());
    for pair in &dataset.pairs {
        let file = pair.source.file.as_path();
        if !lines.contains_key(file) {
            lines.insert(file, read(file)?);
        }
        found.push(lines[file].get(pair.source.line - 1).copied().flatten());
    }
    let known = found.iter().flatten().count();
    if known == 0 {
        return Ok(None);
    }
    match found.iter().position(Option::is_none) {
        None => Ok(Some(found.into_iter().flatten().collect())),
        Some(missing) => Err(CliError::Eval(format!(
            "{}: has no truth, although {known} other pairs do; give all of them one",
            dataset.pairs[missing].source
        ))),
    }
}

fn read(file: &Path) -> Result<Vec<Option<Truth>>, CliError> {
    let mut truths = Vec::new();
    for_each_raw_line(file, |line| {
        let row = line.and_then(|line| serde_json::from_slice::<TruthOfLine>(line).ok());
        truths.push(row.and_then(|row| row.truth));
    })?;
    Ok(truths)
}

/// Splits pairs into those to train on and those to measure on. If the data marks no pairs as held
/// out, a share of the prompts is drawn. A category without held-out prompts then gives up the same
/// share of its own. No prompt is on both sides.
pub(super) fn hold_out(pairs: &[Pair], categories: &[Category], share: f64, seed: u64) -> Split {
    let ratio = realign_align::pipeline::holdout_ratio(pairs, share);
    let mut parts = split(pairs, ratio, seed);
    let mut moved: BTreeSet<[u8; 32]> = BTreeSet::new();
    for category in Category::ALL {
        let of = |indices: &[usize]| -> BTreeSet<[u8; 32]> {
            let concerned = indices.iter().filter(|&&i| categories[i] == category);
            concerned.map(|&i| pairs[i].prompt_hash()).collect()
        };
        let (train, held) = (of(&parts.train), of(&parts.holdout));
        if held.is_empty() && train.len() > 1 {
            // The order of hashes is arbitrary, so the first are a random draw.
            let count = ((train.len() as f64 * share).ceil() as usize).min(train.len() - 1);
            moved.extend(train.into_iter().take(count));
        }
    }
    let (held, train): (Vec<usize>, Vec<usize>) = parts
        .train
        .iter()
        .partition(|&&i| moved.contains(&pairs[i].prompt_hash()));
    parts.holdout.extend(held);
    parts.holdout.sort_unstable();
    parts.train = train;
    parts
}

/// A held-out prompt: one of its pairs, and all categories that it occurs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Index of a pair with this prompt.
    pub(crate) pair: usize,
    /// Categories of its held-out pairs.
    pub(crate) categories: Vec<Category>,
}

/// The distinct held-out prompts, at most `limit` of each category.
pub(super) fn asked(
    pairs: &[Pair],
    categories: &[Category],
    holdout: &[usize],
    limit: usize,
) -> Vec<Asked> {
    let mut prompts: BTreeMap<[u8; 32], Asked> = BTreeMap::new();
    for &pair in holdout {
        let asked = prompts.entry(pairs[pair].prompt_hash());
        let asked = asked.or_insert_with(|| Asked {
            pair,
            categories: Vec::new(),
        });
        if !asked.categories.contains(&categories[pair]) {
            asked.categories.push(categories[pair]);
        }
    }
    let mut taken: BTreeMap<Category, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for asked in prompts.into_values() {
        let room = |c: &Category| taken.get(c).copied().unwrap_or(0) < limit;
        if asked.categories.iter().any(room) {
            for category in &asked.categories {
                *taken.entry(*category).or_default() += 1;
            }
            kept.push(asked);
        }
    }
    kept
}
