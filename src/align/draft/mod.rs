//! From a rule in plain words and a few answers to a policy file: what tells the wrong answers from the
//! right ones, where the rule applies, and what must stay as it is. Needs no model. Pure.
//!
//! A draft holds its own examples, or there is none. Of several tests that do, the one is taken that
//! also decides about examples that it did not see ([`tell`]).

mod nearby;
mod patterns;
mod phrases;
mod tell;
#[cfg(test)]
mod tests;
mod topics;
mod yaml;

use std::collections::HashSet;

use crate::oracle::RuleOracle;
use crate::policy::{PolicyErrors, PolicySet};
use crate::preferences::Pair;
use tell::{Tell, Told};
use topics::Topics;

/// Wrong answers, and right ones, that a draft needs.
pub const LEAST: usize = 3;
/// Answers of each kind that a probe is fitted on at least, and prompts among them.
const PROBE: (usize, usize) = (8, 5);
/// Prompts of a rule that an exam needs at least.
const EXAM: usize = 8;
/// Score below which a test is no more than the examples by heart.
const TRUSTED: f64 = 0.75;
/// Prompts that are taken from the data for the exam.
const PROMPTS: usize = 12;

/// An answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the user asked.
    pub prompt: String,
    /// What the assistant answered.
    pub response: String,
}

/// An endpoint that can judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgeAt {
    /// Base URL, up to and including `/v1`.
    pub url: String,
    /// The model to ask for.
    pub model: String,
    /// Environment variable that holds the key.
    pub key_env: Option<String>,
}

/// What an operator says about a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brief {
    /// Id of the policy, and of its rule.
    pub id: String,
    /// The rule in plain words.
    pub rule: String,
    /// Words that say when it applies; empty for always.
    pub topics: Vec<String>,
    /// Answers that violate the rule.
    pub wrong: Vec<Answered>,
    /// Answers that comply.
    pub right: Vec<Answered>,
    /// Prompts that sound alike, whose answers must stay.
    pub stays: Vec<String>,
    /// A judge, where patterns do not reach.
    pub judge: Option<JudgeAt>,
    /// Whether a model is here, whose hidden states a probe can read.
    pub has_model: bool,
}

/// A policy that holds its own examples.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The file's text.
    pub yaml: String,
    /// How answers are told apart, in a sentence.
    pub how: String,
    /// What the author should know or do.
    pub notes: Vec<String>,
}

/// Why there is no draft.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// Too few answers to generalise from.
    #[error(
        "{wrong} wrong and {right} right answers; at least {LEAST} of each are needed, and none twice"
    )]
    Few {
        /// Wrong answers.
        wrong: usize,
        /// Right answers.
        right: usize,
    },
    /// The rule would not apply to one of its own wrong answers.
    #[error(
        "the question {prompt:?} has none of the topic words ({topics}), so the rule would not apply \
         to its wrong answer: add a word of it to the topics, or leave the topics out"
    )]
    OffTopic {
        /// The question.
        prompt: String,
        /// The topic words.
        topics: String,
    },
    /// No test separates the answers.
    #[error(
        "no word, phrase, pattern or length tells the wrong answers from the right ones: name a judge \
         (--judge-url and --judge-model), or give {} answers of each kind to {} questions and a model, \
         so that a probe can be fitted",
        PROBE.0, PROBE.1
    )]
    Inseparable,
    /// The file is not a valid policy: an id that is none, most often.
    #[error("the draft is not a valid policy:\n{0}")]
    Invalid(#[from] PolicyErrors),
}

