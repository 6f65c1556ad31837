//! What a model thinks before it answers: the text between `<think>` and `</think>` at the beginning. Pure.

use super::error::ApiError;
use realign_core::thoughts::opened_by;
use realign_engine::thoughts::{CLOSES, OPENS, ThinkingBudget};
use realign_model::Tokenizer;

/// The most tokens that a turn may spend on thoughts: `tokens`, if the model may think in it.
///
/// # Errors
/// If the end of the thoughts cannot be encoded.
pub(crate) fn budget(
    tokenizer: &Tokenizer,
    thinking: Option<&Thinking>,
    tokens: Option<usize>,
) -> Result<Option<ThinkingBudget>, ApiError> {
    let may = thinking.filter(|thinking| thinking.part != Part::Answer);
    let Some((tokens, thinking)) = tokens.zip(may) else {
        return Ok(None);
    };
    let closing = tokenizer.encode(&format!("\n{CLOSES}\n\n"), true);
    Ok(Some(ThinkingBudget {
        tokens,
        opened: thinking.thinks(),
        closing: closing.map_err(|error| ApiError::Internal(error.to_string()))?,
    }))
}

/// Where in its turn a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// At the beginning: it may open its thoughts.
    Beginning,
    Thoughts,
    /// Between thoughts and answer, where white space is left out.
    Between,
    Answer,
}

/// Splits the text of one turn into thoughts and answer, as it comes in.
#[derive(Clone, Debug)]
pub(crate) struct Thinking {
    part: Part,
    /// Text that may be the beginning of a tag, or white space before it.
    held: String,
}

/// New text of a turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) thoughts: String,
    pub(crate) answer: String,
}

impl Thinking {
    /// A turn after a prompt, of which `tail` is the end: templates may open the thoughts in it, or end
    /// them at once.
    pub(crate) fn after(tail: &str) -> Self {
        Self::at(if opened_by(tail) {
            Part::Thoughts
        } else if tail.trim_end().ends_with(CLOSES) {
            Part::Answer
        } else {
            Part::Beginning
        })
    }

    /// A turn that continues a message of this text.
    pub(crate) fn within(text: &str) -> Self {
        let thoughts = text.trim_start().strip_prefix(OPENS);
        let thinks = thoughts.is_some_and(|thoughts| !thoughts.contains(CLOSES));
        Self::at(if thinks { Part::Thoughts } else { Part::Answer })
    }

    fn at(part: Part) -> Self {
        Self {
            part,
            held: String::new(),
        }
    }

    /// Whether the model thinks now.
    pub(crate) fn thinks(&self) -> bool {
        self.part == Part::Thoughts
    }

    /// Takes new text.
    pub(crate) fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        self.held.push_str(text);
        loop {
            match self.part {
                Part::Beginning => {
                    let plain = self.held.trim_start();
                    if let Some(rest) = plain.strip_prefix(OPENS) {
                        self.held = rest.to_owned();
                        self.part = Part::Thoughts;
                    } else if OPENS.starts_with(plain) {
                        return split;
                    } else {
                        self.part = Part::Answer;
                    }
                }
                Part::Thoughts => {
                    if let Some((thoughts, rest)) = self.held.split_once(CLOSES) {
                        split.thoughts.push_str(thoughts);
                        self.held = rest.to_owned();
                        self.part = Part::Between;
                    } else {
                        let keep = partial(&self.held);
                        split
                            .thoughts
                            .extend(self.held.drain(..self.held.len() - keep));
                        return split;
                    }
                }
                Part::Between => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return split;
                    }
                    self.part = Part::Answer;
                }
                Part::Answer => {
                    split.answer.push_str(&self.held);
                    self.held.clear();
                    return split;
                }
            }
        }
    }

    /// The text that was held back, at the end of the turn.
    pub(crate) fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        match self.part {
            Part::Thoughts => Split {
                thoughts: held,
                answer: String::new(),
            },
            Part::Beginning | Part::Between | Part::Answer => Split {
                thoughts: String::new(),
                answer: held,
            },
        }
    }
}

/// Bytes at the end of a text that may be the beginning of the closing tag.
fn partial(text: &str) -> usize {
    let may_be = |length: &usize| {
        text.is_char_boundary(text.len() - length)
            && CLOSES.starts_with(&text[text.len() - length..])
    };
    let most = CLOSES.len().saturating_sub(1).min(text.len());
    (1..=most).rev().find(may_be).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(tail: &str, texts: &[&str]) -> (String, String) {
        let mut thinking = Thinking::after(tail);
        let mut split = Split::default();
        for text in texts {
            let next = thinking.push(text);
            split.thoughts.push_str(&next.thoughts);
            split.answer.push_str(&next.answer);
        }
        let last = thinking.finish();
        (split.thoughts + &last.thoughts, split.answer + &last.answer)
    }

    #[test]
    fn thoughts_and_answer_are_told_apart_wherever_the_text_is_cut() {
        let text = "<think>\nWhy not? é\n</think>\n\nYes </think> and <think>.";
        let expected = (
            "\nWhy not? é\n".to_owned(),
            "Yes </think> and <think>.".to_owned(),
        );
        assert_eq!(all("assistant\n", &[text]), expected);
        let cut: Vec<String> = text.chars().map(String::from).collect();
        let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
        assert_eq!(all("assistant\n", &cut), expected);
        let opened = text.strip_prefix("<think>").unwrap();
        assert_eq!(all("<think>\n", &[opened]), expected);
    }

    #[test]
    fn a_continued_message_says_itself_whether_it_thinks() {
        for (text, thinks) in [
            ("<think>\nOkay, so", true),
            ("<think>a</think>b", false),
            ("Well, ", false),
        ] {
            assert_eq!(Thinking::within(text).thinks(), thinks, "{text}");
        }
    }

    #[test]
    fn what_is_no_thought_is_answer_and_nothing_is_lost() {
        for (tail, text, thoughts, answer) in [
            ("", "Yes.", "", "Yes."),
            ("", " <thin", "", " <thin"),
            (
                "<think>\n\n</think>\n\n",
                "<think>x</think>",
                "",
                "<think>x</think>",
            ),
            ("<think>", "cut off </thi", "cut off </thi", ""),
        ] {
            assert_eq!(
                all(tail, &[text]),
                (thoughts.to_owned(), answer.to_owned()),
                "{text}"
            );
        }
    }
}
