//! Figures of `realign eval oracle`. Pure.

use serde::Serialize;

use realign_align::oracle::measure::Confusion;
use realign_core::Category;

use super::LabelledPairs;
use super::methods::MethodVerdicts;

/// The figures of all methods on one set of labelled pairs.
#[derive(Clone, Debug, Serialize)]
pub struct EvalReport {
    /// Number of distinct responses.
    pub responses: usize,
    /// Number of pairs.
    pub pairs: usize,
    /// Share of responses that violate.
    pub violating: f64,
    /// How fast hidden states of all layers were computed.
    pub responses_per_minute: f64,
    /// The methods' figures.
    pub methods: Vec<MethodReport>,
}

/// One method's figures.
#[derive(Clone, Debug, Serialize)]
pub struct MethodReport {
    /// Name of the method.
    pub method: &'static str,
    /// Share of responses judged right.
    pub accuracy: f64,
    /// Mean F1 of violating and complying responses.
    pub response_macro_f1: f64,
    /// Share of pairs in the right category.
    pub pair_accuracy: f64,
    /// Mean F1 of invert, punish and retain.
    pub pair_macro_f1: f64,
    /// F1 of invert, punish, retain.
    pub pair_f1: [f64; 3],
    /// Costs and choices of the method; may be empty.
    pub remark: String,
}

impl EvalReport {
    /// Compares every method with the labels. `responses_per_minute` is left at 0.
    pub fn new(data: &LabelledPairs, verdicts: Vec<MethodVerdicts>) -> EvalReport {
        let violating = data.responses.iter().filter(|row| row.violates).count();
        EvalReport {
            responses: data.responses.len(),
            pairs: data.pairs.len(),
            violating: violating as f64 / data.responses.len().max(1) as f64,
            responses_per_minute: 0.0,
            methods: verdicts.into_iter().map(|v| method(data, v)).collect(),
        }
    }
}

fn method(data: &LabelledPairs, verdicts: MethodVerdicts) -> MethodReport {
    let violates = verdicts.violates.iter().copied();
    let counts = Confusion::of(violates.zip(data.responses.iter().map(|row| row.violates)));
    let truth: Vec<Category> = data.pairs.iter().map(|p| data.true_category(*p)).collect();
    let got = verdicts.categories.unwrap_or_else(|| {
        let of = |p: &[usize; 2]| data.category(*p, &|i| verdicts.violates[i]);
        data.pairs.iter().map(of).collect()
    });
    let right = truth.iter().zip(&got).filter(|(a, b)| a == b).count();
    let pair_f1 = Category::ALL.map(|category| {
        let is = |c: &Category| *c == category;
        let both = truth
            .iter()
            .zip(&got)
            .filter(|(a, b)| is(a) && is(b))
            .count();
        let either = truth.iter().filter(|c| is(c)).count() + got.iter().filter(|c| is(c)).count();
        2.0 * both as f64 / either.max(1) as f64
    });
    MethodReport {
        method: verdicts.name,
        accuracy: counts.accuracy().unwrap_or(0.0),
        response_macro_f1: counts.macro_f1(),
        pair_accuracy: right as f64 / truth.len().max(1) as f64,
        pair_macro_f1: pair_f1.iter().sum::<f64>() / 3.0,
        pair_f1,
        remark: verdicts.remark,
    }
}
