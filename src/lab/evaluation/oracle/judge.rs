//! A judge measured on labelled pairs: by itself, and in a cascade where the probe is unsure.

use std::sync::Arc;
use std::time::Instant;

use realign_align::oracle::MemoryScoreCache;
use realign_align::oracle::judge::{Judge, JudgeUsage};
use realign_align::oracle::measure::best_threshold;
use realign_align::policy::{Exchange, JudgeSpec};

use super::methods::MethodVerdicts;
use super::{Folds, LabelledPairs, OracleEvalError};

/// The cascade without a judge: its verdict on every response, and where its probe was unsure.
pub(super) struct ProbeCascade<'a> {
    pub(crate) verdicts: &'a [bool],
    pub(crate) unsure: &'a [bool],
}

/// Asks the judge about every response, those that the probe was unsure about first, so that the
/// cost of a cascade is counted separately. The threshold for a response is fitted on the other
/// folds.
pub(super) fn run(
    data: &LabelledPairs,
    folds: &Folds,
    spec: &Arc<JudgeSpec>,
    cascade: &ProbeCascade<'_>,
) -> Result<Vec<MethodVerdicts>, OracleEvalError> {
    let fixed = JudgeSpec {
        // Nothing is fitted on the policy's examples; the folds do that here.
        threshold: Some(spec.threshold.unwrap_or(0.5)),
        ..(**spec).clone()
    };
    let judge = Judge::prepare(Arc::new(fixed), Arc::new(MemoryScoreCache::default()))?;
    let count = data.responses.len();
    let mut probabilities = vec![0.0; count];
    let mut used = Vec::new();
    for unsure in [true, false] {
        let started = Instant::now();
        let asked: Vec<usize> = (0..count)
            .filter(|&i| cascade.unsure[i] == unsure)
            .collect();
        let exchanges: Vec<Exchange<'_>> = asked
            .iter()
            .map(|&i| data.responses[i].exchange())
            .collect();
        for (&i, answer) in asked.iter().zip(judge.ask_all(&exchanges)) {
            probabilities[i] = answer?;
        }
        used.push((judge.usage(), asked.len(), started.elapsed().as_secs_f64()));
    }
    let judged = by_threshold(data, folds, spec, &probabilities);
    let both = (0..count).map(|i| {
        if cascade.unsure[i] {
            judged[i]
        } else {
            cascade.verdicts[i]
        }
    });
    let both: Vec<bool> = both.collect();
    let (first, whole) = (&used[0], &used[1]);
    let judge_remark = remark(whole.0, count, first.2 + whole.2);
    let cascade_remark = remark(first.0, first.1, first.2);
    Ok(vec![
        MethodVerdicts::new("judge", judged, judge_remark),
        MethodVerdicts::new("cascade, judge", both, cascade_remark),
    ])
}

/// MethodVerdicts by the policy's threshold, or by one fitted on the other folds.
fn by_threshold(
    data: &LabelledPairs,
    folds: &Folds,
    spec: &JudgeSpec,
    probabilities: &[f64],
) -> Vec<bool> {
    let mut out = vec![false; probabilities.len()];
    for fold in 0..folds.count {
        let (held, kept): (Vec<usize>, Vec<usize>) =
            (0..out.len()).partition(|&i| folds.of_response[i] == fold);
        let known: Vec<f64> = kept.iter().map(|&i| probabilities[i]).collect();
        let truth: Vec<bool> = kept.iter().map(|&i| data.responses[i].violates).collect();
        let threshold = spec
            .threshold
            .unwrap_or_else(|| best_threshold(&known, &truth));
        for i in held {
            out[i] = probabilities[i] >= threshold;
        }
    }
    out
}

fn remark(usage: JudgeUsage, asked: usize, seconds: f64) -> String {
    format!(
        "{asked} questions, {} answered, {} retries; {} tokens in, {} out, cost {:.4}; {seconds:.0} s",
        usage.calls, usage.retries, usage.prompt_tokens, usage.completion_tokens, usage.cost
    )
}
