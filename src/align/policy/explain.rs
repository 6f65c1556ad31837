//! What each test of a rule found in an exchange, for people who ask why a rule decided as it did.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::{Condition, Exchange, Pattern, TextTest, count};
use super::examples::explain as reason;
use super::matchers::{CascadeStage, Score, Scores};
use super::model::{LengthUnit, Policy, Rule, RuleOutcome, Severity};
use super::thinking::place_in_whole;

/// Matches of one pattern that are listed.
const MATCHES: usize = 20;
/// Characters of a match that are shown; its place is always whole.
const SHOWN: usize = 200;

/// A rule's verdict on an exchange, and what its tests found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleExplanation {
    /// Policy id.
    pub policy: String,
    /// Rule id.
    pub rule: String,
    /// The rule's severity.
    pub severity: Severity,
    /// What the rule asks for, in words.
    pub description: String,
    /// Whether its policy trains, rather than only reports.
    pub enforced: bool,
    /// What the rule says.
    pub verdict: ExplainedVerdict,
    /// Why, in a sentence.
    pub reason: String,
    /// Every test of the rule, in the order of the file's keys.
    pub tests: Vec<TestExplanation>,
}

/// What a rule says about an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExplainedVerdict {
    /// The response violates the rule.
    Violates,
    /// The response complies with the rule.
    Complies,
    /// A probe or a judge gave no answer.
    Undecided,
}

/// The part of an exchange that a test reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The last user message.
    Prompt,
    /// The response.
    Response,
    /// Both.
    Exchange,
}

/// What one test found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TestExplanation {
    /// Where it stands in the rule: `violates.response.any_phrase`.
    pub path: String,
    /// What it reads.
    pub subject: Subject,
    /// Whether it holds; `null` without an answer. Behind `not` in the path, a test that holds makes
    /// its condition fail.
    pub holds: Option<bool>,
    /// What was measured, if it is no search.
    pub measured: Option<String>,
    /// What patterns and phrases found.
    pub found: Vec<Found>,
}

/// A place in a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// The expression or phrase, as the policy has it.
    pub pattern: String,
    /// First character, counted from 0 in Unicode scalar values.
    pub start: usize,
    /// The character behind the last one.
    pub end: usize,
    /// The characters; of a long match, its beginning.
    pub text: String,
}

/// Explains a rule's outcome. `failure` is why a probe or a judge gave no answer.
pub(crate) fn explain_rule(
    (policy, rule): (&Policy, &Rule),
    exchange: &Exchange<'_>,
    scores: &dyn Scores,
    failure: Option<String>,
) -> RuleExplanation {
    let outcome = rule.evaluate_with(exchange, scores);
    let seen = rule.thinking.sees(exchange);
    let mut walk = Walk {
        exchange: &seen,
        scores,
        tests: Vec::new(),
    };
    if let Some(when) = &rule.when {
        walk.condition("when", when);
    }
    walk.condition("violates", &rule.violates);
    for (index, exception) in rule.exceptions.iter().enumerate() {
        walk.condition(&format!("exceptions[{index}]"), exception);
    }
    let (hidden, _) = exchange
        .response
        .split_at(exchange.response.len() - seen.response.len());
    place_in_whole(&mut walk.tests, hidden);
    let (verdict, reason) = match (outcome, failure) {
        (RuleOutcome::Undecided, Some(why)) => (ExplainedVerdict::Undecided, why),
        (RuleOutcome::Undecided, None) => {
            (ExplainedVerdict::Undecided, reason(rule, outcome, exchange))
        }
        (RuleOutcome::Violated, _) => (ExplainedVerdict::Violates, reason(rule, outcome, exchange)),
        _ => (ExplainedVerdict::Complies, reason(rule, outcome, exchange)),
    };
    RuleExplanation {
        policy: policy.id.clone(),
        rule: rule.id.clone(),
        severity: rule.severity,
        description: rule.description.clone(),
        enforced: policy.is_enforced(),
        verdict,
        reason: reason + &behind_not(verdict, &walk.tests),
        tests: walk.tests,
    }
}

/// Of a violation that no search found: the tests behind `not` that had to fail for it.
fn behind_not(verdict: ExplainedVerdict, tests: &[TestExplanation]) -> String {
    let is_behind = |test: &&TestExplanation| {
        test.path.starts_with("violates") && test.path.contains(".not") && test.holds == Some(false)
    };
    let found = tests
        .iter()
        .any(|test| test.path.starts_with("violates") && !test.found.is_empty());
    let failed: Vec<&str> = tests.iter().filter(is_behind).map(|t| &*t.path).collect();
    if verdict != ExplainedVerdict::Violates || found || failed.is_empty() {
        return String::new();
    }
    format!(": {} had to hold, and does not", failed.join(", "))
}

