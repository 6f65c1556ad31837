//! Policy tests: every rule is evaluated on its own examples.

use serde::Serialize;

use super::condition::Exchange;
use super::error::PolicyError;
use super::matchers::Cost;
use super::model::{Example, ExampleVerdict, Rule, RuleOutcome, SourceLocation};
use super::set::PolicySet;

/// The result of a set's examples, rule by rule, in set order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExampleReport {
    /// One entry per rule, rules without examples included.
    pub rules: Vec<RuleReport>,
}

/// One rule's examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// Id of the policy.
    pub policy: String,
    /// Id of the rule in its policy.
    pub rule: String,
    /// Examples that got the expected verdict.
    pub passed: usize,
    /// Examples that did not.
    pub failures: Vec<ExampleFailure>,
}

/// An example that did not get the expected verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExampleFailure {
    /// Position of the example.
    pub(crate) source: SourceLocation,
    /// Which example of the rule, from 1.
    pub(crate) number: usize,
    /// The example's verdict.
    pub(crate) expected: ExampleVerdict,
    /// The rule's verdict.
    pub(crate) got: ExampleVerdict,
    /// How the rule reached it, in words.
    pub why: String,
}

impl ExampleReport {
    /// Whether no example failed.
    pub fn passed(&self) -> bool {
        self.rules.iter().all(|rule| rule.failures.is_empty())
    }

    /// Rules that have no example, as (policy, rule).
    pub fn untested(&self) -> Vec<(&str, &str)> {
        self.rules
            .iter()
            .filter(|r| r.passed == 0 && r.failures.is_empty())
            .map(|r| (r.policy.as_str(), r.rule.as_str()))
            .collect()
    }

    /// The failures as policy errors.
    pub fn into_errors(self) -> Vec<PolicyError> {
        let error = |rule: &RuleReport, failure: &ExampleFailure| PolicyError {
            file: failure.source.file.clone(),
            line: Some(failure.source.line),
            column: Some(failure.source.column),
            message: format!(
                "rule `{}`: example {} expects `{}`, but the rule says `{}`: {}",
                rule.rule,
                failure.number,
                failure.expected.as_str(),
                failure.got.as_str(),
                failure.why
            ),
        };
        self.rules
            .iter()
            .flat_map(|r| r.failures.iter().map(move |f| error(r, f)))
            .collect()
    }
}

impl PolicySet {
    /// Runs the examples of all policies, including `dryrun` ones. Rules with a probe, a judge or a
    /// declared minimum are skipped: the oracle measures them (`oracle::prepare`).
    pub fn run_examples(&self) -> ExampleReport {
        let mut report = ExampleReport::default();
        for policy in self.policies() {
            for rule in &policy.rules {
                if rule.cost() == Cost::Text && rule.minimum.is_none() {
                    report.rules.push(run_rule(&policy.id, rule));
                }
            }
        }
        report
    }
}

fn run_rule(policy: &str, rule: &Rule) -> RuleReport {
    let failures: Vec<ExampleFailure> = rule
        .examples
        .iter()
        .enumerate()
        .filter_map(|(index, example)| run_example(rule, index, example))
        .collect();
    RuleReport {
        policy: policy.to_owned(),
        rule: rule.id.clone(),
        passed: rule.examples.len() - failures.len(),
        failures,
    }
}

fn run_example(rule: &Rule, index: usize, example: &Example) -> Option<ExampleFailure> {
    let exchange = Exchange {
        prompt: &example.prompt,
        response: &example.response,
        labels: &example.labels,
    };
    let outcome = rule.evaluate(&exchange);
    let got = match outcome {
        RuleOutcome::Violated => ExampleVerdict::Violates,
        RuleOutcome::NotApplicable
        | RuleOutcome::NotMatched
        | RuleOutcome::Excepted(_)
        // Not reached: `run_examples` skips rules with probes and judges.
        | RuleOutcome::Undecided => ExampleVerdict::Complies,
    };
    (got != example.verdict).then(|| ExampleFailure {
        source: example.source.clone(),
        number: index + 1,
        expected: example.verdict,
        got,
        why: explain(rule, outcome, &exchange),
    })
}

/// How the rule reached its verdict, in words.
pub(super) fn explain(rule: &Rule, outcome: RuleOutcome, exchange: &Exchange<'_>) -> String {
    let because = |evidence: Option<String>| evidence.map(|e| format!(": {e}")).unwrap_or_default();
    match outcome {
        RuleOutcome::NotApplicable => "`when` does not hold, so the rule does not apply".to_owned(),
        RuleOutcome::NotMatched => "`violates` does not hold".to_owned(),
        RuleOutcome::Undecided => "a probe or a judge would have to say".to_owned(),
        RuleOutcome::Excepted(index) => {
            let evidence = rule
                .exceptions
                .get(index)
                .and_then(|e| e.evidence(exchange));
            format!("exception {} holds{}", index + 1, because(evidence))
        }
        RuleOutcome::Violated => {
            format!(
                "`violates` holds{}",
                because(rule.violates.evidence(exchange))
            )
        }
    }
}
