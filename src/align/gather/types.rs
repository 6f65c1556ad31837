//! What is gathered from, and what comes of it.

use serde::{Deserialize, Serialize};

use super::{Report, VERSION};
use crate::exam::{Exam, ExamError, Standing};
use crate::oracle::corrective::CorrectiveError;
use crate::policy::PolicySet;
use crate::preferences::{Message, Pair, functions};
use crate::triage::Triage;
use realign_core::Category;

/// How much is gathered, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Answers that are drawn for each prompt.
    pub samples_per_prompt: usize,
    /// Most pairs.
    pub max_pairs: usize,
    /// Pairs are gathered for rules with fewer INVERT pairs than this.
    pub min_conflicts: usize,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Of the prompts that a policy names for a rule, half is gathered from, and an exam asks this many
    /// at least.
    pub min_asked: usize,
}

/// What is gathered from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The active policies; only enforced ones count.
    pub policies: &'a PolicySet,
    /// The preference data.
    pub pairs: &'a [Pair],
    /// Its triage under these policies.
    pub triage: &'a Triage,
    /// Indices of the pairs that are trained on.
    pub train: &'a [usize],
    /// Digest of the preference data.
    pub digest: &'a str,
    /// What is asked of generations, and is never trained on.
    pub exam: &'a Exam,
    /// How what serves did, by the exam's rules. A rule that it meets needs nothing.
    pub standings: &'a [Standing],
    /// Id of the generation that answers.
    pub generation: &'a str,
}

/// Where a prompt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptSource {
    /// A rule's example.
    Example,
    /// A policy's `prompts:`.
    Policy,
    /// A pair of the data.
    Data,
    /// The bank, for rules that apply to most prompts.
    Bank,
    /// One of the others with another word that the rule's `when` looks for.
    Varied,
    /// The model wrote it in the style of the others.
    Written,
}

/// Where a preferred answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerSource {
    /// The model gave it by itself.
    Own,
    /// The model gave it when it was told the policy.
    Told,
    /// The corrective endpoint wrote it.
    Corrective,
    /// There is none: both answers violate.
    None,
}

/// A pair that was gathered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatheredPair {
    /// The pair; for INVERT, `rejected` complies.
    pub pair: Pair,
    /// INVERT or PUNISH.
    pub category: Category,
    /// The rules that the violating answer violates, as `policy:rule`.
    pub rules: Vec<String>,
    /// Where the prompt comes from.
    pub prompt: PromptSource,
    /// Where the complying answer comes from.
    pub answer: AnswerSource,
}

impl GatheredPair {
    /// The pair as a line of preference data, with its provenance.
    pub fn line(&self, generation: &str) -> serde_json::Value {
        let Pair {
            prompt,
            chosen,
            rejected,
            ..
        } = &self.pair;
        let functions = functions(prompt);
        let prompt = match prompt.as_slice() {
            [only] => serde_json::json!(only.content),
            turns => {
                let turns = turns.iter().cloned().map(Message::without_functions);
                serde_json::json!(turns.collect::<Vec<_>>())
            }
        };
        let mut line = serde_json::json!({
            "prompt": prompt, "chosen": chosen, "rejected": rejected,
            "meta": { "holdout": false, "provenance": {
                "gathered_by": VERSION, "generation": generation, "category": self.category,
                "rules": self.rules, "prompt": self.prompt, "answer": self.answer,
            }},
        });
        if !functions.is_empty() {
            line["tools"] = functions.into();
        }
        line
    }
}

/// What was gathered.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// The pairs; none if no rule needed any.
    pub pairs: Vec<GatheredPair>,
    /// How they came about; `None` if no rule needed any.
    pub report: Option<Report>,
}

/// Why nothing was gathered.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The model did not answer, or the caller stopped it.
    #[error(transparent)]
    Model(#[from] ExamError),
    /// The corrective endpoint failed.
    #[error(transparent)]
    Corrective(#[from] CorrectiveError),
}
