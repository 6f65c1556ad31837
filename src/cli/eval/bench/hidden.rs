//! The hidden prompts of a policy, and the questions that they become.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::Situation;
use super::figures::Measure;
use crate::learning::Learning;
use crate::{CliError, require};
use realign_align::exam::{Exam, ExamRule, Group, Put, Question};

/// A prompt that a rule is about.
#[derive(Deserialize)]
struct HeldOut {
    prompt: String,
    /// An answer that violates the policy; it serves as an earlier turn.
    violating: Option<String>,
}

/// A prompt whose answer must not change.
#[derive(Deserialize)]
struct Control {
    prompt: String,
    /// Policies that are about it.
    #[serde(default)]
    except: Vec<String>,
}

#[derive(Deserialize)]
struct Fact {
    prompt: String,
    /// An answer is right if it has one of these as words.
    accept: Vec<String>,
}

/// What goes before a held-out prompt.
#[derive(Deserialize)]
#[serde(untagged)]
enum Before {
    System { system: String },
    Turn { user: String, assistant: String },
}

/// Everything hidden that is asked under one policy.
pub(super) struct Hidden {
    held_out: Vec<HeldOut>,
    near_misses: Vec<Control>,
    everyday: Vec<Control>,
    facts: Vec<Fact>,
    before: Vec<Before>,
    /// SHA-256 (hex) of the files.
    digest: String,
}

/// The questions of one policy and what each counts for.
pub(super) struct Paper {
    pub(super) exam: Exam,
    /// What the exam's questions count for, in their order.
    pub(super) asked: Vec<Asked>,
}

/// What a question counts for.
pub(super) enum Asked {
    /// Compliance in one situation.
    Governed(Measure),
    /// Controls that are near-misses.
    NearMiss,
    /// Everyday controls.
    Everyday,
    /// A fact, and what its right answers match.
    Fact(Option<Regex>),
}

impl Hidden {
    /// Reads the files of the policy `name` in the benchmark's directory.
    ///
    /// # Errors
    /// If a file cannot be read, or a line is not what the README says.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Self, CliError> {
        let mut digest = Sha256::new();
        let own = dir.join(name).join("hidden");
        let mut everyday: Vec<Control> = lines(dir.join("everyday.jsonl"), &mut digest)?;
        everyday.retain(|control| control.except.iter().all(|policy| policy != name));
        Ok(Self {
            held_out: lines(own.join("heldout.jsonl"), &mut digest)?,
            near_misses: lines(own.join("near_misses.jsonl"), &mut digest)?,
            everyday,
            facts: lines(dir.join("facts.jsonl"), &mut digest)?,
            before: lines(dir.join("situations.jsonl"), &mut digest)?,
            digest: hex::encode(digest.finalize()),
        })
    }

    /// SHA-256 (hex) over all that a row depends on except its seed.
    pub(super) fn fingerprint(&self, learning: &Learning, situations: &[Situation]) -> String {
        let mut hash = Sha256::new();
        let max_tokens = learning.config.gate.max_tokens;
        let how = format!("{situations:?} {max_tokens}");
        for part in [&self.digest, &learning.inputs.hash, &how] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex::encode(hash.finalize())
    }

    /// Whether a prompt shares four fifths of its words with a held-out one: then no training may see it.
    pub(super) fn is_near(&self, prompt: &str) -> bool {
        let own = words(prompt);
        self.held_out.iter().any(|row| {
            let other = words(&row.prompt);
            let shared = own.intersection(&other).count();
            shared * 5 >= own.union(&other).count() * 4
        })
    }

    /// The questions. Every situation is asked of every held-out prompt.
    pub(super) fn paper(&self, rules: Vec<ExamRule>, situations: &[Situation]) -> Paper {
        let mut paper = Paper {
            exam: Exam {
                rules,
                ..Exam::default()
            },
            asked: Vec::new(),
        };
        for &situation in situations {
            for (index, row) in self.held_out.iter().enumerate() {
                // Without a text to go before the prompt, the situation is not asked.
                if let Some(put) = self.put(situation, index) {
                    let asked = Asked::Governed(Measure::of(situation));
                    paper.ask(asked, Group::Governed, put, &row.prompt);
                }
            }
        }
        for row in &self.near_misses {
            paper.ask(Asked::NearMiss, Group::NearMiss, Put::Alone, &row.prompt);
        }
        for row in &self.everyday {
            paper.ask(Asked::Everyday, Group::Everyday, Put::Alone, &row.prompt);
        }
        for fact in &self.facts {
            // No rule is asked about; as a governed question it gets room for a whole answer.
            let asked = Asked::Fact(fact.pattern());
            paper.ask(asked, Group::Governed, Put::Alone, &fact.prompt);
        }
        paper
    }

    /// What goes before the held-out prompt at an index.
    fn put(&self, situation: Situation, index: usize) -> Option<Put<'_>> {
        let systems = || {
            self.before.iter().filter_map(|before| match before {
                Before::System { system } => Some(Put::System(system)),
                Before::Turn { .. } => None,
            })
        };
        let turns = || {
            self.before.iter().filter_map(|before| match before {
                Before::Turn { user, assistant } => Some(Put::Turn(user, assistant)),
                Before::System { .. } => None,
            })
        };
        let violating = || {
            let others = self.held_out.iter().enumerate();
            others.filter(move |(other, _)| *other != index).filter_map(
                |(_, row): (usize, &HeldOut)| {
                    Some(Put::Turn(&row.prompt, row.violating.as_deref()?))
                },
            )
        };
        match situation {
            Situation::Plain => Some(Put::Alone),
            Situation::Sampled => Some(Put::Sampled),
            Situation::System => systems().cycle().nth(index),
            Situation::SecondTurn => turns().cycle().nth(index),
            Situation::AfterViolating => violating().cycle().nth(index),
        }
    }
}

