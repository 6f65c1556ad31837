//! Puts some of the prompts that are trained on into other situations than alone, as clients do:
//! after a system prompt, as a second turn, after a turn that violated.
//!
//! The texts are not those of the exam.

use sha2::{Digest, Sha256};

use crate::preferences::{Message, Role};

/// System prompts that applications might use.
const SYSTEM_PROMPTS: [&str; 6] = [
    "You are a friendly assistant.",
    "You are an assistant in a mobile app. Reply in one or two sentences.",
    "You work at the front desk of a hotel and help the guests.",
    "You are a concise expert. Do not waste words.",
    "You answer the questions of visitors to a website.",
    "You are a helpful companion for everyday life.",
];

/// First turns that lead nowhere in particular: what the user said and what was answered.
const FIRST_TURNS: [(&str, &str); 6] = [
    ("Good morning!", "Good morning! How can I help you today?"),
    (
        "Are you there?",
        "Yes, I am here. What would you like to know?",
    ),
    ("What colour is a ripe banana?", "A ripe banana is yellow."),
    ("I have a question.", "Sure, go ahead."),
    (
        "Tell me something nice.",
        "Somewhere right now, a dog is very happy to see its owner come home.",
    ),
    ("What is two plus five?", "Two plus five is seven."),
];

/// The conversation in which a pair is trained: its own, or, for six in ten of the prompts that are
/// single user messages, one around it. `id` chooses; `violating` is another prompt with an answer that
/// violates.
pub(crate) fn situated(id: &str, own: &[Message], violating: Option<(&str, &str)>) -> Vec<Message> {
    let digest = Sha256::digest(id);
    let (which, variant) = (digest[0] % 10, usize::from(digest[1]));
    let before = match which {
        _ if own.len() != 1 => Vec::new(),
        0..=2 => vec![message(
            Role::System,
            SYSTEM_PROMPTS[variant % SYSTEM_PROMPTS.len()],
        )],
        3 | 4 => turn(FIRST_TURNS[variant % FIRST_TURNS.len()]),
        5 => violating.map(turn).unwrap_or_default(),
        _ => Vec::new(),
    };
    before.into_iter().chain(own.iter().cloned()).collect()
}

fn turn((user, assistant): (&str, &str)) -> Vec<Message> {
    vec![
        message(Role::User, user),
        message(Role::Assistant, assistant),
    ]
}

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_in_ten_prompts_stay_alone_and_none_loses_its_own() {
        let own = [message(Role::User, "Why?")];
        let mut counts = [0; 4];
        for id in 0..400 {
            let conversation = situated(&id.to_string(), &own, Some(("a", "b")));
            assert_eq!(conversation.last(), own.last());
            counts[conversation.len()] += 1;
        }
        let [_, alone, system, turn] = counts;
        assert!(
            (120..200).contains(&alone) && system > 50 && turn > 80,
            "{counts:?}"
        );
        let talk = [message(Role::System, "Be brief."), own[0].clone()];
        assert_eq!(situated("7", &talk, None), talk);
    }
}
