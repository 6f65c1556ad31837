//! Ends numbers in JSON. Schemas bound what is before the decimal point, and nothing what is behind it: a small
//! model may write digits until its tokens are used up.

use realign_model::Tokenizer;

/// Digits in a row: twice as many as a floating-point number has.
const MOST: usize = 32;

/// The number that a text ends with, if it does.
#[derive(Clone, Debug)]
pub(super) struct Digits {
    /// What of the mark, after which the text is JSON, has not been read.
    mark: &'static [u8],
    seen: usize,
    in_string: bool,
    escaped: bool,
    run: usize,
}

impl Digits {
    /// Reads JSON after a mark, whose first character occurs in it once; at once if that is empty.
    pub(super) fn after(mark: &'static str) -> Self {
        Self {
            mark: mark.as_bytes(),
            seen: 0,
            in_string: false,
            escaped: false,
            run: 0,
        }
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(next) = self.mark.get(self.seen) {
                self.seen = match byte == *next {
                    true => self.seen + 1,
                    false => usize::from(self.mark.first() == Some(&byte)),
                };
            } else if self.in_string {
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
            } else {
                self.in_string = byte == b'"';
                self.run = match byte.is_ascii_digit() {
                    true => self.run + 1,
                    false => 0,
                };
            }
        }
    }

    /// Leaves no token that begins with a digit, if the number is long and anything else may follow.
    pub(super) fn limit(&self, masked: &mut [f32], tokenizer: &Tokenizer) {
        if self.run < MOST {
            return;
        }
        let is_digit = |id: usize| {
            let bytes = tokenizer.token_bytes(id as u32);
            bytes.first().is_some_and(u8::is_ascii_digit)
        };
        let (digits, others): (Vec<usize>, Vec<usize>) = (0..masked.len())
            .filter(|id| masked[*id].is_finite())
            .partition(|id| is_digit(*id));
        if others.is_empty() {
            return;
        }
        for id in digits {
            masked[id] = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mark: &'static str, text: &str) -> usize {
        let mut digits = Digits::after(mark);
        // However the text is cut into tokens.
        for part in text.as_bytes().chunks(3) {
            digits.read(part);
        }
        digits.run
    }

    #[test]
    fn digits_are_counted_outside_of_strings() {
        for (mark, text, expected) in [
            ("", r#"{"a": 0.1234"#, 4),
            ("", r#"{"a": "1234"#, 0),
            ("", r#"{"a\"12": "\\", "b": 12"#, 2),
            ("", "[1234, ", 0),
            ("<tool_call>", "12345", 0),
            ("<tool_call>", "1 < 2 <<tool_call>\n{\"a\": 123", 3),
        ] {
            assert_eq!(run(mark, text), expected, "{text}");
        }
    }
}
