//! Probes: a calibrated logistic regression over pooled hidden states, fitted on labelled responses.
//!
//! Layer and pooling are chosen by cross-validation at a middling penalty, then the penalty; folds
//! never share a prompt. The probabilities of left-out rows calibrate the model and are kept, so
//! that a rule's trust is measured on responses the model did not see.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::features::{FeatureError, FeatureSource, Pooling, View};
use super::logistic::{Calibration, Linear, Table, softplus};
use super::measure::best_threshold;
use super::products::Products;
use crate::policy::{Exchange, Labelled, ProbeSpec, Score};

/// Changes when the same inputs would give another probe.
const FIT_VERSION: u32 = 1;
/// Least labelled responses of each verdict.
pub const MIN_PER_VERDICT: usize = 8;
/// Most responses to fit on; of more, those with the smallest hashes are taken, so that features
/// stay within a few hundred megabytes.
pub const MAX_FIT_ROWS: usize = 4000;
const FOLDS: usize = 5;
const PENALTIES: [f64; 6] = [3.0, 1.0, 0.3, 0.1, 0.03, 0.01];
const MIDDLING: f64 = 0.3;

/// Why a probe cannot be fitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Too little to learn from.
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
        /// The prompt, cut short.
        prompt: String,
    },
    /// No hidden states.
    #[error(transparent)]
    Features(#[from] FeatureError),
}

/// A fitted probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FittedProbe {
    /// Hash of everything it was fitted from.
    pub key: String,
    /// What it reads.
    pub view: View,
    /// The penalty that cross-validation chose.
    pub penalty: f64,
    /// Rows it was fitted on.
    pub rows: usize,
    /// From which probability on it holds.
    #[serde(with = "super::bits")]
    pub threshold: f64,
    /// Present if products of prompt and response are features too.
    products: Option<Products>,
    model: Linear,
    calibration: Calibration,
    /// Probability of each training row under a model that did not see its prompt, by the row's
    /// digest.
    left_out: BTreeMap<String, f32>,
}

impl FittedProbe {
    /// Hash of everything that a fit depends on.
    pub fn key(spec: &ProbeSpec, base: &str) -> String {
        let mut hasher = Sha256::new();
        hasher.update(FIT_VERSION.to_le_bytes());
        hasher.update(spec.id());
        hasher.update(base);
        hex::encode(hasher.finalize())
    }

    /// What it says of the features of its view.
    pub fn score(&self, features: &[f32]) -> Score {
        Score {
            probability: self.calibration.probability(self.logit(features)),
            threshold: self.threshold,
        }
    }

    fn logit(&self, features: &[f32]) -> f64 {
        match &self.products {
            Some(products) => self.model.logit(&products.extend(features)),
            None => self.model.logit(features),
        }
    }

    /// What it says of a response it was fitted on, by a model that did not see the prompt.
    pub fn left_out(&self, exchange: &Exchange<'_>) -> Option<Score> {
        let probability = *self
            .left_out
            .get(&digest(exchange.prompt, exchange.response))?;
        Some(Score {
            probability: f64::from(probability),
            threshold: self.threshold,
        })
    }

    /// Reads a probe from `dir`, if it was fitted from the same before.
    pub fn load(dir: &Path, key: &str) -> Option<FittedProbe> {
        let bytes = std::fs::read(dir.join(format!("{key}.json"))).ok()?;
        let probe: FittedProbe = serde_json::from_slice(&bytes).ok()?;
        (probe.key == key).then_some(probe)
    }

