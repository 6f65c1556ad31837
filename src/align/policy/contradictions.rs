//! Examples that comply with their own rule and violate another one of the set.

use super::condition::Exchange;
use super::error::PolicyError;
use super::model::{Example, ExampleVerdict, Policy, Rule};
use super::set::PolicySet;

impl PolicySet {
    /// Every example of an enforced policy that complies with its own rule and violates another rule
    /// of the enforced policies, unless one of the two policies allows it. `violates` judges.
    pub fn contradictions(
        &self,
        violates: &dyn Fn(&Rule, &Exchange<'_>) -> bool,
    ) -> Vec<PolicyError> {
        let enforced = || self.policies().iter().filter(|policy| policy.is_enforced());
        let rules = || enforced().flat_map(|policy| policy.rules.iter().map(move |r| (policy, r)));
        let mut found = Vec::new();
        for (policy, rule) in rules() {
            let complying = rule.examples.iter().enumerate();
            let complying = complying.filter(|(_, e)| e.verdict == ExampleVerdict::Complies);
            for (index, example) in complying {
                let exchange = Exchange {
                    prompt: &example.prompt,
                    response: &example.response,
                    labels: &example.labels,
                };
                let others = rules().filter(|(other, other_rule)| {
                    let allowed = policy.allow_contradictions || other.allow_contradictions;
                    !std::ptr::eq(*other_rule, rule) && !allowed && violates(other_rule, &exchange)
                });
                found.extend(others.map(|(other, other_rule)| {
                    error((policy, rule), (index + 1, example), (other, other_rule))
                }));
            }
        }
        found
    }

    /// [`PolicySet::contradictions`] by text and labels alone.
    ///
    /// # Errors
    /// If there are any.
    pub fn check_contradictions(&self) -> Result<(), super::PolicyErrors> {
        match self.contradictions(&|rule, exchange| rule.violated_by(exchange)) {
            found if found.is_empty() => Ok(()),
            found => Err(super::PolicyErrors(found)),
        }
    }
}

fn error(
    (policy, rule): (&Policy, &Rule),
    (number, example): (usize, &Example),
    (other, other_rule): (&Policy, &Rule),
) -> PolicyError {
    PolicyError {
        file: example.source.file.clone(),
        line: Some(example.source.line),
        column: Some(example.source.column),
        message: format!(
            "contradiction: example {number} of rule `{}:{}` complies with it and violates rule \
             `{}:{}` of the same set (prompt {:?}, response {:?}); change one of the rules or the \
             example, or set `allow_contradictions: true` in one of the policies",
            policy.id, rule.id, other.id, other_rule.id, example.prompt, example.response
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(allow: bool) -> PolicySet {
        let text = format!(
            "apiVersion: realign/v1\nid: p\nversion: '1'\nallow_contradictions: {allow}\nrules:\n\
             - id: no-apple\n  violates: {{ response: {{ any_phrase: [apple] }} }}\n\
             - id: no-pear\n  violates: {{ response: {{ any_phrase: [pear] }} }}\n  examples:\n\
             \x20   - {{ prompt: fruit?, response: an apple, verdict: complies }}\n\
             \x20   - {{ prompt: fruit?, response: a pear, verdict: violates }}\n"
        );
        PolicySet::from_yaml("p.yaml", &text).unwrap()
    }

    #[test]
    fn both_rules_and_the_example_are_named() {
        let error = set(false).check_contradictions().unwrap_err().to_string();
        for part in [
            "p.yaml:",
            "example 1",
            "`p:no-pear`",
            "`p:no-apple`",
            "an apple",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(set(true).check_contradictions().is_ok());
    }
}
