//! Collects a request's prompts and answers so that they can be judged.

use std::time::Instant;

use serde_json::Value;

use crate::telemetry::RequestFinished;
use crate::telemetry::compliance::Answer;
use realign_core::clock::unix_seconds;
use realign_core::thoughts::with_thoughts;

/// The prompts of a request and its choices so far.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    prompts: Vec<String>,
    choices: Vec<Choice>,
}

#[derive(Clone, Debug, Default)]
struct Choice {
    thoughts: String,
    text: String,
    ended: bool,
}

impl Choice {
    /// What policies judge; whether they see the thoughts, each says for itself.
    fn response(self) -> String {
        if self.thoughts.is_empty() {
            self.text
        } else {
            with_thoughts(&self.thoughts, &self.text)
        }
    }
}

impl Exchanges {
    /// Extracts the prompts from a request's body, for any route. To policies, the prompt is the
    /// last user message or the text to complete; prompts given as token ids count as empty.
    pub(crate) fn set_prompts(&mut self, body: &Value) {
        self.prompts = match (&body["messages"], &body["prompt"], &body["input"]) {
            (Value::Array(messages), _, _) => vec![last_user(messages)],
            (_, Value::String(text), _) | (_, _, Value::String(text)) => vec![text.clone()],
            (_, Value::Array(prompts), _) if prompts.iter().any(|p| !p.is_number()) => {
                let text = |p: &Value| p.as_str().unwrap_or_default().to_string();
                prompts.iter().map(text).collect()
            }
            (_, _, Value::Array(items)) => vec![last_user(items)],
            _ => vec![String::new()],
        };
    }

    /// Appends text to choice `index`; `ended` marks its end.
    pub(crate) fn add_text(&mut self, index: usize, text: &str, ended: bool) {
        if self.choices.len() <= index {
            self.choices.resize(index + 1, Choice::default());
        }
        self.choices[index].text.push_str(text);
        self.choices[index].ended |= ended;
    }

    /// Appends to what a model thinks before choice `index`.
    pub(crate) fn add_thoughts(&mut self, index: usize, thoughts: &str) {
        self.add_text(index, "", false);
        self.choices[index].thoughts.push_str(thoughts);
    }

    /// The answers that were completed; those that a client aborted are left out.
    pub(crate) fn into_answers(self, request: &RequestFinished) -> Vec<Answer> {
        let per_prompt = (self.choices.len() / self.prompts.len().max(1)).max(1);
        let prompts = self.prompts;
        let choices = self.choices.into_iter().enumerate();
        let answer = |(index, choice): (usize, Choice)| Answer {
            request_id: request.request_id.clone(),
            route: request.route,
            caller: request.caller.clone(),
            generation: request.generation.clone(),
            prompt: prompts.get(index / per_prompt).cloned().unwrap_or_default(),
            response: choice.response(),
            sent_at: Instant::now(),
            unix_seconds: unix_seconds(),
        };
        choices
            .filter(|(_, choice)| choice.ended)
            .map(answer)
            .collect()
    }
}

fn last_user(messages: &[Value]) -> String {
    let user = messages.iter().rev().find(|m| m["role"] == "user");
    match user.map(|message| &message["content"]) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .collect::<Vec<_>>()
            .join(""),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prompts(body: Value) -> Vec<String> {
        let mut exchanges = Exchanges::default();
        exchanges.set_prompts(&body);
        exchanges.prompts
    }

    #[test]
    fn thoughts_are_in_front_of_what_is_judged() {
        let mut exchanges = Exchanges::default();
        exchanges.add_thoughts(0, "H");
        exchanges.add_text(1, "Plain.", true);
        exchanges.add_thoughts(0, "m.");
        exchanges.add_text(0, "Yes.", true);
        let responses: Vec<String> = exchanges
            .choices
            .into_iter()
            .map(Choice::response)
            .collect();
        assert_eq!(responses, ["<think>\nHm.\n</think>\n\nYes.", "Plain."]);
    }

    #[test]
    fn prompts_of_every_route() {
        let turns = json!([
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "text", "text": "la"}, {"type": "text", "text": "st"}]},
            {"role": "tool", "content": "42"},
        ]);
        assert_eq!(prompts(json!({"messages": turns})), ["last"]);
        assert_eq!(prompts(json!({"input": turns})), ["last"]);
        assert_eq!(prompts(json!({"input": "a"})), ["a"]);
        assert_eq!(prompts(json!({"prompt": "a"})), ["a"]);
        assert_eq!(prompts(json!({"prompt": ["a", "b"]})), ["a", "b"]);
        assert_eq!(prompts(json!({"prompt": [1, 2]})), [""]);
        assert_eq!(prompts(json!({"prompt": [[1], [2]]})), ["", ""]);
        assert_eq!(prompts(json!(5)), [""]);
    }

    #[test]
    fn choices_belong_to_their_prompts_and_broken_ones_to_nobody() {
        let mut exchanges = Exchanges::default();
        exchanges.set_prompts(&json!({"prompt": ["a", "b"]}));
        for (index, ended) in [(3, true), (0, true), (1, false), (2, true)] {
            exchanges.add_text(index, "x", false);
            exchanges.add_text(index, "y", ended);
        }
        let answers = exchanges.into_answers(&RequestFinished::default());
        let pairs: Vec<_> = answers
            .iter()
            .map(|a| (a.prompt.as_str(), a.response.as_str()))
            .collect();
        assert_eq!(pairs, [("a", "xy"), ("b", "xy"), ("b", "xy")]);
    }
}
