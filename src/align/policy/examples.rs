//! Policy tests: every rule judges its own examples.

use serde::Serialize;

use super::condition::Exchange;
use super::error::PolicyError;
use super::matchers::Cost;
use super::model::{Example, Rule, RuleOutcome, SourceLocation, Verdict};
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
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// Examples that got the expected verdict.
    pub passed: usize,
    /// Examples that did not.
    pub failures: Vec<ExampleFailure>,
}

/// An example that did not get the expected verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExampleFailure {
    /// Where the example stands.
    pub source: SourceLocation,
    /// Which example of the rule, from 1.
    pub number: usize,
    /// What the example says.
    pub expected: Verdict,
    /// What the rule says.
    pub got: Verdict,
    /// How the rule came to it.
    pub why: String,
}

impl ExampleReport {
    /// Whether no example failed.
    pub fn passed(&self) -> bool {
        self.rules.iter().all(|rule| rule.failures.is_empty())
    }

    /// Rules that have no example, as (policy, rule).
    pub fn untested(&self) -> Vec<(&str, &str)> {
        let untested = self
            .rules
            .iter()
            .filter(|r| r.passed == 0 && r.failures.is_empty());
        untested
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
    /// Runs the examples of all policies, `dryrun` ones included. Of a rule with a probe or a
    /// judge, or with a declared minimum, the oracle measures them (`oracle::prepare`).
    pub fn run_examples(&self) -> ExampleReport {
        let mut report = ExampleReport::default();
        for policy in self.policies() {
            let plain = |rule: &&Rule| rule.cost() == Cost::Text && rule.minimum.is_none();
            for rule in policy.rules.iter().filter(plain) {
                report.rules.push(run_rule(&policy.id, rule));
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
        RuleOutcome::Violated => Verdict::Violates,
        RuleOutcome::NotApplicable
        | RuleOutcome::NotMatched
        | RuleOutcome::Excepted(_)
        // The oracle measures rules with probes and judges; here they are left out.
        | RuleOutcome::Undecided => Verdict::Complies,
    };
    (got != example.verdict).then(|| ExampleFailure {
        source: example.source.clone(),
        number: index + 1,
        expected: example.verdict,
        got,
        why: explain(rule, outcome, &exchange),
    })
}

fn explain(rule: &Rule, outcome: RuleOutcome, exchange: &Exchange<'_>) -> String {
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