    /// Keeps the probe in `dir`. A directory that cannot be written costs a fit later, no more.
    pub fn store(&self, dir: &Path) {
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir)?;
            let place = dir.join(format!("{}.json", self.key));
            let staged = dir.join(format!(".{}.{}", self.key, std::process::id()));
            std::fs::write(&staged, serde_json::to_vec(self)?)?;
            std::fs::rename(staged, place)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, dir = %dir.display(), "a probe cannot be kept; it will be fitted again");
        }
    }

    /// Fits a probe.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn fit(spec: &ProbeSpec, source: &dyn FeatureSource) -> Result<FittedProbe, ProbeError> {
        let rows = training_rows(&spec.training)?;
        let views: Vec<View> = source
            .layers()
            .iter()
            .flat_map(|&layer| Pooling::ALL.map(|pooling| View { layer, pooling }))
            .collect();
        let exchanges: Vec<Exchange<'_>> = rows.iter().map(|row| row.exchange()).collect();
        let features = source.features(&exchanges, &views)?;
        let fold_of = folds(&rows);
        let positive: Vec<bool> = rows.iter().map(|row| row.violates).collect();
        let candidates = candidates(&views, &features);
        let try_out = |candidate: &Candidate<'_>, penalty: f64| {
            let logits = left_out_logits(&candidate.rows(), &positive, &fold_of, penalty);
            (log_loss(&logits, &positive), logits)
        };
        let losses: Vec<f64> = candidates
            .par_iter()
            .map(|candidate| try_out(candidate, MIDDLING).0)
            .collect();
        let chosen = &candidates[smallest(&losses)];
        let tries: Vec<(f64, Vec<f64>)> = PENALTIES
            .into_par_iter()
            .map(|penalty| try_out(chosen, penalty))
            .collect();
        let best = smallest(&tries.iter().map(|t| t.0).collect::<Vec<_>>());
        let logits = &tries[best].1;
        let calibration = Calibration::fit(logits, &positive);
        let probabilities: Vec<f64> = logits.iter().map(|z| calibration.probability(*z)).collect();
        let table = Table {
            rows: chosen.rows(),
            positive: positive.clone(),
        };
        let keys = rows.iter().map(|row| digest(&row.prompt, &row.response));
        Ok(FittedProbe {
            key: FittedProbe::key(spec, source.base()),
            view: chosen.view,
            products: chosen
                .products
                .as_ref()
                .map(|(products, _)| products.clone()),
            penalty: PENALTIES[best],
            rows: rows.len(),
            threshold: spec
                .threshold
                .unwrap_or_else(|| best_threshold(&probabilities, &positive)),
            model: Linear::fit(&table, PENALTIES[best]),
            calibration,
            left_out: keys.zip(probabilities.iter().map(|p| *p as f32)).collect(),
        })
    }
}

/// A way to read the hidden states that cross-validation may choose.
struct Candidate<'a> {
    view: View,
    plain: Vec<&'a [f32]>,
    /// The learnt products, and the rows extended by them.
    products: Option<(Products, Vec<Vec<f32>>)>,
}

impl Candidate<'_> {
    fn rows(&self) -> Vec<&[f32]> {
        match &self.products {
            Some((_, rows)) => rows.iter().map(Vec::as_slice).collect(),
            None => self.plain.clone(),
        }
    }
}

/// Every view as it is, and those that hold both texts also with products.
fn candidates<'a>(views: &[View], features: &'a [Vec<Vec<f32>>]) -> Vec<Candidate<'a>> {
    let mut out = Vec::new();
    for (index, &view) in views.iter().enumerate() {
        let plain: Vec<&[f32]> = features.iter().map(|f| f[index].as_slice()).collect();
        if view.pooling == Pooling::Both {
            let products = Products::fit(&plain);
            let rows = plain.iter().map(|row| products.extend(row)).collect();
            out.push(Candidate {
                view,
                plain: plain.clone(),
                products: Some((products, rows)),
            });
        }
        out.push(Candidate {
            view,
            plain,
            products: None,
        });
    }
    out
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

/// A fold per row: prompts stay together, and each goes to the fold that has the fewest rows of
/// its more frequent verdict so far.
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

/// Log-odds of every row under a model fitted without its fold.
fn left_out_logits(
    column: &[&[f32]],
    positive: &[bool],
    fold_of: &[usize],
    penalty: f64,
) -> Vec<f64> {
    let mut logits = vec![0.0; column.len()];
    for fold in 0..FOLDS {
        let kept: Vec<usize> = (0..column.len()).filter(|&i| fold_of[i] != fold).collect();
        let table = Table {
            rows: kept.iter().map(|&i| column[i]).collect(),
            positive: kept.iter().map(|&i| positive[i]).collect(),
        };
        let model = Linear::fit(&table, penalty);
        for i in (0..column.len()).filter(|&i| fold_of[i] == fold) {
            logits[i] = model.logit(column[i]);
        }
    }
    logits
}

fn log_loss(logits: &[f64], positive: &[bool]) -> f64 {
    let losses = logits
        .iter()
        .zip(positive)
        .map(|(z, p)| softplus(if *p { -z } else { *z }));
    losses.sum::<f64>() / logits.len().max(1) as f64
}

/// Index of the smallest value, the first of equals.
fn smallest(values: &[f64]) -> usize {
    let best = (0..values.len()).min_by(|&a, &b| values[a].total_cmp(&values[b]));
    best.unwrap_or(0)
}

#[cfg(test)]
mod tests;
