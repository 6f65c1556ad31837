//! Fitting a probe: cross-validation chooses the form, then the penalty.

use rayon::prelude::*;

use super::{FOLDS, FittedProbe, ProbeError, digest, folds, training_rows};
use crate::oracle::blend::{Blend, Form, RowEncoder, Similarities};
use crate::oracle::calibration::{Calibration, softplus};
use crate::oracle::features::FeatureSource;
use crate::oracle::kernel::Gram;
use crate::oracle::measure::best_threshold;
use crate::oracle::text::{SparseVector, Vocabulary};
use crate::policy::{Exchange, ProbeSpec};

/// Ridge penalties to choose from.
const PENALTIES: [f32; 6] = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03];
/// Penalties at which forms are compared: the best form at one is often not the best at the other.
const FORM_PENALTIES: [f32; 2] = [3.0, 0.1];

/// Least improvement for which a larger form is chosen, nats per row: smaller differences of losses
/// are chance.
const MIN_GAIN: f64 = 0.01;

/// Out-of-fold values of all rows, and their loss.
struct OutOfFold {
    values: Vec<f64>,
    calibration: Calibration,
    /// Mean log loss of the calibrated probabilities, nats.
    loss: f64,
}

impl FittedProbe {
    /// Fits a probe on its training rows, with hidden states from `source`.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn fit(spec: &ProbeSpec, source: &dyn FeatureSource) -> Result<FittedProbe, ProbeError> {
        let rows = training_rows(&spec.training)?;
        let exchanges: Vec<Exchange<'_>> = rows.iter().map(|row| row.exchange()).collect();
        let hidden = source.features(&exchanges)?;
        let vocabulary = Vocabulary::fit(rows.iter().map(|row| row.response.as_str()));
        let ngrams: Vec<SparseVector> = rows
            .iter()
            .map(|row| vocabulary.vector(&row.response))
            .collect();
        let encoder = RowEncoder::fit(&hidden, vocabulary);
        let encoded = encoder.encode(&hidden, &ngrams);
        let similar = Similarities::new(&encoded);
        let fold_of = folds(&rows);
        let positive: Vec<bool> = rows.iter().map(|row| row.violates).collect();
        let form = choose_form(&similar, &positive, &fold_of);
        let gram = similar.of(form);
        let candidates: Vec<OutOfFold> = PENALTIES
            .into_par_iter()
            .map(|penalty| out_of_fold(&gram, &positive, &fold_of, penalty))
            .collect();
        let best = smallest(candidates.iter().map(|candidate| candidate.loss));
        let OutOfFold {
            values,
            calibration,
            ..
        } = &candidates[best];
        let probabilities: Vec<f64> = values
            .iter()
            .map(|value| calibration.probability(*value))
            .collect();
        let all = vec![true; positive.len()];
        let fit = gram.ridge(&all, &targets(&positive), PENALTIES[best]);
        let keys = rows.iter().map(|row| digest(&row.prompt, &row.response));
        Ok(FittedProbe {
            key: FittedProbe::key(spec, source.base()),
            penalty: PENALTIES[best],
            rows: positive.len(),
            threshold: spec
                .threshold
                .unwrap_or_else(|| best_threshold(&probabilities, &positive)),
            blend: Blend::new(form, encoder, &encoded, &fit),
            calibration: *calibration,
            left_out: keys.zip(probabilities.iter().map(|p| *p as f32)).collect(),
        })
    }
}

/// The simplest form whose loss, at the better of [`FORM_PENALTIES`], is within [`MIN_GAIN`] of the
/// smallest.
fn choose_form(similar: &Similarities, positive: &[bool], fold_of: &[usize]) -> Form {
    let losses: Vec<f64> = Form::ALL
        .into_par_iter()
        .map(|form| {
            let gram = similar.of(form);
            let loss = |penalty| out_of_fold(&gram, positive, fold_of, penalty).loss;
            FORM_PENALTIES
                .map(loss)
                .into_iter()
                .fold(f64::INFINITY, f64::min)
        })
        .collect();
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let enough = losses.iter().position(|loss| *loss <= least + MIN_GAIN);
    Form::ALL[enough.unwrap_or(0)]
}

/// Regression targets: 1 for a violation, −1 otherwise.
fn targets(positive: &[bool]) -> Vec<f32> {
    positive
        .iter()
        .map(|p| if *p { 1.0 } else { -1.0 })
        .collect()
}

/// Predicts every row by a fit without its fold, and calibrates the predictions.
fn out_of_fold(gram: &Gram, positive: &[bool], fold_of: &[usize], penalty: f32) -> OutOfFold {
    let target = targets(positive);
    let mut values = vec![0.0f64; positive.len()];
    for fold in 0..FOLDS {
        let keep: Vec<bool> = fold_of.iter().map(|f| *f != fold).collect();
        let fit = gram.ridge(&keep, &target, penalty);
        let predicted = gram.apply(&fit.weights);
        for (i, value) in values.iter_mut().enumerate().filter(|(i, _)| !keep[*i]) {
            *value = f64::from(predicted[i] + fit.mean);
        }
    }
    let calibration = Calibration::fit(&values, positive);
    let losses = values.iter().zip(positive).map(|(value, positive)| {
        let logit = calibration.slope * value + calibration.offset;
        softplus(if *positive { -logit } else { logit })
    });
    OutOfFold {
        loss: losses.sum::<f64>() / positive.len().max(1) as f64,
        calibration,
        values,
    }
}

/// Index of the smallest value; the first if several are equal.
fn smallest(values: impl Iterator<Item = f64>) -> usize {
    let best = values.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    best.map_or(0, |(index, _)| index)
}
