//! The judge of fresh answers, and how well it agrees with human labels.

use std::sync::Arc;

use serde::Serialize;

use super::TraceArgs;
use super::inputs::Labelled;
use crate::CliError;
use realign_align::oracle::measure::Confusion;
use realign_align::oracle::{Exchange, Oracle};
use realign_lab::evaluation::refusal::{LabelledResponse, RefusalJudge};

/// Agreement of a judge with human labels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Reliability {
    pub(crate) responses: usize,
    pub(crate) accuracy: f64,
    pub(crate) macro_f1: f64,
}

/// The judge's name, for the report.
pub(super) fn judged_by(args: &TraceArgs, oracle: &dyn Oracle) -> String {
    match args.judge.as_str() {
        "policy" => {
            let revision: String = oracle.revision().chars().take(12).collect();
            format!("the policies (revision {revision})")
        }
        _ => oracle.revision().to_owned(),
    }
}

/// The judge of fresh answers, and its agreement with human labels where there are any.
pub(super) fn judge(
    args: &TraceArgs,
    labelled: &Labelled,
    policy: Arc<dyn Oracle>,
) -> Result<(Arc<dyn Oracle>, Option<Reliability>), CliError> {
    let rows = responses(labelled);
    if args.judge == "refusal" {
        if rows.is_empty() {
            return Err(CliError::Eval(
                "--judge refusal needs data whose lines have truth: {chosen_compliant, \
                 rejected_compliant}; use --judge policy"
                    .into(),
            ));
        }
        let judge = RefusalJudge::new(rows.iter().copied())
            .map_err(|error| CliError::Eval(error.to_string()))?;
        let verdicts = rows
            .iter()
            .filter_map(|row| Some((!judge.left_out(row)?, !row.complies)));
        let reliability = reliability(Confusion::of(verdicts));
        return Ok((Arc::new(judge), reliability));
    }
    let exchanges: Vec<Exchange<'_>> = rows
        .iter()
        .map(|row| Exchange {
            prompt: row.prompt,
            response: row.response,
            labels: &[],
        })
        .collect();
    let judged = policy.judge_many(&exchanges);
    let verdicts = judged
        .iter()
        .zip(&rows)
        .map(|(judgement, row)| (!judgement.complies(), !row.complies));
    let reliability = reliability(Confusion::of(verdicts));
    Ok((policy, reliability))
}

fn reliability(confusion: Confusion) -> Option<Reliability> {
    Some(Reliability {
        responses: confusion.total(),
        accuracy: confusion.accuracy()?,
        macro_f1: confusion.macro_f1(),
    })
}

/// The distinct responses that people labelled.
fn responses(labelled: &Labelled) -> Vec<LabelledResponse<'_>> {
    let mut seen = std::collections::HashSet::new();
    let mut rows = Vec::new();
    let truths = labelled.truth.iter().flatten();
    for (pair, truth) in labelled.dataset.pairs.iter().zip(truths) {
        for (response, complies) in [
            (pair.chosen.as_str(), truth.chosen),
            (pair.rejected.as_str(), truth.rejected),
        ] {
            let prompt = pair.prompt_text();
            if seen.insert((prompt, response)) {
                rows.push(LabelledResponse {
                    prompt,
                    response,
                    complies,
                });
            }
        }
    }
    rows
}
