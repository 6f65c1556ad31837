//! Which rules a prompt is about.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::bank::{self, Half};
use super::question::ExamRule;
use crate::policy::{Policy, PolicySet, Rule};
use crate::triage::TriagedPair;

/// A rule with its policy.
pub(crate) struct Owned<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) rule: &'a Rule,
    pub(crate) exam: ExamRule,
}

impl Owned<'_> {
    /// Whether the rule is about a prompt; `known` says whether it is known to be, which decides where
    /// `when` does not.
    pub(crate) fn is_about(&self, prompt: &str, known: impl FnOnce() -> bool) -> bool {
        match self.rule.applies(prompt) {
            Some(true) if self.exam.is_broad => known(),
            Some(applies) => applies,
            None => known(),
        }
    }
}

/// The rules of the enforced policies.
pub(crate) struct Rules<'a>(pub(crate) Vec<Owned<'a>>);

impl<'a> Rules<'a> {
    /// The rules in the order of an exam's. `min_compliance` is the target of those whose policy has
    /// none.
    pub(crate) fn new(policies: &'a PolicySet, min_compliance: f64) -> Self {
        let enforced = policies.policies().iter();
        let everyday = bank::controls(Half::Exam);
        let rules = enforced
            .filter(|policy| policy.is_enforced())
            .flat_map(|policy| policy.rules.iter().map(move |rule| (&**policy, rule)))
            .map(|(policy, rule)| Owned {
                policy,
                rule,
                exam: ExamRule {
                    policy: policy.id.clone(),
                    rule: rule.id.clone(),
                    severity: rule.severity,
                    target: policy.gate.min_compliance.unwrap_or(min_compliance),
                    is_broad: is_broad(rule, &everyday),
                },
            });
        Self(rules.collect())
    }

    /// The rules that a prompt is about: those whose `when` holds. A broad rule, or one whose `when`
    /// needs more than the prompt, has to be known to concern it.
    pub(crate) fn about(&self, prompt: &str, known: &dyn Fn(&Owned<'_>) -> bool) -> Vec<usize> {
        let rules = self.0.iter().enumerate();
        let about = rules.filter(|(_, owned)| owned.is_about(prompt, || known(owned)));
        about.map(|(index, _)| index).collect()
    }

    /// The prompts that a policy names for its rule: the rule's examples, and the policy's `prompts:`,
    /// as far as the rule is about them. Each once, examples first.
    pub(crate) fn own_prompts(&self, index: usize) -> Vec<&'a str> {
        let owned = &self.0[index];
        let (policy, rule): (&'a Policy, &'a Rule) = (owned.policy, owned.rule);
        let examples = rule.examples.iter().map(|example| example.prompt.as_str());
        let prompts = policy.prompts.iter().map(String::as_str);
        let mut seen = HashSet::new();
        let all = examples.chain(prompts);
        let all = all.filter(|prompt| owned.is_about(prompt, || true));
        all.filter(|prompt| seen.insert(*prompt)).collect()
    }

    /// Of the prompts that policies name for their rules, those that no exam asks: half of them, as
    /// long as `least` of a rule are asked. It depends on the policies only.
    pub(crate) fn left(&self, least: usize) -> HashSet<&'a str> {
        let (mut left, mut asked) = (HashSet::new(), HashSet::new());
        for index in 0..self.0.len() {
            let mut own = self.own_prompts(index);
            own.sort_by_key(|prompt| (bank::half_of(prompt) != Half::Exam, order(prompt)));
            let exam = own
                .iter()
                .filter(|p| bank::half_of(p) == Half::Exam)
                .count();
            let others = own.split_off(exam.max(least).min(own.len()));
            left.extend(others);
            asked.extend(own);
        }
        left.difference(&asked).copied().collect()
    }
}

/// Whether a rule applies to most everyday prompts: to be within it says nothing about a prompt.
fn is_broad(rule: &Rule, everyday: &[bank::Control]) -> bool {
    let applies = |control: &&bank::Control| rule.applies(&control.prompt) == Some(true);
    rule.when.is_none() || everyday.iter().filter(applies).count() * 2 > everyday.len()
}

/// Whether one of a pair's responses violates a rule or could not be judged by it.
pub(crate) fn concerns(item: &TriagedPair, owned: &Owned<'_>) -> bool {
    let is = |policy: &str, rule: &str| policy == owned.policy.id && rule == owned.rule.id;
    [&item.chosen, &item.rejected].into_iter().any(|judgement| {
        let mut violated = judgement.violations.iter();
        let mut open = judgement.undecided.iter();
        violated.any(|v| is(&v.policy, &v.rule)) || open.any(|u| is(&u.policy, &u.rule))
    })
}

/// An order that depends on nothing but the text.
pub(crate) fn order(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}