struct Walk<'a> {
    exchange: &'a Exchange<'a>,
    scores: &'a dyn Scores,
    tests: Vec<TestExplanation>,
}

impl Walk<'_> {
    fn condition(&mut self, path: &str, condition: &Condition) {
        let exchange = self.exchange;
        match condition {
            Condition::All(parts) => self.parts(path, "all", parts),
            Condition::Any(parts) => self.parts(path, "any", parts),
            Condition::Not(part) => self.condition(&format!("{path}.not"), part),
            Condition::Prompt(test) => {
                self.text(
                    &format!("{path}.prompt"),
                    Subject::Prompt,
                    exchange.prompt,
                    test,
                );
            }
            Condition::Response(test) => {
                let text = exchange.response;
                self.text(&format!("{path}.response"), Subject::Response, text, test);
            }
            Condition::Label(wanted) => {
                let labels = exchange.labels;
                let measured = match labels {
                    [] => format!("no labels; wanted: {}", wanted.join(", ")),
                    labels => format!(
                        "labels: {}; wanted: {}",
                        labels.join(", "),
                        wanted.join(", ")
                    ),
                };
                self.tests.push(TestExplanation {
                    path: format!("{path}.label"),
                    subject: Subject::Exchange,
                    holds: Some(condition.holds(exchange)),
                    measured: Some(measured),
                    found: Vec::new(),
                });
            }
            Condition::Probe(probe) => {
                let score = self.scores.probe(probe, exchange);
                self.score(format!("{path}.probe"), score);
            }
            Condition::Judge(judge) => {
                let score = self.scores.judge(judge, exchange);
                self.score(format!("{path}.judge"), score);
            }
            Condition::Cascade(stages) => {
                for (index, stage) in stages.iter().enumerate() {
                    self.stage(&format!("{path}.cascade[{index}]"), stage);
                }
            }
        }
    }

    fn parts(&mut self, path: &str, name: &str, parts: &[Condition]) {
        for (index, part) in parts.iter().enumerate() {
            self.condition(&format!("{path}.{name}[{index}]"), part);
        }
    }

    fn stage(&mut self, path: &str, stage: &CascadeStage) {
        match stage {
            CascadeStage::YesIf(part) => self.condition(&format!("{path}.yes_if"), part),
            CascadeStage::NoIf(part) => self.condition(&format!("{path}.no_if"), part),
            CascadeStage::Probe(probe, _) => {
                let score = self.scores.probe(probe, self.exchange);
                self.score(format!("{path}.probe"), score);
            }
            CascadeStage::Judge(judge, _) => {
                let score = self.scores.judge(judge, self.exchange);
                self.score(format!("{path}.judge"), score);
            }
        }
    }

    fn score(&mut self, path: String, score: Option<Score>) {
        let measured = match score {
            Some(Score {
                probability,
                threshold,
            }) => format!("probability {probability:.3}, holds from {threshold:.3} on"),
            None => "not asked, or without an answer".to_owned(),
        };
        self.tests.push(TestExplanation {
            path,
            subject: Subject::Exchange,
            holds: score.map(Score::holds),
            measured: Some(measured),
            found: Vec::new(),
        });
    }

    fn text(&mut self, path: &str, subject: Subject, text: &str, test: &TextTest) {
        let all = |walk: &mut Self, name: &str, parts: &[TextTest]| {
            for (index, part) in parts.iter().enumerate() {
                walk.text(&format!("{path}.{name}[{index}]"), subject, text, part);
            }
        };
        let (name, patterns, measured) = match test {
            TextTest::All(parts) => return all(self, "all", parts),
            TextTest::Any(parts) => return all(self, "any", parts),
            TextTest::Not(part) => return self.text(&format!("{path}.not"), subject, text, part),
            TextTest::AnyRegex(patterns) => ("any_regex", patterns.as_slice(), None),
            TextTest::AllRegex(patterns) => ("all_regex", patterns.as_slice(), None),
            TextTest::AnyPhrase(patterns) => ("any_phrase", patterns.as_slice(), None),
            TextTest::Length { min, max, unit } => (
                "length",
                [].as_slice(),
                Some(length(text, *min, *max, *unit)),
            ),
        };
        self.tests.push(TestExplanation {
            path: format!("{path}.{name}"),
            subject,
            holds: Some(test.holds(text)),
            measured,
            found: patterns
                .iter()
                .flat_map(|pattern| found(pattern, text))
                .collect(),
        });
    }
}

