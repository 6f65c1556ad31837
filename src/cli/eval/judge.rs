//! A judge measured on labelled pairs: alone, and where the probe is unsure.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::methods::{Verdicts, plain};
use super::{CliError, Data};
use realign_align::oracle::MemoryScoreCache;
use realign_align::oracle::judge::{Judge, JudgeUsage};
use realign_align::oracle::measure::best_threshold;
use realign_align::policy::{Exchange, JudgeSpec, Matcher, PolicySet};

/// The first judge of a policy file.
pub(super) fn of_policy(path: &Path) -> Result<Arc<JudgeSpec>, CliError> {
    super::require(path, "a policy with a judge (--judge)")?;
    let set = PolicySet::load_files(&[path.to_owned()])?;
    let rules = set.policies().iter().flat_map(|policy| &policy.rules);
    let found = rules
        .flat_map(|rule| rule.matchers())
        .find_map(|matcher| match matcher {
            Matcher::Judge(spec) => Some(spec.clone()),
            Matcher::Probe(_) => None,
        });
    found.ok_or_else(|| CliError::Eval(format!("{}: no rule asks a judge", path.display())))
}

/// What the cascade without a judge said of every response, and where its probe was unsure.
pub(super) struct Probed<'a> {
    pub verdicts: &'a [bool],
    pub unsure: &'a [bool],
    pub fold_of: &'a [usize],
}

/// Asks the judge about every response, those that the probe was unsure about first, so that what
/// a cascade costs is counted apart. Its threshold for a response is fitted on the other folds.
pub(super) fn run(
    data: &Data,
    spec: &Arc<JudgeSpec>,
    probed: &Probed<'_>,
    folds: usize,
) -> Result<Vec<Verdicts>, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Eval(error.to_string());
    let fixed = JudgeSpec {
        // Nothing is fitted on the policy's examples; the folds do that here.
        threshold: Some(spec.threshold.unwrap_or(0.5)),
        ..(**spec).clone()
    };
    let judge = Judge::prepare(Arc::new(fixed), Arc::new(MemoryScoreCache::default()));
    let judge = judge.map_err(|error| failed(&error))?;
    let count = data.responses.len();
    let mut probabilities = vec![0.0; count];
    let mut used = Vec::new();
    for unsure in [true, false] {
        let started = Instant::now();
        let asked: Vec<usize> = (0..count).filter(|&i| probed.unsure[i] == unsure).collect();
        let exchanges: Vec<Exchange<'_>> = asked
            .iter()
            .map(|&i| data.responses[i].exchange())
            .collect();
        for (&i, answer) in asked.iter().zip(judge.ask_all(&exchanges)) {
            probabilities[i] = answer.map_err(|error| failed(&error))?;
        }
        used.push((judge.usage(), asked.len(), started.elapsed().as_secs_f64()));
    }
    let alone = by_threshold(data, spec, &probabilities, probed.fold_of, folds);
    let both = (0..count).map(|i| match probed.unsure[i] {
        true => alone[i],
        false => probed.verdicts[i],
    });
    let both: Vec<bool> = both.collect();
    let (first, whole) = (&used[0], &used[1]);
    Ok(vec![
        plain("judge", alone, &remark(whole.0, count, first.2 + whole.2)),
        plain("cascade, judge", both, &remark(first.0, first.1, first.2)),
    ])
}

/// Verdicts by the policy's threshold, or by one fitted on the other folds.
fn by_threshold(
    data: &Data,
    spec: &JudgeSpec,
    probabilities: &[f64],
    fold_of: &[usize],
    folds: usize,
) -> Vec<bool> {
    let mut out = vec![false; probabilities.len()];
    for fold in 0..folds {
        let (held, kept): (Vec<usize>, Vec<usize>) =
            (0..out.len()).partition(|&i| fold_of[i] == fold);
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
