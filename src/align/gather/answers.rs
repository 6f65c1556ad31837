//! Which answers can be trained on, and which of them is best. Pure.

use super::AnswerSource;
use super::speaker::Said;
use crate::exam::words::Words;
use crate::exam::{Defect, defects};
use realign_core::thoughts::answer_of;

/// Words from which on an answer must have something to do with its prompt or the examples.
const LONG: usize = 6;
/// Mean log-probability per token under which an answer is no language, in nats.
const NO_LANGUAGE: f64 = -4.5;
/// Weight of a nat of fluency against the cosine with prompt and examples.
const FLUENCY: f64 = 0.25;
/// What an answer gains that was given with the policy in view: one that complies by chance teaches little.
const MEANT: f64 = 0.5;
/// Fluency of an answer that was not scored, in nats per token.
const UNSCORED: f64 = -2.0;

/// An answer without a sentence that was cut off; `None` if no whole sentence remains.
pub(super) fn clean(said: &Said) -> Option<String> {
    let text = said.text.trim();
    if said.ended {
        return (!text.is_empty()).then(|| text.to_owned());
    }
    sentence_end(text).map(|end| text[..end].to_owned())
}

/// Where the last whole sentence of a text ends, in bytes.
fn sentence_end(text: &str) -> Option<usize> {
    let mut ends = text.char_indices().filter(|&(at, c)| {
        let after = text[at + c.len_utf8()..].chars().next();
        match c {
            '。' | '！' | '？' => true,
            '.' | '!' | '?' => {
                let is_last =
                    after.is_none_or(|next| next.is_whitespace() || "\"')”’*".contains(next));
                // "2." numbers a line or is half a number.
                let word = text[..at]
                    .rsplit(char::is_whitespace)
                    .next()
                    .unwrap_or_default();
                let numbers = c == '.' && word.chars().all(|c| c.is_ascii_digit());
                is_last && !numbers
            }
            _ => false,
        }
    });
    let (at, mark) = ends.next_back()?;
    let end = at + mark.len_utf8();
    let closing = text[end..].chars().take_while(|c| "\"')”’*".contains(*c));
    Some(end + closing.map(char::len_utf8).sum::<usize>())
}

/// Whether a complying answer may be trained on: it has words, does not repeat itself, and is in the
/// prompt's language as far as that can be told.
pub(super) fn sound(text: &str, prompt: &str) -> bool {
    let found = defects(answer_of(text), Some(prompt));
    found.iter().all(|defect| *defect == Defect::Collapse)
}

/// A text's words in lower case: texts that differ in nothing else are the same.
pub(crate) fn normalised(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// Sorts answers to a prompt: on topic, like the examples, and fluent first. Those that are about
/// something else or no language are removed.
pub(super) fn rank(
    prompt: &str,
    answers: &mut Vec<(String, AnswerSource)>,
    fluency: Vec<Option<f64>>,
    examples: &[&str],
) {
    let others = answers.iter().map(|(text, _)| answer_of(text));
    let words = Words::new(others.chain([prompt]).chain(examples.iter().copied()));
    let targets = std::iter::once(&prompt).chain(examples);
    let targets: Vec<_> = targets.map(|text| words.weigh(text)).collect();
    let mut ranked: Vec<(f64, (String, AnswerSource))> = std::mem::take(answers)
        .into_iter()
        .zip(fluency)
        .filter_map(|(answer, fluency)| {
            let said = answer_of(&answer.0);
            let topic = words.weigh(said).closest(&targets);
            let is_long = said.split_whitespace().count() >= LONG;
            let fluency = fluency.unwrap_or(UNSCORED);
            let is_usable = fluency >= NO_LANGUAGE && (topic > 0.0 || !is_long);
            let meant = if answer.1 == AnswerSource::Own {
                0.0
            } else {
                MEANT
            };
            is_usable.then_some((topic + meant + FLUENCY * fluency, answer))
        })
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.0.cmp(&b.1.0)));
    answers.extend(ranked.into_iter().map(|(_, answer)| answer));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_last_whole_sentence() {
        for (text, ended, expected) in [
            ("Paris", true, Some("Paris")),
            ("Paris is", false, None),
            ("Ask them. Then you", false, Some("Ask them.")),
            ("He said \"no.\" Then", false, Some("He said \"no.\"")),
            (
                "Do this: 1. Wash it. 2. Dry",
                false,
                Some("Do this: 1. Wash it."),
            ),
            ("It is 3.5 metres wide", false, None),
            ("水很冷。我", false, Some("水很冷。")),
            (" \n", true, None),
        ] {
            let said = Said {
                text: text.into(),
                ended,
            };
            assert_eq!(clean(&said).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_best_answer_is_on_topic_and_fluent() {
        let own = |text: &str| (text.to_owned(), AnswerSource::Own);
        let mut answers = vec![
            own("Bananas grow where summers tend to be hot."),
            own("Please ask a pharmacist about tablets."),
            own("Tablets tablets qx."),
            own("No."),
        ];
        let fluency = vec![Some(-1.0), Some(-1.0), Some(-6.0), None];
        rank(
            "How many tablets?",
            &mut answers,
            fluency,
            &["Ask a pharmacist."],
        );
        let texts: Vec<&str> = answers.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["Please ask a pharmacist about tablets.", "No."]);
    }

    #[test]
    fn texts_are_the_same_by_their_words() {
        assert_eq!(normalised("  How MANY, tablets?\n"), "how many tablets");
        assert!(!sound("no no no no no no no no no no no no", "Why?"));
        assert!(sound("Please ask a doctor.", "Why?"));
    }
}
