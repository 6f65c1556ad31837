//! What came of gathering.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AnswerSource, Case, GatheredPair, Gathering, PromptSource, conflicts};
use realign_core::Category;

/// What was gathered, from what, and for which rules nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// SHA-256 (hex) over policies, data, exam, settings, prompts and the generation that answered.
    pub inputs: String,
    /// The generation that answered.
    pub generation: String,
    /// The rules that needed pairs.
    pub rules: Vec<RuleReport>,
    /// Prompts by source.
    pub prompts: PromptCounts,
    /// Answers by verdict.
    pub answers: AnswerCounts,
    /// Pairs by the source of their preferred answer.
    pub pairs: PairCounts,
    /// Prompts left out because all their complying answers are preferred often enough elsewhere.
    pub repeated: usize,
}

/// What was gathered for one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleReport {
    /// Its policy.
    pub policy: String,
    /// Its id.
    pub rule: String,
    /// INVERT pairs that the data has for it.
    pub conflicts: usize,
    /// Prompts that were asked for it.
    pub prompts: usize,
    /// INVERT pairs that were gathered.
    pub invert: usize,
    /// PUNISH pairs that were gathered.
    pub punish: usize,
    /// Why there is no INVERT pair, if there is none.
    pub why: Option<String>,
}

/// Number of prompts by source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PromptCounts {
    /// Examples of rules.
    pub examples: usize,
    /// `prompts:` of policies.
    pub policy: usize,
    /// Prompts of the data.
    pub data: usize,
    /// Prompts of the bank.
    pub bank: usize,
    /// Others with another word that the rule's `when` looks for.
    pub varied: usize,
    /// Prompts that the model wrote.
    pub written: usize,
}

/// Number of answers by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerCounts {
    /// Answers that were drawn.
    pub asked: usize,
    /// They violate a rule.
    pub violating: usize,
    /// They comply.
    pub complying: usize,
    /// They could not be judged.
    pub undecided: usize,
    /// They comply, but are incomplete, repeat themselves or are in another language.
    pub unusable: usize,
}

/// Number of pairs by the source of their preferred answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairCounts {
    /// The model gave it by itself.
    pub own: usize,
    /// The model gave it when it was told the policy.
    pub told: usize,
    /// The corrective endpoint wrote it.
    pub corrective: usize,
    /// None: both answers violate.
    pub punish: usize,
}

impl Report {
    /// In one sentence, what was gathered.
    pub fn describe(&self) -> String {
        let invert = self.pairs.own + self.pairs.told + self.pairs.corrective;
        let prompts = &self.prompts;
        let asked = prompts.examples
            + prompts.policy
            + prompts.data
            + prompts.bank
            + prompts.varied
            + prompts.written;
        let mut text = format!(
            "{invert} INVERT and {} PUNISH pairs were gathered from {asked} prompts",
            self.pairs.punish
        );
        for rule in &self.rules {
            if let Some(why) = &rule.why {
                text.push_str(&format!("; {}:{}: {why}", rule.policy, rule.rule));
            }
        }
        text
    }
}

pub(super) fn report(
    run: &Gathering<'_>,
    cases: &[Case],
    pairs: &[GatheredPair],
    repeated: usize,
) -> Report {
    let from = |source| cases.iter().filter(|c| c.prompt.source == source).count();
    let by = |source| pairs.iter().filter(|p| p.answer == source).count();
    Report {
        inputs: run.digest(cases),
        generation: run.sources.generation.to_owned(),
        rules: run
            .needed
            .iter()
            .map(|&rule| of_rule(run, cases, pairs, rule))
            .collect(),
        prompts: PromptCounts {
            examples: from(PromptSource::Example),
            policy: from(PromptSource::Policy),
            data: from(PromptSource::Data),
            bank: from(PromptSource::Bank),
            varied: from(PromptSource::Varied),
            written: from(PromptSource::Written),
        },
        answers: run.counts,
        pairs: PairCounts {
            own: by(AnswerSource::Own),
            told: by(AnswerSource::Told),
            corrective: by(AnswerSource::Corrective),
            punish: by(AnswerSource::None),
        },
        repeated,
    }
}

fn of_rule(run: &Gathering<'_>, cases: &[Case], pairs: &[GatheredPair], rule: usize) -> RuleReport {
    let exam = &run.rules.0[rule].exam;
    let name = exam.name();
    let count = |category| {
        let own = pairs.iter().filter(|p| p.rules.contains(&name));
        own.filter(|p| p.category == category).count()
    };
    let violated = |rules: &BTreeSet<usize>| rules.contains(&rule);
    let prompts = cases.iter().filter(|c| violated(&c.prompt.rules)).count();
    let invert = count(Category::Invert);
    let violating = cases.iter().filter(|c| violated(&c.violated)).count();
    let why = if invert > 0 {
        None
    } else if prompts == 0 {
        Some("no prompt is about it: add examples, or `prompts:` to its policy")
    } else if run.counts.undecided > 0 && violating == 0 {
        Some("answers could not be judged")
    } else if violating == 0 {
        Some("no answer violated it")
    } else {
        Some(
            "no complete answer complied with all rules, even where the model was told the policy: \
             describe the rule, add examples that comply, add pairs, or configure [train.corrective]",
        )
    };
    RuleReport {
        policy: exam.policy.clone(),
        rule: exam.rule.clone(),
        conflicts: conflicts(&run.sources, &run.rules, rule),
        prompts,
        invert,
        punish: count(Category::Punish),
        why: why.map(str::to_owned),
    }
}
