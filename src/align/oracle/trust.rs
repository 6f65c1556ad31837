//! How accurate a rule is on its own examples, cross-validated if something was fitted on them.

use std::collections::BTreeSet;
use std::sync::Mutex;

use schemars::JsonSchema;
use serde::Serialize;

use super::error::RuleError;
use super::features::FeatureError;
use super::judge::JudgeError;
use super::matchers::{Features, Matchers};
use super::measure::{Bin, Confusion, calibration, calibration_error};
use crate::policy::{
    Cost, DEFAULT_FITTED_MINIMUM, ExampleVerdict, Exchange, JudgeSpec, Labelled, Matcher, Minimum,
    ProbeSpec, Rule, RuleOutcome, Score, Scores,
};

/// A rule's figures.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RuleTrust {
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// Whether the figures are of verdicts by fits that did not see the example.
    pub cross_validated: bool,
    /// Examples measured on.
    pub examples: usize,
    /// Counts of right and wrong verdicts.
    pub counts: Confusion,
    /// Share of right verdicts.
    pub accuracy: Option<f64>,
    /// Of what it calls a violation, the share that is one.
    pub precision: Option<f64>,
    /// Of the violations, the share that it finds.
    pub recall: Option<f64>,
    /// Predicted against observed, where a probe or a judge gave probabilities.
    pub calibration: Vec<Bin>,
    /// The bins' mean distance from the diagonal.
    pub calibration_error: f64,
    /// What it must reach.
    pub minimum: Minimum,
}

impl RuleTrust {
    /// Describes the first figure below the minimum; `None` if the rule reaches it.
    pub fn shortfall(&self) -> Option<String> {
        let figures = [
            ("accuracy", self.accuracy, self.minimum.accuracy),
            ("precision", self.precision, self.minimum.precision),
            ("recall", self.recall, self.minimum.recall),
        ];
        figures.into_iter().find_map(|(name, got, least)| {
            let (least, of) = (least?, self.examples);
            match got {
                Some(got) if got >= least => None,
                Some(got) => Some(format!(
                    "{name} is {got:.3} on its {of} examples, below its minimum of {least}; it does not activate"
                )),
                None => Some(format!(
                    "its minimum asks for {name} {least}, which its {of} examples cannot show; add examples of both verdicts"
                )),
            }
        })
    }
}

