//! Figures of `eval oracle`. Pure.

use std::fmt;

use serde::Serialize;

use super::Data;
use super::methods::Verdicts;
use realign_align::oracle::measure::Confusion;
use realign_core::Category;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct EvalReport {
    /// Distinct responses.
    pub responses: usize,
    /// Pairs.
    pub pairs: usize,
    /// Share of responses that violate.
    pub violating: f64,
    /// How fast hidden states were read, all layers.
    pub responses_per_minute: f64,
    /// The methods' figures.
    pub methods: Vec<MethodReport>,
}

/// One method's figures.
#[derive(Clone, Debug, Serialize)]
pub struct MethodReport {
    /// Its name.
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
    /// More about it.
    pub remark: String,
}

impl EvalReport {
    /// Counts every method against the truth.
    pub(super) fn new(data: &Data, verdicts: Vec<Verdicts>) -> EvalReport {
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

fn method(data: &Data, verdicts: Verdicts) -> MethodReport {
    let said = verdicts.violates.iter().copied();
    let counts = Confusion::of(said.zip(data.responses.iter().map(|row| row.violates)));
    let truth = data.pairs.iter();
    let truth: Vec<Category> = truth
        .map(|p| data.category(*p, &|i| data.responses[i].violates))
        .collect();
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

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} responses, {:.3} of them violating; {} pairs; {:.0} responses a minute read",
            self.responses, self.violating, self.pairs, self.responses_per_minute
        )?;
        writeln!(
            f,
            "method          accuracy  macro-F1 | pairs: accuracy  macro-F1  invert  punish  retain"
        )?;
        for m in &self.methods {
            let [invert, punish, retain] = m.pair_f1;
            writeln!(
                f,
                "{:14}  {:8.3}  {:8.3} | {:15.3}  {:8.3}  {invert:6.3}  {punish:6.3}  {retain:6.3}",
                m.method, m.accuracy, m.response_macro_f1, m.pair_accuracy, m.pair_macro_f1
            )?;
        }
        for m in self.methods.iter().filter(|m| !m.remark.is_empty()) {
            writeln!(f, "{}: {}", m.method, m.remark)?;
        }
        Ok(())
    }
}
