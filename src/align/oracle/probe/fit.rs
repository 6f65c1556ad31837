//! How a probe is fitted: what cross-validation compares, and in which order.

use rayon::prelude::*;

use super::{FOLDS, FittedProbe, ProbeError, digest, folds, training_rows};
use crate::oracle::blend::{Blend, Form, Reader, Similarities};
use crate::oracle::calibration::{Calibration, softplus};
use crate::oracle::features::FeatureSource;
use crate::oracle::kernel::Gram;
use crate::oracle::measure::best_threshold;
use crate::oracle::text::{Sparse, Vocabulary};
use crate::policy::{Exchange, ProbeSpec};

const PENALTIES: [f32; 6] = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03];
/// Forms are compared at these two: what is best at one is often not at the other.
const COARSE: [f32; 2] = [3.0, 0.1];

/// What a larger form must earn, in nats a row: below that a difference of losses is chance.
const EARNED: f64 = 0.01;

/// Values of rows under fits without their fold, and how good they are.
struct LeftOut {
    values: Vec<f64>,
    calibration: Calibration,
    /// Mean log loss of the calibrated probabilities.
    loss: f64,
}

impl FittedProbe {
    /// Fits a probe.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn fit(spec: &ProbeSpec, source: &dyn FeatureSource) -> Result<FittedProbe, ProbeError> {
        let rows = training_rows(&spec.training)?;
        let exchanges: Vec<Exchange<'_>> = rows.iter().map(|row| row.exchange()).collect();
        let hidden = source.features(&exchanges)?;
        let vocabulary = Vocabulary::fit(rows.iter().map(|row| row.response.as_str()));
        let words: Vec<Sparse> = rows
            .iter()
            .map(|row| vocabulary.vector(&row.response))
            .collect();
        let reader = Reader::fit(&hidden, vocabulary);
        let read = reader.read(&hidden, &words);
        let similar = Similarities::new(&read);
        let (fold_of, positive) = (folds(&rows), rows.iter().map(|row| row.violates));
        let positive: Vec<bool> = positive.collect();
        let form = choose(&similar, &positive, &fold_of);
        let gram = similar.of(form);
        let tries: Vec<LeftOut> = PENALTIES
            .into_par_iter()
            .map(|penalty| left_out(&gram, &positive, &fold_of, penalty))
            .collect();
        let best = smallest(tries.iter().map(|t| t.loss));
        let chosen = &tries[best];
        let probability = |value: &f64| chosen.calibration.probability(*value);
        let probabilities: Vec<f64> = chosen.values.iter().map(probability).collect();
        let everything = vec![true; positive.len()];
        let (weights, mean) = gram.ridge(&everything, &targets(&positive), PENALTIES[best]);
        let keys = rows.iter().map(|row| digest(&row.prompt, &row.response));
        Ok(FittedProbe {
            key: FittedProbe::key(spec, source.base()),
            penalty: PENALTIES[best],
            rows: positive.len(),
            threshold: spec
                .threshold
                .unwrap_or_else(|| best_threshold(&probabilities, &positive)),
            blend: Blend::new(form, reader, &read, (&weights, mean)),
            calibration: chosen.calibration,
            left_out: keys.zip(probabilities.iter().map(|p| *p as f32)).collect(),
        })
    }
}

/// The simplest form whose loss, at the better of the coarse penalties, is as good as the least.
fn choose(similar: &Similarities, positive: &[bool], fold_of: &[usize]) -> Form {
    let tries: Vec<f64> = Form::ALL
        .into_par_iter()
        .map(|form| {
            let gram = similar.of(form);
            let loss = |penalty| left_out(&gram, positive, fold_of, penalty).loss;
            COARSE.map(loss).into_iter().fold(f64::INFINITY, f64::min)
        })
        .collect();
    let least = tries.iter().copied().fold(f64::INFINITY, f64::min);
    let enough = tries.iter().position(|loss| *loss <= least + EARNED);
    Form::ALL[enough.unwrap_or(0)]
}

/// −1 and 1.
fn targets(positive: &[bool]) -> Vec<f32> {
    let target = positive.iter().map(|p| if *p { 1.0 } else { -1.0 });
    target.collect()
}

fn left_out(gram: &Gram, positive: &[bool], fold_of: &[usize], penalty: f32) -> LeftOut {
    let target = targets(positive);
    let mut values = vec![0.0f64; positive.len()];
    for fold in 0..FOLDS {
        let keep: Vec<bool> = fold_of.iter().map(|f| *f != fold).collect();
        let (weights, mean) = gram.ridge(&keep, &target, penalty);
        let seen = gram.apply(&weights);
        for (i, value) in values.iter_mut().enumerate().filter(|(i, _)| !keep[*i]) {
            *value = f64::from(seen[i] + mean);
        }
    }
    let calibration = Calibration::fit(&values, positive);
    let losses = values.iter().zip(positive).map(|(value, positive)| {
        let logit = calibration.slope * value + calibration.offset;
        softplus(if *positive { -logit } else { logit })
    });
    LeftOut {
        loss: losses.sum::<f64>() / positive.len().max(1) as f64,
        calibration,
        values,
    }
}

/// Index of the smallest value, the first of equals.
fn smallest(values: impl Iterator<Item = f64>) -> usize {
    let best = values.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    best.map_or(0, |(index, _)| index)
}
