//! How a probe is fitted: what cross-validation compares, and in which order.

use rayon::prelude::*;

use super::{FOLDS, FittedProbe, ProbeError, digest, folds, training_rows};
use crate::oracle::blend::{Blend, Form, Reader, Similarities};
use crate::oracle::calibration::{Calibration, softplus};
use crate::oracle::features::FeatureSource;
use crate::oracle::kernel::Gram;
use crate::oracle::measure::best_threshold;
use crate::oracle::text::{Sparse, Vocabulary};
use crate::policy::{Exchange, Labelled, ProbeSpec};

const PENALTIES: [f32; 6] = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03];
/// Layers and forms are compared at these two: what is best at one is often not at the other.
const COARSE: [f32; 2] = [3.0, 0.1];
/// Most rows that layer and form are chosen on; time grows with their square.
const CHOOSE_ROWS: usize = 1200;

/// Rows to fit on, with everything that does not depend on the layer.
struct Table<'a> {
    rows: Vec<&'a Labelled>,
    fold_of: Vec<usize>,
    /// (rows, layers, both halves)
    hidden: Vec<Vec<Vec<f32>>>,
    vocabulary: Vocabulary,
    words: Vec<Sparse>,
}

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
        let table = Table::read(training_rows(&spec.training)?, source)?;
        let (layer, form) = table.choose(source.layers().len());
        let column = table.column(layer, table.rows.len());
        let reader = Reader::fit(&column, table.vocabulary.clone());
        let read = reader.read(&column, &table.words);
        let gram = Similarities::new(&read).of(form, &Gram::sparse(&table.words));
        let positive = table.positive();
        let tries: Vec<LeftOut> = PENALTIES
            .into_par_iter()
            .map(|penalty| left_out(&gram, &positive, &table.fold_of, penalty))
            .collect();
        let best = smallest(tries.iter().map(|t| t.loss));
        let chosen = &tries[best];
        let probability = |value: &f64| chosen.calibration.probability(*value);
        let probabilities: Vec<f64> = chosen.values.iter().map(probability).collect();
        let everything = vec![true; positive.len()];
        let (weights, mean) = gram.ridge(&everything, &targets(&positive), PENALTIES[best]);
        let keys = table
            .rows
            .iter()
            .map(|row| digest(&row.prompt, &row.response));
        Ok(FittedProbe {
            key: FittedProbe::key(spec, source.base()),
            layer: source.layers()[layer],
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

impl<'a> Table<'a> {
    fn read(rows: Vec<&'a Labelled>, source: &dyn FeatureSource) -> Result<Self, ProbeError> {
        let exchanges: Vec<Exchange<'_>> = rows.iter().map(|row| row.exchange()).collect();
        let vocabulary = Vocabulary::fit(rows.iter().map(|row| row.response.as_str()));
        Ok(Table {
            fold_of: folds(&rows),
            hidden: source.features(&exchanges, source.layers())?,
            words: rows
                .iter()
                .map(|row| vocabulary.vector(&row.response))
                .collect(),
            vocabulary,
            rows,
        })
    }

    fn positive(&self) -> Vec<bool> {
        self.rows.iter().map(|row| row.violates).collect()
    }

    /// Hidden states of the first rows at a layer.
    fn column(&self, layer: usize, rows: usize) -> Vec<&[f32]> {
        let first = self.hidden.iter().take(rows);
        first.map(|layers| layers[layer].as_slice()).collect()
    }

    /// The layer's index and the form with the least loss at either coarse penalty. Rows are
    /// sorted by their hashes, so the first are a random choice.
    fn choose(&self, layers: usize) -> (usize, Form) {
        let count = self.rows.len().min(CHOOSE_ROWS);
        let (positive, fold_of) = (&self.positive()[..count], &self.fold_of[..count]);
        let words = Gram::sparse(&self.words[..count]);
        let mut tries: Vec<(f64, usize, Form)> = Vec::new();
        for layer in 0..layers {
            let column = self.column(layer, count);
            let reader = Reader::fit(&column, self.vocabulary.clone());
            let similar = Similarities::new(&reader.read(&column, &self.words[..count]));
            tries.par_extend(Form::ALL.into_par_iter().map(|form| {
                let gram = similar.of(form, &words);
                let loss = |penalty| left_out(&gram, positive, fold_of, penalty).loss;
                let least = COARSE.map(loss).into_iter().fold(f64::INFINITY, f64::min);
                (least, layer, form)
            }));
        }
        let (_, layer, form) = tries[smallest(tries.iter().map(|t| t.0))];
        (layer, form)
    }
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