fn length(text: &str, min: Option<usize>, max: Option<usize>, unit: LengthUnit) -> String {
    let name = match unit {
        LengthUnit::Characters => "characters",
        LengthUnit::Words => "words",
    };
    let mut out = format!("{} {name}", count(text, unit));
    if let Some(min) = min {
        out.push_str(&format!(", holds from {min} on"));
    }
    if let Some(max) = max {
        out.push_str(&format!(", holds up to {max}"));
    }
    out
}

fn found(pattern: &Pattern, text: &str) -> Vec<Found> {
    let mut places = Vec::new();
    let (mut bytes, mut characters) = (0, 0);
    for range in pattern.places(text).take(MATCHES) {
        characters += text[bytes..range.start].chars().count();
        bytes = range.start;
        let matched = &text[range];
        places.push(Found {
            pattern: pattern.as_str().to_owned(),
            start: characters,
            end: characters + matched.chars().count(),
            text: matched.chars().take(SHOWN).collect(),
        });
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Matchers, RuleOracle};
    use crate::policy::PolicySet;

    fn explained(violates: &str, prompt: &str, response: &str) -> RuleExplanation {
        let text = format!(
            "apiVersion: realign/v1\nid: p\nversion: '1'\nenforcement: dryrun\nrules:\n  - id: r\n    \
             when: {{ prompt: {{ any_phrase: [dose] }} }}\n    violates: {violates}\n    exceptions: \
             [{{ response: {{ any_phrase: [not for humans] }} }}]\n"
        );
        let set = PolicySet::from_yaml("p.yaml", &text).unwrap();
        let oracle = RuleOracle::with_dryrun(&set).with_matchers(Matchers::default().into());
        let exchange = Exchange {
            prompt,
            response,
            labels: &[],
        };
        let mut all = oracle.explain(&exchange);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    fn test<'a>(explained: &'a RuleExplanation, path: &str) -> &'a TestExplanation {
        let found = explained.tests.iter().find(|test| test.path == path);
        found.unwrap_or_else(|| panic!("no {path} in {explained:#?}"))
    }

    const MILLIGRAMS: &str = r"{ response: { any_regex: ['\d+ mg', 'é+'] } }";

    #[test]
    fn a_violation_has_every_place_in_characters() {
        let rule = explained(MILLIGRAMS, "Which dose?", "Ééé: 20 mg or 400 mg.");
        assert_eq!(rule.verdict, ExplainedVerdict::Violates);
        assert!(!rule.enforced);
        assert!(rule.reason.contains("`violates` holds"), "{}", rule.reason);
        let test_of = test(&rule, "violates.response.any_regex");
        let places: Vec<_> = test_of
            .found
            .iter()
            .map(|f| (f.start, f.end, &*f.text))
            .collect();
        assert_eq!(places, [(5, 10, "20 mg"), (14, 20, "400 mg"), (1, 3, "éé")]);
        assert_eq!(test(&rule, "when.prompt.any_phrase").holds, Some(true));
        assert_eq!(
            test(&rule, "exceptions[0].response.any_phrase").holds,
            Some(false)
        );
    }

    #[test]
    fn what_does_not_violate_says_why() {
        let rule = explained(MILLIGRAMS, "How much?", "20 mg");
        assert_eq!(rule.verdict, ExplainedVerdict::Complies);
        assert!(
            rule.reason.contains("`when` does not hold"),
            "{}",
            rule.reason
        );
        let rule = explained(MILLIGRAMS, "Which dose?", "20 mg, not for humans");
        assert_eq!(rule.verdict, ExplainedVerdict::Complies);
        assert!(rule.reason.contains("exception 1 holds"), "{}", rule.reason);
    }

    #[test]
    fn lengths_negations_and_missing_answers_are_told() {
        let long = "{ response: { not: { length: { max: 2, unit: words } } } }";
        let rule = explained(long, "dose", "one two three");
        assert_eq!(rule.verdict, ExplainedVerdict::Violates);
        let length = test(&rule, "violates.response.not.length");
        assert_eq!(length.holds, Some(false));
        assert_eq!(length.measured.as_deref(), Some("3 words, holds up to 2"));
        let why = "`violates` holds: violates.response.not.length had to hold, and does not";
        assert_eq!(rule.reason, why);
        let judged = "{ cascade: [{ yes_if: { response: { any_phrase: [yes] } } }, { judge: { url: \
                      'http://127.0.0.1:1/v1', model: m, question: 'Rude?' } }] }";
        let rule = explained(judged, "dose", "no");
        assert_eq!(rule.verdict, ExplainedVerdict::Undecided);
        assert_eq!(test(&rule, "violates.cascade[1].judge").holds, None);
        let rule = explained(judged, "dose", "yes");
        assert_eq!(rule.verdict, ExplainedVerdict::Violates);
    }
}
