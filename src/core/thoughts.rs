//! The tags around what a model thinks before it answers.

/// Opens the thoughts of a model, at the beginning of its turn.
pub const OPENS: &str = "<think>";
/// Closes them.
pub const CLOSES: &str = "</think>";

/// A response without the thoughts at its beginning. Thoughts that are not closed are kept, because no
/// answer follows that could be judged in their place.
pub fn answer_of(response: &str) -> &str {
    let thoughts = response.trim_start().strip_prefix(OPENS);
    let split = thoughts.and_then(|thoughts| thoughts.split_once(CLOSES));
    split.map_or(response, |(_, answer)| answer.trim_start())
}

/// A response that begins with thoughts, as a model writes it.
pub fn with_thoughts(thoughts: &str, answer: &str) -> String {
    format!("{OPENS}\n{}\n{CLOSES}\n\n{answer}", thoughts.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_what_follows_closed_thoughts() {
        for (response, answer) in [
            ("<think>\nHm.\n</think>\n\nHello", "Hello"),
            (" <think></think>Hello", "Hello"),
            ("<think>a</think> <think>b</think>c", "<think>b</think>c"),
            ("<think>Hm.</think>", ""),
            ("<think>Hm.", "<think>Hm."),
            ("Hello <think>a</think>b", "Hello <think>a</think>b"),
            ("a</think>b", "a</think>b"),
            ("", ""),
        ] {
            assert_eq!(answer_of(response), answer, "{response}");
        }
        assert_eq!(answer_of(&with_thoughts("Hm.", "Hello")), "Hello");
    }
}
