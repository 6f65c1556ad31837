//! Semantic differences between two policy sets.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::model::{Policy, Rule};
use super::set::PolicySet;

/// Changes from one set to another; every list is ordered by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyDiff {
    /// Policies only in the new set.
    pub(crate) policies_added: Vec<String>,
    /// Policies only in the old set.
    pub(crate) policies_removed: Vec<String>,
    /// Policies in both whose own fields differ, with those fields' names.
    pub(crate) policies_changed: Vec<(String, Vec<&'static str>)>,
    /// Rules only in the new set, those of added policies included.
    pub(crate) rules_added: Vec<RuleRef>,
    /// Rules only in the old set, those of removed policies included.
    pub(crate) rules_removed: Vec<RuleRef>,
    /// Rules in both that differ, with the names of what differs.
    pub(crate) rules_changed: Vec<(RuleRef, Vec<&'static str>)>,
}

/// Qualified name of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct RuleRef {
    /// Id of the policy.
    pub policy: String,
    /// Id of the rule in its policy.
    pub rule: String,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.policy, self.rule)
    }
}

impl PolicyDiff {
    /// Whether the sets do not differ.
    pub fn is_empty(&self) -> bool {
        *self == PolicyDiff::default()
    }
}

/// One change per line: `+` added, `-` removed, `~` changed.
impl fmt::Display for PolicyDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for id in &self.policies_added {
            writeln!(f, "+ policy {id}")?;
        }
        for id in &self.policies_removed {
            writeln!(f, "- policy {id}")?;
        }
        for (id, fields) in &self.policies_changed {
            writeln!(f, "~ policy {id} ({})", fields.join(", "))?;
        }
        for rule in &self.rules_added {
            writeln!(f, "+ rule {rule}")?;
        }
        for rule in &self.rules_removed {
            writeln!(f, "- rule {rule}")?;
        }
        for (rule, fields) in &self.rules_changed {
            writeln!(f, "~ rule {rule} ({})", fields.join(", "))?;
        }
        Ok(())
    }
}

/// Compares two sets by meaning; layout, comments, file names and the order of rules do not count.
pub fn diff(old: &PolicySet, new: &PolicySet) -> PolicyDiff {
    let mut out = PolicyDiff::default();
    for policy in new.policies() {
        match old.get(&policy.id) {
            None => out.policies_added.push(policy.id.clone()),
            Some(before) => {
                let fields = policy_fields(before, policy);
                if !fields.is_empty() {
                    out.policies_changed.push((policy.id.clone(), fields));
                }
            }
        }
    }
    let removed = old
        .policies()
        .iter()
        .filter(|policy| new.get(&policy.id).is_none());
    out.policies_removed = removed.map(|policy| policy.id.clone()).collect();

    let (before, after) = (rules(old), rules(new));
    for (name, rule) in &after {
        match before.get(name) {
            None => out.rules_added.push(name.clone()),
            Some(old_rule) => {
                let fields = rule_fields(old_rule, rule);
                if !fields.is_empty() {
                    out.rules_changed.push((name.clone(), fields));
                }
            }
        }
    }
    out.rules_removed = before
        .into_keys()
        .filter(|name| !after.contains_key(name))
        .collect();
    out
}

fn rules(set: &PolicySet) -> BTreeMap<RuleRef, &Rule> {
    let named = |policy: &str, rule: &Rule| RuleRef {
        policy: policy.to_owned(),
        rule: rule.id.clone(),
    };
    set.policies()
        .iter()
        .flat_map(|policy| {
            policy
                .rules
                .iter()
                .map(move |rule| (named(&policy.id, rule), rule))
        })
        .collect()
}

fn policy_fields(old: &Policy, new: &Policy) -> Vec<&'static str> {
    changed([
        ("version", old.version != new.version),
        ("description", old.description != new.description),
        ("enforcement", old.enforcement != new.enforcement),
        ("thinking", old.thinking != new.thinking),
        ("gate", old.gate != new.gate),
    ])
}

fn rule_fields(old: &Rule, new: &Rule) -> Vec<&'static str> {
    use super::sha256_json as hash;
    let examples = |rule: &Rule| -> Vec<String> {
        let parts = rule
            .examples
            .iter()
            .map(|e| (&e.prompt, &e.response, e.verdict, &e.labels));
        parts.map(|part| hash(&part)).collect()
    };
    changed([
        ("severity", old.severity != new.severity),
        ("description", old.description != new.description),
        ("when", hash(&old.when) != hash(&new.when)),
        ("violates", hash(&old.violates) != hash(&new.violates)),
        ("exceptions", hash(&old.exceptions) != hash(&new.exceptions)),
        ("examples", examples(old) != examples(new)),
        ("minimum", old.minimum != new.minimum),
    ])
}

fn changed<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    fields
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(name, _)| name)
        .collect()
}