/// Measures a rule on its examples and on the training data of its own probes.
///
/// # Errors
/// [`RuleError`] if hidden states or a judge fail.
pub(crate) fn measure(
    policy: &str,
    rule: &Rule,
    matchers: &Matchers,
) -> Result<RuleTrust, RuleError> {
    let examples = measured_on(rule);
    let questions: Vec<(Exchange<'_>, &Rule)> = examples
        .iter()
        .map(|(row, labels)| {
            (
                Exchange {
                    labels,
                    ..row.exchange()
                },
                rule,
            )
        })
        .collect();
    let features = features(&questions, matchers)?;
    let mut counts = Confusion::default();
    let mut scored = Vec::new();
    for (((row, _), (exchange, _)), features) in examples.iter().zip(&questions).zip(&features) {
        let scores = HeldOutScores {
            matchers,
            features,
            recorded: Mutex::default(),
        };
        let outcome = rule.evaluate_with(exchange, &scores);
        let recorded = scores.recorded.into_inner().unwrap_or_default();
        if outcome == RuleOutcome::Undecided {
            return Err(recorded
                .failure
                .map_or(RuleError::Undecided, RuleError::Judge));
        }
        counts.add(outcome == RuleOutcome::Violated, row.violates);
        scored.extend(recorded.probability.map(|p| (p, row.violates)));
    }
    let bins = calibration(&scored);
    let fitted = rule.cost() != Cost::Text;
    Ok(RuleTrust {
        policy: policy.to_owned(),
        rule: rule.id.clone(),
        cross_validated: fitted,
        examples: counts.total(),
        accuracy: counts.accuracy(),
        precision: counts.precision(),
        recall: counts.recall(),
        counts,
        calibration_error: calibration_error(&bins),
        calibration: bins,
        minimum: match (rule.minimum, fitted) {
            (Some(declared), _) => declared,
            (None, true) => DEFAULT_FITTED_MINIMUM,
            (None, false) => Minimum::default(),
        },
    })
}

/// The rule's examples with their category labels, then the rows of its labelled files, without
/// duplicates.
fn measured_on(rule: &Rule) -> Vec<(Labelled, Vec<String>)> {
    let mut out: Vec<(Labelled, Vec<String>)> = Vec::new();
    for example in &rule.examples {
        let row = Labelled {
            prompt: example.prompt.clone(),
            response: example.response.clone(),
            violates: example.verdict == ExampleVerdict::Violates,
        };
        out.push((row, example.labels.clone()));
    }
    let mut seen: BTreeSet<(String, String)> = out
        .iter()
        .map(|(row, _)| (row.prompt.clone(), row.response.clone()))
        .collect();
    for matcher in rule.matchers() {
        if let Matcher::Probe(spec) = matcher
            && spec.is_own
        {
            for row in spec.training.iter() {
                if seen.insert((row.prompt.clone(), row.response.clone())) {
                    out.push((row.clone(), Vec::new()));
                }
            }
        }
    }
    out
}

/// Hidden states of the questions. Not computed (empty) if every probe was fitted on the examples
/// themselves, since the out-of-fold scores are stored.
fn features(
    questions: &[(Exchange<'_>, &Rule)],
    matchers: &Matchers,
) -> Result<Vec<Features>, FeatureError> {
    let has_stored_scores = |(exchange, rule): &(Exchange<'_>, &Rule)| {
        rule.matchers().into_iter().all(|matcher| match matcher {
            Matcher::Probe(spec) => matchers
                .probes
                .get(spec.id())
                .is_some_and(|probe| probe.left_out(exchange).is_some()),
            Matcher::Judge(_) => true,
        })
    };
    if questions.iter().all(has_stored_scores) {
        return Ok(vec![Features::default(); questions.len()]);
    }
    let mut out = Vec::with_capacity(questions.len());
    for chunk in questions.chunks(256) {
        out.extend(matchers.features_of(chunk)?);
    }
    Ok(out)
}

/// What the matchers answered while one example was evaluated.
#[derive(Debug, Default)]
struct RecordedAnswers {
    /// The last probability given.
    probability: Option<f64>,
    failure: Option<JudgeError>,
}

/// Answers from fits that did not see the example; records them.
struct HeldOutScores<'a> {
    matchers: &'a Matchers,
    features: &'a Features,
    recorded: Mutex<RecordedAnswers>,
}

impl HeldOutScores<'_> {
    fn record(&self, score: Result<Option<Score>, JudgeError>) -> Option<Score> {
        // Nothing panics while the lock is held.
        let mut recorded = self.recorded.lock().ok()?;
        match score {
            Ok(score) => {
                recorded.probability = score.map(|s| s.probability).or(recorded.probability);
                score
            }
            Err(why) => {
                recorded.failure = Some(why);
                None
            }
        }
    }
}

impl Scores for HeldOutScores<'_> {
    fn probe(&self, spec: &ProbeSpec, exchange: &Exchange<'_>) -> Option<Score> {
        let probe = self.matchers.probes.get(spec.id())?;
        let score = probe
            .left_out(exchange)
            .or_else(|| self.matchers.probe_score(spec, exchange, self.features));
        self.record(Ok(score))
    }

    fn judge(&self, spec: &JudgeSpec, exchange: &Exchange<'_>) -> Option<Score> {
        let judge = self.matchers.judges.get(&spec.id())?;
        let text = Exchange {
            labels: &[],
            ..*exchange
        };
        self.record(judge.left_out(&text).map(Some))
    }
}
