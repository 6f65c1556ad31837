//! How long a model may think before it answers.

pub use realign_core::thoughts::{CLOSES, OPENS};

/// Most tokens of thoughts, and how the model is made to end them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinkingBudget {
    /// Tokens that the model may think. Those that open and close the thoughts are not counted.
    pub tokens: usize,
    /// Whether the prompt has opened the thoughts.
    pub opened: bool,
    /// What is generated when they are spent: the tokens of [`CLOSES`] and of the white space around
    /// it.
    pub closing: Vec<u32>,
}

/// Where a sequence is in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It may open its thoughts.
    Beginning,
    Thoughts,
    Answer,
}

/// A sequence's thoughts, as far as they have come.
#[derive(Debug)]
pub(crate) struct Thoughts {
    budget: ThinkingBudget,
    place: Place,
    /// Text in which a tag may have begun.
    text: String,
    spent: usize,
    closed: usize,
}

impl Thoughts {
    pub(crate) fn new(budget: ThinkingBudget) -> Self {
        Self {
            place: if budget.opened {
                Place::Thoughts
            } else {
                Place::Beginning
            },
            budget,
            text: String::new(),
            spent: 0,
            closed: 0,
        }
    }

    /// The token that comes next, whatever the model makes likely.
    pub(crate) fn forced(&self) -> Option<u32> {
        let spent = self.place == Place::Thoughts && self.spent >= self.budget.tokens;
        let next = self.budget.closing.get(self.closed).copied();
        next.filter(|_| spent)
    }

    /// Takes a token's text.
    pub(crate) fn push(&mut self, text: &str) {
        if self.forced().is_some() {
            self.closed += 1;
            if self.closed == self.budget.closing.len() {
                self.place = Place::Answer;
            }
            return;
        }
        self.text.push_str(text);
        match self.place {
            Place::Beginning => {
                let begun = self.text.trim_start();
                if let Some(rest) = begun.strip_prefix(OPENS) {
                    self.text = rest.to_owned();
                    self.place = Place::Thoughts;
                } else if !OPENS.starts_with(begun) {
                    self.place = Place::Answer;
                }
            }
            Place::Thoughts => {
                self.spent += 1;
                if self.text.contains(CLOSES) {
                    self.place = Place::Answer;
                }
                self.forget();
            }
            Place::Answer => self.text.clear(),
        }
    }

    /// Drops text in which the closing tag cannot have begun.
    fn forget(&mut self) {
        let mut from = self.text.len().saturating_sub(CLOSES.len());
        while !self.text.is_char_boundary(from) {
            from += 1;
        }
        self.text.drain(..from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of a turn in which the model would write `texts`, one token each.
    fn turn(tokens: usize, opened: bool, texts: &[&str]) -> String {
        let closing = vec![7, 8];
        let mut thoughts = Thoughts::new(ThinkingBudget {
            tokens,
            opened,
            closing,
        });
        let mut all = String::new();
        let mut texts = texts.iter();
        loop {
            let text = match thoughts.forced() {
                Some(7) => CLOSES,
                Some(_) => "\n",
                None => match texts.next() {
                    Some(text) => text,
                    None => return all,
                },
            };
            thoughts.push(text);
            all.push_str(text);
        }
    }

    #[test]
    fn thoughts_end_when_their_tokens_are_spent() {
        for (tokens, opened, texts, expect) in [
            (2, true, vec!["a", "b", "c"], "ab</think>\nc"),
            (
                2,
                false,
                vec!["<think>", "a", "b", "c"],
                "<think>ab</think>\nc",
            ),
            (0, true, vec!["c"], "</think>\nc"),
            (0, false, vec!["\n<th", "ink>", "c"], "\n<think></think>\nc"),
            // It ended them itself, or never thought.
            (3, true, vec!["é", "</th", "ink>", "c", "d"], "é</think>cd"),
            (0, false, vec!["c", "<think>", "d"], "c<think>d"),
            (9, true, vec!["a"], "a"),
        ] {
            assert_eq!(turn(tokens, opened, &texts), expect, "{texts:?}");
        }
    }
}