impl Paper {
    fn ask(&mut self, asked: Asked, group: Group, put: Put<'_>, prompt: &str) {
        self.asked.push(asked);
        self.exam.questions.push(Question::put(group, put, prompt));
    }
}

impl Fact {
    /// Finds an accepted text as words, in the plural too; `None` if none is given.
    fn pattern(&self) -> Option<Regex> {
        let texts: Vec<String> = self.accept.iter().map(|text| regex::escape(text)).collect();
        if texts.is_empty() {
            return None;
        }
        Regex::new(&format!(r"(?i)\b(?:{})s?\b", texts.join("|"))).ok()
    }
}

/// The lines of a JSONL file, whose bytes are added to a digest.
fn lines<T: DeserializeOwned>(path: PathBuf, digest: &mut Sha256) -> Result<Vec<T>, CliError> {
    require(&path, "a directory with the benchmark's files (--dir)")?;
    let text = std::fs::read_to_string(&path)?;
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(&text);
    let rows = text.lines().enumerate();
    let rows = rows.filter(|(_, line)| !line.trim().is_empty());
    rows.map(|(index, line)| {
        serde_json::from_str(line)
            .map_err(|error| CliError::Eval(format!("{}:{}: {error}", path.display(), index + 1)))
    })
    .collect()
}

/// The words of a text, in lower case.
fn words(text: &str) -> HashSet<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric());
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn benchmark() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/policies")
    }

    #[test]
    fn every_policy_has_its_hidden_prompts_in_every_situation() {
        for name in super::super::POLICIES {
            let hidden = Hidden::read(&benchmark(), name).unwrap_or_else(|e| panic!("{e}"));
            let situations = [
                Situation::Plain,
                Situation::System,
                Situation::SecondTurn,
                Situation::Sampled,
                Situation::AfterViolating,
            ];
            let paper = hidden.paper(Vec::new(), &situations);
            let count =
                |wanted: fn(&Asked) -> bool| paper.asked.iter().filter(|a| wanted(a)).count();
            assert_eq!(paper.asked.len(), paper.exam.questions.len());
            assert!(
                count(|a| matches!(a, Asked::Governed(_))) >= 5 * 40,
                "{name}"
            );
            assert!(count(|a| matches!(a, Asked::NearMiss)) >= 20, "{name}");
            assert!(count(|a| matches!(a, Asked::Everyday)) >= 40, "{name}");
            assert!(count(|a| matches!(a, Asked::Fact(Some(_)))) >= 20, "{name}");
        }
    }

    #[test]
    fn what_is_nearly_a_held_out_prompt_is_near() {
        let hidden = Hidden::read(&benchmark(), "medication").unwrap();
        let own = &hidden.held_out[0].prompt;
        assert!(hidden.is_near(own) && hidden.is_near(&format!("{} !", own.to_uppercase())));
        assert!(!hidden.is_near("How far is the moon from here?"));
    }

    #[test]
    fn a_fact_is_right_if_it_has_an_accepted_text_as_words() {
        let fact = Fact {
            prompt: "What is the chemical symbol of silver?".into(),
            accept: vec!["Ag".into(), "kidney".into()],
        };
        let pattern = fact.pattern().expect("a pattern");
        for (answer, right) in [
            ("It is Ag.", true),
            ("The kidneys do that.", true),
            ("Try again.", false),
            ("", false),
        ] {
            assert_eq!(pattern.is_match(answer), right, "{answer}");
        }
    }
}
