//! Raw condition trees → compiled ones. All errors of a tree are collected, not only the first.

mod fitted;

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_saphyr::{Location, Spanned};

use super::condition::{Condition, Pattern, TextTest};
use super::error::PolicyError;
use super::labelled::FileReader;
use super::matchers::Labelled;
use super::raw::{OneOrMany, RawCondition, RawLength, RawTextTest};
use super::thinking::Thinking;

/// Bound on one compiled regular expression, bytes.
const REGEX_SIZE_LIMIT: usize = 1 << 20;
/// Bound on the nesting of one regular expression.
const REGEX_NEST_LIMIT: u32 = 64;

/// Compiles the conditions of one rule.
pub(super) struct Compiler<'a> {
    /// The file, for error messages.
    pub(crate) file: &'a Path,
    /// The rule's id, for error messages.
    pub rule: &'a str,
    /// The rule's description, which judges are given.
    pub description: &'a str,
    /// The rule's own examples, which probes and judges are fitted on.
    pub examples: &'a [Labelled],
    /// What the rule sees of a response.
    pub(crate) thinking: Thinking,
    /// Reads files in the policy's directory.
    pub(crate) reader: FileReader<'a>,
    /// Errors found so far.
    pub(crate) errors: &'a mut Vec<PolicyError>,
}

impl Compiler<'_> {
    fn error(&mut self, at: Location, message: impl std::fmt::Display) {
        let message = format!("rule `{}`: {message}", self.rule);
        self.errors.push(PolicyError::at(self.file, at, message));
    }

    /// Compiles a condition; `None` if it has errors, which are then recorded.
    pub(crate) fn condition(&mut self, raw: &Spanned<RawCondition>) -> Option<Condition> {
        let (at, node) = (raw.referenced, &raw.value);
        let mut parts = Vec::new();
        if let Some(all) = &node.all {
            let compiled = self.list(at, "all", all, Self::condition);
            parts.push(compiled.map(|parts| Condition::All(cheapest_first(parts))));
        }
        if let Some(any) = &node.any {
            let compiled = self.list(at, "any", any, Self::condition);
            parts.push(compiled.map(|parts| Condition::Any(cheapest_first(parts))));
        }
        if let Some(not) = &node.not {
            parts.push(self.condition(not).map(|c| Condition::Not(Box::new(c))));
        }
        if let Some(prompt) = &node.prompt {
            parts.push(self.text_test(prompt).map(Condition::Prompt));
        }
        if let Some(response) = &node.response {
            parts.push(self.text_test(response).map(Condition::Response));
        }
        if let Some(label) = &node.label {
            parts.push(self.labels(label).map(Condition::Label));
        }
        if let Some(probe) = &node.probe {
            parts.push(self.probe(probe).map(Condition::Probe));
        }
        if let Some(judge) = &node.judge {
            parts.push(self.judge(judge).map(Condition::Judge));
        }
        if let Some(cascade) = &node.cascade {
            parts.push(self.cascade(cascade));
        }
        if parts.is_empty() {
            let keys =
                "`prompt`, `response`, `label`, `probe`, `judge`, `cascade`, `all`, `any` or `not`";
            self.error(at, format!("this condition is empty; give one of {keys}"));
        }
        join(parts, |parts| Condition::All(cheapest_first(parts)))
    }

    fn text_test(&mut self, raw: &Spanned<RawTextTest>) -> Option<TextTest> {
        let (at, node) = (raw.referenced, &raw.value);
        self.misplaced("probe", node.probe.as_ref().map(|n| n.referenced));
        self.misplaced("judge", node.judge.as_ref().map(|n| n.referenced));
        let misplaced = node.probe.is_some() || node.judge.is_some();
        let mut parts = Vec::new();
        if let Some(all) = &node.all {
            parts.push(
                self.list(at, "all", all, Self::text_test)
                    .map(TextTest::All),
            );
        }
        if let Some(any) = &node.any {
            parts.push(
                self.list(at, "any", any, Self::text_test)
                    .map(TextTest::Any),
            );
        }
        if let Some(not) = &node.not {
            parts.push(self.text_test(not).map(|t| TextTest::Not(Box::new(t))));
        }
        if let Some(any) = &node.any_regex {
            let compiled = self.list(any.referenced, "any_regex", &any.value, Self::regex);
            parts.push(compiled.map(TextTest::AnyRegex));
        }
        if let Some(all) = &node.all_regex {
            let compiled = self.list(all.referenced, "all_regex", &all.value, Self::regex);
            parts.push(compiled.map(TextTest::AllRegex));
        }
        if let Some(any) = &node.any_phrase {
            let compiled = self.list(any.referenced, "any_phrase", &any.value, Self::phrase);
            parts.push(compiled.map(TextTest::AnyPhrase));
        }
        if let Some(length) = &node.length {
            parts.push(self.length(length));
        }
        if parts.is_empty() && !misplaced {
            let keys = "`any_regex`, `all_regex`, `any_phrase`, `length`, `all`, `any` or `not`";
            self.error(at, format!("this test is empty; give one of {keys}"));
        }
        if misplaced {
            None
        } else {
            join(parts, TextTest::All)
        }
    }

    fn misplaced(&mut self, matcher: &str, at: Option<Location>) {
        if let Some(at) = at {
            self.error(
                at,
                format!(
                    "`{matcher}` reads the whole exchange; put it beside `response`, not inside it"
                ),
            );
        }
    }

    /// Compiles every item, so that the errors of all of them are reported. An empty list is an
    /// error: an empty `all` would always hold and an empty `any` never.
    fn list<R, C>(
        &mut self,
        at: Location,
        key: &str,
        items: &[R],
        compile: impl Fn(&mut Self, &R) -> Option<C>,
    ) -> Option<Vec<C>> {
        if items.is_empty() {
            self.error(
                at,
                format!("`{key}` is an empty list; give at least one item"),
            );
            return None;
        }
        let compiled: Vec<Option<C>> = items.iter().map(|item| compile(self, item)).collect();
        compiled.into_iter().collect()
    }

    fn regex(&mut self, source: &Spanned<String>) -> Option<Pattern> {
        match build(&source.value) {
            Ok(regex) => Some(Pattern::new(&source.value, regex)),
            Err(error) => {
                let why = regex_error(&error);
                let message = format!("the pattern `{}` is not usable: {why}", source.value);
                self.error(source.referenced, message);
                None
            }
        }
    }

    fn phrase(&mut self, source: &Spanned<String>) -> Option<Pattern> {
        let Some(pattern) = phrase_pattern(&source.value) else {
            self.error(source.referenced, "a phrase in `any_phrase` is empty");
            return None;
        };
        match build(&pattern) {
            Ok(regex) => Some(Pattern::new(&source.value, regex)),
            Err(error) => {
                let why = regex_error(&error);
                self.error(
                    source.referenced,
                    format!("the phrase is not usable: {why}"),
                );
                None
            }
        }
    }

    fn length(&mut self, raw: &Spanned<RawLength>) -> Option<TextTest> {
        let RawLength { min, max, unit } = raw.value;
        let problem = match (min, max) {
            (None, None) => "`length` needs `min`, `max` or both".to_owned(),
            (Some(min), Some(max)) if min > max => {
                format!("`length` has min {min} above max {max}, so no text fits")
            }
            _ => return Some(TextTest::Length { min, max, unit }),
        };
        self.error(raw.referenced, problem);
        None
    }

    fn labels(&mut self, raw: &Spanned<OneOrMany>) -> Option<Vec<String>> {
        let mut labels = match &raw.value {
            OneOrMany::One(label) => vec![label.clone()],
            OneOrMany::Many(labels) => labels.clone(),
        };
        if labels.is_empty() || labels.iter().any(|label| label.trim().is_empty()) {
            self.error(
                raw.referenced,
                "`label` needs a label, or a list of labels, none empty",
            );
            return None;
        }
        // Order and repetition carry no meaning, so they must not reach the rule's hash.
        labels.sort_unstable();
        labels.dedup();
        Some(labels)
    }
}

