//! Prompts that a candidate is asked between two rounds of training: rules govern them, no exam asks
//! them, and nothing was trained on them. Pure.

use std::collections::HashSet;

use super::answers::normalised;
use super::vary;
use crate::exam::Exam;
use crate::exam::about::{Rules, order};
use crate::exam::bank::{self, Half};
use crate::policy::PolicySet;

/// Prompts of a rule whose words are exchanged.
const STYLE: usize = 48;

/// At most `most` prompts, spread evenly over the enforced rules: those that are `trained` on and those
/// that policies name, with other words that the rules look for.
pub fn further(policies: &PolicySet, trained: &[&str], exam: &Exam, most: usize) -> Vec<String> {
    let rules = Rules::new(policies, 0.0);
    let asked = exam.questions.iter().map(|question| &*question.prompt);
    let mut known: HashSet<String> = trained
        .iter()
        .copied()
        .chain(asked)
        .map(normalised)
        .collect();
    let mut of_rules: Vec<_> = (0..rules.0.len())
        .map(|index| of_rule(&rules, index, trained).into_iter())
        .collect();
    let mut chosen = Vec::new();
    while chosen.len() < most {
        let before = chosen.len();
        for prompts in &mut of_rules {
            let fresh = prompts.find(|prompt| {
                let key = normalised(prompt);
                bank::half_of(&key) == Half::Training && known.insert(key)
            });
            chosen.extend(fresh);
        }
        if chosen.len() == before {
            break;
        }
    }
    chosen.truncate(most);
    chosen
}

fn of_rule(rules: &Rules<'_>, index: usize, trained: &[&str]) -> Vec<String> {
    let owned = &rules.0[index];
    let own = rules.own_prompts(index).into_iter();
    let trained = trained.iter().copied();
    let data = trained.filter(|prompt| owned.is_about(prompt, || false));
    let mut style: Vec<String> = own.chain(data).map(str::to_owned).collect();
    style.sort_by_key(|prompt| order(prompt));
    style.dedup();
    style.truncate(STYLE);
    vary::varied(owned, &style)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(rules: &[(&str, &str)]) -> PolicySet {
        let mut text = "apiVersion: realign/v1\nid: p\nversion: '1'\nrules:\n".to_owned();
        for (id, words) in rules {
            text.push_str(&format!(
                "  - id: {id}\n    when: {{ prompt: {{ any_phrase: [{words}] }} }}\n    violates: \
                 {{ response: {{ any_phrase: [x] }} }}\n"
            ));
        }
        PolicySet::from_yaml("p.yaml", &text).unwrap()
    }

    #[test]
    fn each_rule_gets_prompts_that_are_neither_trained_nor_asked() {
        let set = policies(&[("a", "stocks, bonds, funds"), ("b", "roses, tulips")]);
        let trained = ["Are stocks safe?", "Do roses smell?", "Are bonds safe?"];
        let all = further(&set, &trained, &Exam::default(), 12);
        assert_eq!(all.len(), 12, "{all:?}");
        assert!(all.iter().all(|prompt| !trained.contains(&&**prompt)));
        let flowers = |prompt: &&String| prompt.contains("roses") || prompt.contains("tulips");
        assert_eq!(all.iter().filter(flowers).count(), 6, "{all:?}");
        assert_eq!(all, further(&set, &trained, &Exam::default(), 12));
    }

    #[test]
    fn rules_without_words_give_none() {
        let text = "apiVersion: realign/v1\nid: p\nversion: '1'\nrules:\n  - id: r\n    violates: \
                    { response: { length: { min: 40, unit: words } } }\n";
        let set = PolicySet::from_yaml("p.yaml", text).unwrap();
        assert!(further(&set, &["Why?"], &Exam::default(), 8).is_empty());
    }
}
