//! Probes: calibrated classifiers over pooled hidden states and n-grams, fitted on labelled
//! responses.
//!
//! Cross-validation chooses the form at two penalties, then the penalty; folds never share a
//! prompt. The out-of-fold probabilities calibrate the model and are stored, so that a rule is
//! measured on responses that the model did not see.

mod fit;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::time::UNIX_EPOCH;

use realign_core::files::{self, Limit};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::blend::{Blend, Form};
use super::calibration::Calibration;
use super::features::FeatureError;
use crate::policy::{Exchange, Labelled, ProbeSpec, Score};
use realign_core::clock::since_1970;

/// Incremented when the same inputs would give another probe; part of [`FittedProbe::key`].
const FIT_VERSION: u32 = 2;
/// Minimum number of labelled responses of each verdict.
pub(crate) const MIN_PER_VERDICT: usize = 8;
/// Maximum number of responses to fit on, which limits features to a few hundred megabytes. If
/// there are more, those with the smallest hashes are used.
pub(crate) const MAX_FIT_ROWS: usize = 4000;
/// Folds of the cross-validation.
const FOLDS: usize = 5;
/// Maximum size of a stored probe.
const MAX_STORED: Limit = Limit::mib(256);

/// Why a probe cannot be fitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// There are too few labelled responses or prompts.
    #[error(
        "a probe needs at least {MIN_PER_VERDICT} examples of each verdict, over at least {FOLDS} prompts; it has {violating} violating and {complying} complying ones over {prompts} prompts: add {} violating, {} complying and {} prompts (as examples, or in a `data` file)",
        MIN_PER_VERDICT.saturating_sub(*violating), MIN_PER_VERDICT.saturating_sub(*complying), FOLDS.saturating_sub(*prompts)
    )]
    TooFew {
        /// Violating examples.
        violating: usize,
        /// Complying examples.
        complying: usize,
        /// Different prompts.
        prompts: usize,
    },
    /// The same response is labelled both ways.
    #[error("the same response to {prompt:?} is labelled `violates` and `complies`")]
    Contradiction {
        /// The prompt's first 80 characters.
        prompt: String,
    },
    /// Hidden states are unavailable.
    #[error(transparent)]
    Features(#[from] FeatureError),
}

/// A fitted probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FittedProbe {
    /// See [`FittedProbe::key`].
    pub(crate) key: String,
    /// Ridge penalty, chosen by cross-validation.
    pub penalty: f32,
    /// Number of distinct rows it was fitted on.
    pub(crate) rows: usize,
    /// The probe holds at this probability or above.
    #[serde(with = "super::bits")]
    pub(crate) threshold: f64,
    blend: Blend,
    calibration: Calibration,
    /// Probability of each training row under a model that did not see its prompt, by the row's
    /// digest.
    left_out: BTreeMap<String, f32>,
}

impl FittedProbe {
    /// SHA-256 (64 hex digits) over everything that a fit depends on; `base` is the content hash of
    /// the base model.
    pub(crate) fn key(spec: &ProbeSpec, base: &str) -> String {
        let mut hasher = Sha256::new();
        hasher.update(FIT_VERSION.to_le_bytes());
        hasher.update(spec.id());
        hasher.update(base);
        hex::encode(hasher.finalize())
    }

    /// Scores an exchange from its hidden states, one vector per layer.
    pub fn score(&self, exchange: &Exchange<'_>, hidden: &[Vec<f32>]) -> Score {
        let value = self.blend.value(hidden, exchange.response);
        Score {
            probability: self.calibration.probability(value),
            threshold: self.threshold,
        }
    }

    /// The score of a response it was fitted on, from the fold's model, which did not see the
    /// prompt; `None` for other responses.
    pub fn left_out(&self, exchange: &Exchange<'_>) -> Option<Score> {
        let probability = *self
            .left_out
            .get(&digest(exchange.prompt, exchange.response))?;
        Some(Score {
            probability: f64::from(probability),
            threshold: self.threshold,
        })
    }

