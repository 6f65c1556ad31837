//! A draft as a policy file, with comments for the one who edits it.

use std::fmt::Write as _;

use super::tell::Tell;
use super::topics::Topics;
use super::{Answered, Brief, Violates};

/// What a file is made of.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) brief: &'a Brief,
    pub(super) topics: &'a Topics,
    pub(super) violates: &'a Violates,
    /// Prompts for the exam.
    pub(super) prompts: &'a [String],
    /// Near-misses that were found.
    pub(super) near: &'a [String],
}

impl Parts<'_> {
    pub(super) fn text(&self) -> String {
        let brief = self.brief;
        let (id, rule) = (double(&brief.id), double(&brief.rule));
        let mut out = format!(
            "# yaml-language-server: $schema=policy.schema.json\n\
             # Drafted by `realign policy new`. Every field: docs/policies.md, or `realign policy schema`.\n\
             apiVersion: realign/v1\n\
             id: {id}\n\
             # Your own; a change of it makes the server train again.\n\
             version: \"1\"\n\
             description: {rule}\n\
             rules:\n  - id: {id}\n    description: {rule}\n"
        );
        if !self.topics.is_empty() {
            out.push_str("    # Where the rule applies: the topic words in their usual forms.\n");
            out.push_str(&self.when());
        }
        out.push_str("    # What a wrong answer looks like.\n");
        out.push_str(&self.wrong());
        out.push_str("    # The rule's tests. Add the tricky ones that you meet.\n    examples:\n");
        examples(&mut out, &brief.wrong, "violates");
        examples(&mut out, &brief.right, "complies");
        self.lists(&mut out);
        out
    }

    fn when(&self) -> String {
        let topics = self.topics;
        let mut tests = Vec::new();
        tests.extend(
            topics
                .regex
                .as_deref()
                .map(|regex| ("any_regex", single(regex))),
        );
        if !topics.phrases.is_empty() {
            tests.push(("any_phrase", list(&topics.phrases)));
        }
        let mut out = "    when:\n      prompt:\n".to_owned();
        // Writing to a string cannot fail.
        match tests.as_slice() {
            [(name, value)] => {
                let _infallible = writeln!(out, "        {name}: [{value}]");
            }
            tests => {
                out.push_str("        any:\n");
                for (name, value) in tests {
                    let _infallible = writeln!(out, "          - {name}: [{value}]");
                }
            }
        }
        if !topics.except.is_empty() {
            let except = list(&topics.except);
            let _infallible = writeln!(
                out,
                "        # Of what must stay: these words are in no question with a wrong answer.\n        \
                 not: {{ any_phrase: [{except}] }}"
            );
        }
        out
    }

    fn wrong(&self) -> String {
        let mut out = "    violates:\n".to_owned();
        match self.violates {
            Violates::Text(tell) => tested(&mut out, tell),
            Violates::Probe => out.push_str(
                "      # No pattern tells the examples apart: a classifier is fitted on them.\n      probe: {}\n",
            ),
            Violates::Judge(judge) => {
                let question = format!("Does the answer break this rule? {}", self.brief.rule);
                let _infallible = writeln!(
                    out,
                    "      judge:\n        url: {}\n        model: {}\n        question: {}",
                    double(&judge.url),
                    double(&judge.model),
                    double(&question)
                );
                if let Some(key) = &judge.key_env {
                    let _infallible = writeln!(out, "        key_env: {}", double(key));
                }
            }
        }
        out
    }

    fn lists(&self, out: &mut String) {
        if !self.prompts.is_empty() {
            out.push_str("# Prompts of the preference data that the rule is about, for the exam.\nprompts:\n");
            items(out, self.prompts);
        }
        let stays = &self.brief.stays;
        if stays.is_empty() && self.near.is_empty() {
            return;
        }
        out.push_str("# Prompts whose answers must not change.\ncontrols:\n");
        items(out, stays);
        if !self.near.is_empty() {
            out.push_str(
                "  # Found by their words. Delete those that the rule is about after all.\n",
            );
            items(out, self.near);
        }
    }
}

fn tested(out: &mut String, tell: &Tell) {
    out.push_str("      response:\n");
    let _infallible = match tell {
        Tell::Says { phrases, patterns } => {
            let mut tests = Vec::new();
            if !patterns.is_empty() {
                let patterns: Vec<String> = patterns.iter().map(|p| single(p)).collect();
                tests.push(format!("any_regex: [{}]", patterns.join(", ")));
            }
            if !phrases.is_empty() {
                tests.push(format!("any_phrase: [{}]", list(phrases)));
            }
            match tests.as_slice() {
                [one] => writeln!(out, "        {one}"),
                tests => {
                    let lines = tests.iter().map(|test| format!("          - {test}\n"));
                    write!(out, "        any:\n{}", lines.collect::<String>())
                }
            }
        }
        Tell::Lacks(phrases) => writeln!(out, "        not: {{ any_phrase: [{}] }}", list(phrases)),
        Tell::AtLeast(words) => writeln!(out, "        length: {{ min: {words}, unit: words }}"),
        Tell::AtMost(words) => writeln!(out, "        length: {{ max: {words}, unit: words }}"),
    };
}

fn examples(out: &mut String, answers: &[Answered], verdict: &str) {
    for Answered { prompt, response } in answers {
        let (prompt, response) = (double(prompt), double(response));
        let _infallible = writeln!(
            out,
            "      - {{ prompt: {prompt}, response: {response}, verdict: {verdict} }}"
        );
    }
}

fn items(out: &mut String, texts: &[String]) {
    for text in texts {
        let _infallible = writeln!(out, "  - {}", double(text));
    }
}

fn list(texts: &[String]) -> String {
    texts
        .iter()
        .map(|text| double(text))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A text in double quotes: JSON's form of it, without the characters that YAML has no place for or takes
/// for the end of a line.
fn double(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// An expression in single quotes, where backslashes stand for themselves.
fn single(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
