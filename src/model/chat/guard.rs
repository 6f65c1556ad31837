//! Keeping control literals inside messages from becoming control tokens.

use std::collections::BTreeSet;

use serde_json::Value;

use super::tools::map_strings;
use super::{ChatError, ChatMessage, Tokenizer};

pub(super) fn holds_control(tokenizer: &Tokenizer, text: &str) -> bool {
    tokenizer
        .control_tokens()
        .any(|(_, literal)| text.contains(literal))
}

/// Puts the guard after the first character of every control literal in the text, again until none
/// is left: occurrences may overlap.
pub(super) fn guard_literals(tokenizer: &Tokenizer, text: &str, guard: char) -> String {
    let mut text = text.to_owned();
    for (_, literal) in tokenizer.control_tokens() {
        let mut chars = literal.chars();
        let Some(first) = chars.next() else { continue };
        while text.contains(literal) {
            text = text.replace(literal, &format!("{first}{guard}{}", chars.as_str()));
        }
    }
    text
}

/// Everything that a client wrote, in one string.
pub(super) fn all_texts(messages: &[ChatMessage], tools: &[Value]) -> String {
    let texts = std::cell::RefCell::new(String::new());
    let collect = |text: &str| {
        let mut texts = texts.borrow_mut();
        texts.push_str(text);
        // Two texts must not make a literal together.
        texts.push('\n');
        String::new()
    };
    for message in messages {
        message.guarded(&collect);
    }
    for tool in tools {
        map_strings(tool, &collect);
    }
    texts.into_inner()
}

/// A private-use character that no text contains.
pub(super) fn unused_character(texts: &str) -> Result<char, ChatError> {
    let is_private = |c: &char| matches!(*c, '\u{E000}'..='\u{F8FF}');
    let used: BTreeSet<char> = texts.chars().filter(is_private).collect();
    ('\u{E000}'..='\u{F8FF}')
        .find(|c| !used.contains(c))
        .ok_or_else(|| {
            ChatError::Refused("they use every private-use character and control literals".into())
        })
}