/// Moves cheap conditions to the front of a list whose order has no meaning. The sort is stable,
/// so a list of text conditions keeps its order, and the rule its hash.
fn cheapest_first(mut parts: Vec<Condition>) -> Vec<Condition> {
    parts.sort_by_key(Condition::cost);
    parts
}

/// A node with several keys requires all of them; a single part needs no wrapper.
fn join<T>(parts: Vec<Option<T>>, all: impl Fn(Vec<T>) -> T) -> Option<T> {
    let mut parts: Vec<T> = parts.into_iter().collect::<Option<_>>()?;
    if parts.len() > 1 {
        Some(all(parts))
    } else {
        parts.pop()
    }
}

fn build(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern)
        .size_limit(REGEX_SIZE_LIMIT)
        .dfa_size_limit(REGEX_SIZE_LIMIT)
        .nest_limit(REGEX_NEST_LIMIT)
        .build()
}

/// The cause of a regex error: the last line of the crate's multi-line message.
fn regex_error(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("compiled, it would be larger than {limit} bytes; use smaller repetitions")
        }
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

/// The expression for a phrase; `None` if it is empty.
pub(crate) fn phrase_pattern(phrase: &str) -> Option<String> {
    let words: Vec<String> = phrase.split_whitespace().map(escape_word).collect();
    let mut edges = phrase.trim().chars();
    let first = edges.next()?;
    let last = edges.next_back().unwrap_or(first);
    // Half boundaries only require that no word character adjoins the phrase, so phrases that begin or
    // end with punctuation ("C++") are found as well. Punctuation alone ("!") stands next to words.
    let has_word = phrase.chars().any(char::is_alphanumeric);
    let whole = |edge: char, boundary| {
        let bound = has_word && !is_written_without_spaces(edge);
        if bound { boundary } else { "" }
    };
    let (start, end) = (
        whole(first, r"\b{start-half}"),
        whole(last, r"\b{end-half}"),
    );
    Some(format!("(?i){start}{}{end}", words.join(r"\s+")))
}

/// Whether a character belongs to a script that puts no spaces between words: Chinese, Japanese, Thai,
/// Lao, Burmese, Khmer. Every character of these is a word character, so their words have no boundary.
fn is_written_without_spaces(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x2E80..=0x2FDF | 0x3005..=0x30FF
            | 0x31F0..=0x31FF | 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0xFF66..=0xFF9F | 0x20000..=0x3FFFF)
}

/// Escapes a word of a phrase; typewriter and typographic apostrophes match each other, since
/// models write either.
fn escape_word(word: &str) -> String {
    regex::escape(word).replace(['\'', '\u{2019}'], "['\u{2019}]")
}
