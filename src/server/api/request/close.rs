//! Which field of a route a client may mean by one that the route does not know.

use super::super::params::others;
use crate::config::nearest;

/// Fields of other routes and servers: `(theirs, ours, what to write)`. They hold where `ours` is known.
const ELSEWHERE: [(&str, &str, &str); 18] = [
    ("response_format", "text", "text.format"),
    ("reasoning_effort", "reasoning", "reasoning.effort"),
    ("messages", "input", "input"),
    ("input", "messages", "messages"),
    ("prompt", "messages", "messages"),
    (
        "max_output_tokens",
        "max_completion_tokens",
        "max_completion_tokens",
    ),
    (
        "max_completion_tokens",
        "max_output_tokens",
        "max_output_tokens",
    ),
    ("num_predict", "max_tokens", "max_tokens"),
    ("reasoning", "reasoning_effort", "reasoning_effort"),
    ("thinking", "enable_thinking", "enable_thinking"),
    ("think", "enable_thinking", "enable_thinking"),
    ("enable_thinking", "thinking", "thinking"),
    ("enable_thinking", "think", "think"),
    ("system", "instructions", "instructions"),
    ("instructions", "system", "system"),
    ("stop_sequences", "stop", "stop"),
    ("stop", "stop_sequences", "stop_sequences"),
    ("text", "prompt", "prompt"),
];

/// The field that has another name here, or almost this one. A field that is refused is not worth a hint.
pub(super) fn to(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let same = ELSEWHERE
        .iter()
        .find(|(theirs, ours, _)| *theirs == name && known.contains(ours));
    let done: Vec<&'static str> = known
        .iter()
        .copied()
        .filter(|field| !others::is_one(field))
        .collect();
    same.map(|(_, _, ours)| *ours)
        .or_else(|| nearest(name, &done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_names_what_is_done() {
        let known = [
            "text",
            "input",
            "temperature",
            "response_fields",
            "keep_alive",
        ];
        assert_eq!(to("temprature", &known), Some("temperature"));
        assert_eq!(to("response_format", &known), Some("text.format"));
        assert_eq!(to("messages", &known), Some("input"));
        // Refused, and without effect.
        assert_eq!(to("response_field", &known), None);
        assert_eq!(to("keep_aliv", &known), None);
        assert_eq!(to("response_format", &["prompt"]), None);
    }
}