/// Drafts a policy. `pairs` is preference data, where near-misses and prompts for the exam are looked for.
///
/// # Errors
/// [`DraftError`].
pub fn draft(brief: &Brief, pairs: &[Pair]) -> Result<Draft, DraftError> {
    let responses = |answers: &[Answered]| -> Vec<String> {
        let mut seen = HashSet::new();
        let all = answers.iter().map(|a| a.response.clone());
        all.filter(|text| seen.insert(text.clone())).collect()
    };
    let (wrong, right) = (responses(&brief.wrong), responses(&brief.right));
    if wrong.len() < LEAST || right.len() < LEAST {
        let (wrong, right) = (wrong.len(), right.len());
        return Err(DraftError::Few { wrong, right });
    }
    let topics = Topics::new(brief)?;
    let mut notes = topics.notes(brief);
    let told = tell::tell(&wrong, &right, (&brief.rule, topics.is_empty()));
    let violates = choose(brief, told, &mut notes)?;
    if matches!(&violates, Violates::Text(Tell::Lacks(_))) && topics.is_empty() {
        notes.push(
            "without topic words, every answer to anything is wrong that lacks these: name the words \
             that a question has where the rule applies (--topic)"
                .into(),
        );
    }
    notes.extend(of_topic(&topics, &violates));
    let first = yaml::Parts {
        brief,
        topics: &topics,
        violates: &violates,
        prompts: &[],
        near: &[],
    };
    let set = PolicySet::from_yaml("draft.yaml", &first.text())?;
    let found = nearby::look(&RuleOracle::with_dryrun(&set), brief, pairs);
    let parts = yaml::Parts {
        prompts: &found.governed,
        near: &found.near,
        ..first
    };
    let yaml = parts.text();
    let set = PolicySet::from_yaml("draft.yaml", &yaml)?;
    let failed = set.run_examples().into_errors();
    if !failed.is_empty() {
        return Err(DraftError::Inseparable);
    }
    let asked: HashSet<&str> = brief
        .wrong
        .iter()
        .chain(&brief.right)
        .map(|a| &*a.prompt)
        .collect();
    let asked = asked.len() + found.governed.len();
    if asked < EXAM {
        notes.push(format!(
            "the exam has {asked} prompts about this rule and needs about {EXAM}: add {} under \
             `prompts:`, or the state stays `unknown`",
            EXAM - asked
        ));
    }
    Ok(Draft {
        yaml,
        how: violates.how(),
        notes,
    })
}

/// Of words of the topic that make an answer wrong: a right one about the topic is likely to have them, too.
fn of_topic(topics: &Topics, violates: &Violates) -> Option<String> {
    let Violates::Text(Tell::Says { phrases, .. }) = violates else {
        return None;
    };
    let shared = phrases.iter().filter(|phrase| topics.covers(phrase));
    let shared: Vec<String> = shared.map(|phrase| format!("`{phrase}`")).collect();
    let shared = (!shared.is_empty()).then(|| shared.join(", "))?;
    Some(format!(
        "questions about the rule have {shared} as well, so a right answer that only names it is wrong: write \
         under `violates` what a wrong answer says about it, and add right answers that name it as examples"
    ))
}

/// What `violates` is made of.
#[derive(Clone, Debug)]
pub(crate) enum Violates {
    /// A test of the text.
    Text(Tell),
    /// A probe on the examples.
    Probe,
    /// A judge.
    Judge(JudgeAt),
}

impl Violates {
    fn how(&self) -> String {
        match self {
            Violates::Text(tell) => tell.how(),
            Violates::Probe => "a probe, fitted on the examples".into(),
            Violates::Judge(judge) => format!("the judge {} at {}", judge.model, judge.url),
        }
    }
}

/// The text where it generalises; else a judge or a probe, if there can be one; else the text after all.
fn choose(
    brief: &Brief,
    told: Option<Told>,
    notes: &mut Vec<String>,
) -> Result<Violates, DraftError> {
    let weak = match told {
        Some(told) if told.score >= TRUSTED => return Ok(Violates::Text(told.tell)),
        other => other,
    };
    if let Some(judge) = &brief.judge {
        return Ok(Violates::Judge(judge.clone()));
    }
    let answers = brief.wrong.iter().chain(&brief.right);
    let prompts: HashSet<&str> = answers.map(|a| a.prompt.as_str()).collect();
    let enough = brief.wrong.len().min(brief.right.len()) >= PROBE.0 && prompts.len() >= PROBE.1;
    if brief.has_model && enough {
        return Ok(Violates::Probe);
    }
    let told = weak.ok_or(DraftError::Inseparable)?;
    notes.push(format!(
        "the test holds the examples and may hold little else: of examples that it did not see, it \
         would decide {:.0} % rightly. Add words to it, give more answers, name a judge (--judge-url, \
         --judge-model), or give {} of each kind so that a probe can be fitted",
        100.0 * told.unseen,
        PROBE.0
    ));
    Ok(Violates::Text(told.tell))
}
