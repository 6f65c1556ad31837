//! The tags around what a model thinks before it answers.

use std::borrow::Cow;

/// Opens the thoughts of a model, at the beginning of its turn.
pub const OPENS: &str = "<think>";
/// Closes them.
pub const CLOSES: &str = "</think>";

/// Whether a prompt has opened the thoughts of the answer that follows, as some chat templates do. `tail`
/// is the prompt's end.
pub fn opened_by(tail: &str) -> bool {
    tail.trim_end().ends_with(OPENS)
}

/// What a model wrote after a prompt, with the tag that the prompt opened: the form in which responses
/// are judged.
pub fn whole(opened: bool, written: String) -> String {
    if opened && !written.trim_start().starts_with(OPENS) {
        return format!("{OPENS}{written}");
    }
    written
}

/// A response of a data set in the form in which responses are judged: many were recorded without the
/// opening tag, which was in the prompt. Only for data: what a model says now may not hide its beginning
/// with a tag.
pub fn recorded(response: &str) -> Cow<'_, str> {
    let closes = response.find(CLOSES);
    let opens = response.find(OPENS);
    match closes {
        Some(end) if opens.is_none_or(|start| start > end) => {
            Cow::Owned(format!("{OPENS}{response}"))
        }
        _ => Cow::Borrowed(response),
    }
}

/// What follows a prompt that has opened the thoughts, for a response in the form in which it is judged. A
/// response without thoughts ends them at once.
pub fn after_opened(response: &str) -> String {
    let begun = response.trim_start();
    match begun.strip_prefix(OPENS) {
        Some(rest) => rest.trim_start_matches('\n').to_owned(),
        None => format!("\n{CLOSES}\n\n{response}"),
    }
}

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

    #[test]
    fn thoughts_that_the_prompt_opened_are_thoughts() {
        assert!(opened_by("<|assistant|>\n<think>\n") && !opened_by("<think>\n\n</think>\n\n"));
        let written = "Hm.\n</think>\n\nHello";
        assert_eq!(answer_of(&whole(true, written.into())), "Hello");
        assert_eq!(answer_of(&whole(false, written.into())), written);
        // Some models write the tag once more.
        assert_eq!(
            answer_of(&whole(true, format!("<think>{written}"))),
            "Hello"
        );
        assert_eq!(answer_of(&recorded(written)), "Hello");
        for whole in ["Hello", "<think>a</think>b", "a <think>b</think>c"] {
            assert_eq!(recorded(whole), whole);
        }
        assert_eq!(after_opened("<think>\nHm.\n</think>\n\nHello"), written);
        assert_eq!(after_opened("Hello"), "\n</think>\n\nHello");
    }
}