    /// Reads the probe with this key from `dir`, if it is stored there.
    pub(crate) fn load(dir: &Path, key: &str) -> Option<FittedProbe> {
        let path = dir.join(format!("{key}.json"));
        let bytes = files::read(&path, MAX_STORED).ok()?;
        let probe: FittedProbe = serde_json::from_slice(&bytes).ok()?;
        if probe.key != key {
            return None;
        }
        // The file's time is when it was last used; those that were not for long are removed.
        let file = File::options().write(true).open(&path);
        let touched = file.and_then(|file| file.set_modified(UNIX_EPOCH + since_1970()));
        if let Err(error) = touched {
            tracing::debug!(%error, path = %path.display(), "the use of a probe is not recorded");
        }
        Some(probe)
    }

    /// Stores the probe in `dir`. Failure is only logged: the probe is then fitted again later.
    pub(crate) fn store(&self, dir: &Path) {
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir)?;
            let path = dir.join(format!("{}.json", self.key));
            let staged = dir.join(format!(".{}.{}", self.key, std::process::id()));
            std::fs::write(&staged, serde_json::to_vec(self)?)?;
            std::fs::rename(staged, path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, dir = %dir.display(), "a probe cannot be kept; it will be fitted again");
        }
    }

    /// The terms it sums, besides the response's hidden states and n-grams.
    pub fn form(&self) -> Form {
        self.blend.form
    }
}

fn digest(prompt: &str, response: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update((prompt.len() as u64).to_le_bytes());
    hasher.update(prompt);
    hasher.update(response);
    hex::encode(&hasher.finalize()[..16])
}

/// Distinct rows in an order that does not depend on the file's; at most [`MAX_FIT_ROWS`].
fn training_rows(training: &[Labelled]) -> Result<Vec<&Labelled>, ProbeError> {
    let mut distinct: BTreeMap<String, &Labelled> = BTreeMap::new();
    for row in training {
        let first = distinct
            .entry(digest(&row.prompt, &row.response))
            .or_insert(row);
        if first.violates != row.violates {
            let prompt = row.prompt.chars().take(80).collect();
            return Err(ProbeError::Contradiction { prompt });
        }
    }
    let rows: Vec<&Labelled> = distinct.into_values().take(MAX_FIT_ROWS).collect();
    let violating = rows.iter().filter(|row| row.violates).count();
    let complying = rows.len() - violating;
    let mut prompts: Vec<&str> = rows.iter().map(|row| row.prompt.as_str()).collect();
    prompts.sort_unstable();
    prompts.dedup();
    let prompts = prompts.len();
    if violating < MIN_PER_VERDICT || complying < MIN_PER_VERDICT || prompts < FOLDS {
        return Err(ProbeError::TooFew {
            violating,
            complying,
            prompts,
        });
    }
    Ok(rows)
}

/// The fold of every row. Rows with the same prompt share a fold, the one that has the fewest rows
/// of their more frequent verdict so far.
fn folds(rows: &[&Labelled]) -> Vec<usize> {
    let mut groups: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        groups.entry(&row.prompt).or_default().push(index);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    groups.sort_by_key(|group| (std::cmp::Reverse(group.len()), group[0]));
    let mut counts = [[0usize; 2]; FOLDS];
    let mut fold_of = vec![0; rows.len()];
    for group in groups {
        let violating = group.iter().filter(|&&i| rows[i].violates).count();
        let verdict = usize::from(2 * violating > group.len());
        let fold = (0..FOLDS)
            .min_by_key(|&f| (counts[f][verdict], counts[f][0] + counts[f][1], f))
            .unwrap_or(0);
        counts[fold][1] += violating;
        counts[fold][0] += group.len() - violating;
        group.into_iter().for_each(|i| fold_of[i] = fold);
    }
    fold_of
}

#[cfg(test)]
mod tests;
