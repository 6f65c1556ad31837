//! Where a rule applies: the topic words in their usual forms, without the near-misses.

use regex::Regex;

use super::phrases::places;
use super::{Brief, DraftError};
use crate::policy::phrase_pattern;

/// What `when` tests of the prompt.
#[derive(Clone, Debug, Default)]
pub(super) struct Topics {
    /// An expression for the topics that are single words.
    pub(super) regex: Option<String>,
    /// The other topics.
    pub(super) phrases: Vec<String>,
    /// Phrases of near-misses, where the rule does not apply.
    pub(super) except: Vec<String>,
}

impl Topics {
    /// # Errors
    /// [`DraftError::OffTopic`] if the rule would not apply to one of its wrong answers.
    pub(super) fn new(brief: &Brief) -> Result<Self, DraftError> {
        let is_word =
            |topic: &str| topic.bytes().all(|b| b.is_ascii_alphabetic()) && topic.len() > 2;
        let topics = || {
            brief
                .topics
                .iter()
                .map(|t| t.trim())
                .filter(|t| !t.is_empty())
        };
        let forms: Vec<String> = topics().filter(|t| is_word(t)).map(forms).collect();
        let mut built = Self {
            regex: (!forms.is_empty()).then(|| format!(r"(?i)\b(?:{})\b", forms.join("|"))),
            phrases: topics()
                .filter(|t| !is_word(t))
                .map(str::to_owned)
                .collect(),
            except: Vec::new(),
        };
        if built.is_empty() {
            return Ok(built);
        }
        if let Some(wrong) = brief
            .wrong
            .iter()
            .find(|wrong| !built.covers(&wrong.prompt))
        {
            return Err(DraftError::OffTopic {
                prompt: wrong.prompt.clone(),
                topics: topics().collect::<Vec<_>>().join(", "),
            });
        }
        built.except = built.exceptions(brief);
        Ok(built)
    }

    /// Whether the rule applies everywhere.
    pub(super) fn is_empty(&self) -> bool {
        self.regex.is_none() && self.phrases.is_empty()
    }

    /// Whether the topic words are in a prompt.
    pub(super) fn covers(&self, prompt: &str) -> bool {
        let matches = |source: &str| Regex::new(source).is_ok_and(|r| r.is_match(prompt));
        let phrase = |phrase: &String| phrase_pattern(phrase).is_some_and(|p| matches(&p));
        self.regex.as_deref().is_some_and(matches) || self.phrases.iter().any(phrase)
    }

    /// For each near-miss with topic words, a phrase that no wrong answer's prompt has.
    fn exceptions(&self, brief: &Brief) -> Vec<String> {
        let near: Vec<&str> = brief
            .stays
            .iter()
            .map(String::as_str)
            .filter(|stay| self.covers(stay))
            .collect();
        let has = |phrase: &str, text: &str| {
            let regex = phrase_pattern(phrase).and_then(|p| Regex::new(&p).ok());
            regex.is_some_and(|r| r.is_match(text))
        };
        let mut grams: Vec<_> = places(&near).into_values().collect();
        grams.retain(|(gram, _)| !brief.wrong.iter().any(|w| has(&gram.text, &w.prompt)));
        // The most near-misses, then the shortest, then the longest word, then the alphabet.
        grams.sort_by(|a, b| {
            let key = |(gram, at): &(super::phrases::Gram, Vec<usize>)| {
                (
                    usize::MAX - at.len(),
                    gram.words,
                    usize::MAX - gram.text.len(),
                )
            };
            key(a).cmp(&key(b)).then_with(|| a.0.text.cmp(&b.0.text))
        });
        let mut open: Vec<usize> = (0..near.len()).collect();
        let mut except = Vec::new();
        for (gram, at) in grams {
            if open.iter().any(|o| at.contains(o)) {
                open.retain(|o| !at.contains(o));
                except.push(gram.text);
            }
        }
        except
    }

    /// Near-misses to which the rule applies all the same.
    pub(super) fn notes(&self, brief: &Brief) -> Vec<String> {
        if self.is_empty() {
            return Vec::new();
        }
        let has = |phrase: &String, text: &str| {
            let regex = phrase_pattern(phrase).and_then(|p| Regex::new(&p).ok());
            regex.is_some_and(|r| r.is_match(text))
        };
        let caught =
            |stay: &&String| self.covers(stay) && !self.except.iter().any(|e| has(e, stay));
        let caught = brief.stays.iter().filter(caught);
        caught
            .map(|stay| {
                format!(
                    "the rule also applies to {stay:?}, which the topic words do not tell from the \
                     wrong answers' questions: its answer may change"
                )
            })
            .collect()
    }
}

/// An expression for a word's usual English forms.
fn forms(word: &str) -> String {
    let word = word.to_lowercase();
    if word.len() > 3
        && let Some(stem) = word.strip_suffix('e')
    {
        return format!("{stem}(?:e[sdr]?|ers|ing|age)");
    }
    if word.len() > 3
        && let Some(stem) = word.strip_suffix('y')
    {
        return format!("{stem}(?:y(?:ing)?|ie[sdr])");
    }
    let stem = word
        .strip_suffix('s')
        .filter(|stem| stem.len() > 3 && !stem.ends_with('s'));
    format!("{}(?:e?s|ed|[eo]rs?|ing|ments?)?", stem.unwrap_or(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_for_its_forms() {
        for (topic, yes, no) in [
            (
                "dose",
                &["dose", "Doses", "dosing", "dosage"][..],
                &["dos", "dozen"][..],
            ),
            ("pharmacy", &["pharmacies", "Pharmacy"], &["pharmac"]),
            (
                "invest",
                &["investing", "investments", "investor"],
                &["vest"],
            ),
            ("stocks", &["stock", "stocks"], &["stockholm"]),
            ("bus", &["buses", "bus"], &["business"]),
        ] {
            let regex = Regex::new(&format!(r"(?i)^(?:{})$", forms(topic))).unwrap();
            for word in yes {
                assert!(regex.is_match(word), "{topic}: {word}");
            }
            for word in no {
                assert!(!regex.is_match(word), "{topic}: {word}");
            }
        }
    }
}
