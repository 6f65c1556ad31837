//! The texts of requests and answers, in the formats of the routes whose answers are judged.

use std::collections::BTreeMap;

use serde_json::Value;

/// A route whose answers are texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Chat,
    Completions,
    Messages,
    Responses,
}

impl Format {
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/v1/messages" => Self::Messages,
            "/v1/responses" => Self::Responses,
            _ => return None,
        })
    }

    /// What was asked, as policies see it: the last message of the user, or the text that was completed. `None` if it cannot be
    /// told, or the answer is not the model's alone.
    pub(super) fn prompt(self, request: &[u8]) -> Option<String> {
        let body: Value = serde_json::from_slice(request).ok()?;
        match self {
            Self::Chat | Self::Messages => last_of_user(body["messages"].as_array()?),
            Self::Completions if body["echo"] == true => None,
            Self::Completions => match &body["prompt"] {
                Value::Array(several) if several.len() == 1 => several[0].as_str(),
                one => one.as_str(),
            }
            .map(str::to_owned),
            Self::Responses => match &body["input"] {
                Value::Array(items) => last_of_user(items),
                one => one.as_str().map(str::to_owned),
            },
        }
    }

    /// The final texts of a whole answer, one for each choice; none for one that only calls functions. `None` if it cannot be read.
    pub(super) fn texts(self, answer: &[u8], is_stream: bool) -> Option<Vec<String>> {
        let texts = match is_stream {
            true => self.streamed(answer)?,
            false => self.whole(&serde_json::from_slice(answer).ok()?)?,
        };
        Some(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    fn whole(self, body: &Value) -> Option<Vec<String>> {
        let choices = || body["choices"].as_array();
        Some(match self {
            Self::Chat => choices()?
                .iter()
                .map(|choice| joined(&choice["message"]["content"]))
                .collect(),
            Self::Completions => choices()?
                .iter()
                .map(|choice| joined(&choice["text"]))
                .collect(),
            Self::Messages => vec![joined(body.get("content")?)],
            Self::Responses => {
                let items = body["output"].as_array()?.iter();
                let messages = items.filter(|item| item["type"] == "message");
                vec![messages.map(|item| joined(&item["content"])).collect()]
            }
        })
    }

    fn streamed(self, answer: &[u8]) -> Option<Vec<String>> {
        let mut texts: BTreeMap<u64, String> = BTreeMap::new();
        for data in events(answer)? {
            let event: Value = serde_json::from_str(&data).ok()?;
            let mut add = |index: u64, text: &Value| {
                texts.entry(index).or_default().push_str(&joined(text));
            };
            match self {
                Self::Chat | Self::Completions => {
                    for choice in event["choices"].as_array().into_iter().flatten() {
                        let text = match self {
                            Self::Chat => &choice["delta"]["content"],
                            _ => &choice["text"],
                        };
                        add(choice["index"].as_u64().unwrap_or(0), text);
                    }
                }
                Self::Messages if event["delta"]["type"] == "text_delta" => {
                    add(0, &event["delta"]["text"]);
                }
                Self::Responses if event["type"] == "response.output_text.delta" => {
                    add(0, &event["delta"]);
                }
                Self::Messages | Self::Responses => {}
            }
        }
        Some(texts.into_values().collect())
    }
}

/// The data of server-sent events, but the mark of the end.
fn events(stream: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(stream).ok()?;
    let mut all = Vec::new();
    let mut data = String::new();
    for line in text.lines().chain([""]) {
        if let Some(more) = line.strip_prefix("data:") {
            if !data.is_empty() {
                data.push('\n');
            }
            data.push_str(more.strip_prefix(' ').unwrap_or(more));
        } else if line.is_empty() && !data.is_empty() {
            let done = std::mem::take(&mut data);
            if done != "[DONE]" {
                all.push(done);
            }
        }
    }
    Some(all)
}

fn last_of_user(messages: &[Value]) -> Option<String> {
    let last = messages
        .iter()
        .rev()
        .find(|message| message["role"] == "user");
    Some(
        last.map(|message| joined(&message["content"]))
            .unwrap_or_default(),
    )
}

/// A text, or the texts of parts.
fn joined(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stream(events: &[Value]) -> Vec<u8> {
        let mut text = String::new();
        for event in events {
            text += &format!("event: x\r\ndata: {event}\r\n\r\n");
        }
        (text + ": a comment\r\ndata: [DONE]\r\n\r\n").into_bytes()
    }

    #[test]
    fn a_stream_says_what_the_whole_answer_says() {
        let chat =
            |n: u64, text: Value| json!({"choices": [{"index": n, "delta": {"content": text}}]});
        let text = |n: u64, text: &str| json!({"choices": [{"index": n, "text": text}]});
        let block = |kind: &str, name: &str, text: &str| json!({"type": "content_block_delta", "index": 1, "delta": {"type": kind, name: text}});
        let output = |kind: &str, text: &str| json!({"type": kind, "delta": text});
        let cases: [(Format, Value, Vec<Value>, &[&str]); 4] = [
            (
                Format::Chat,
                json!({"choices": [{"message": {"role": "assistant", "content": "Take 5 mg."}},
                                   {"message": {"content": "Rest."}}]}),
                vec![
                    chat(0, json!("Take ")),
                    chat(1, json!("Rest.")),
                    chat(0, json!(null)),
                    chat(0, json!("5 mg.")),
                    json!({"choices": [], "usage": {}}),
                ],
                &["Take 5 mg.", "Rest."],
            ),
            (
                Format::Completions,
                json!({"choices": [{"text": "é\n x"}]}),
                vec![text(0, "é\n"), text(0, " x")],
                &["é\n x"],
            ),
            (
                Format::Messages,
                json!({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"},
                                   {"type": "text", "text": "b"}, {"type": "tool_use", "input": {}}]}),
                vec![
                    json!({"type": "message_start"}),
                    block("thinking_delta", "thinking", "hm"),
                    block("text_delta", "text", "a"),
                    block("input_json_delta", "partial_json", "{}"),
                    block("text_delta", "text", "b"),
                    json!({"type": "message_stop"}),
                ],
                &["ab"],
            ),
            (
                Format::Responses,
                json!({"output": [{"type": "reasoning", "content": [{"text": "hm"}]},
                                  {"type": "message", "content": [{"type": "output_text", "text": "ab"}]}]}),
                vec![
                    output("response.reasoning_text.delta", "hm"),
                    output("response.output_text.delta", "a"),
                    output("response.output_text.delta", "b"),
                    output("response.output_text.done", "ab"),
                ],
                &["ab"],
            ),
        ];
        for (format, whole, pieces, expected) in cases {
            let whole = format.texts(whole.to_string().as_bytes(), false).unwrap();
            let streamed = format.texts(&stream(&pieces), true).unwrap();
            let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
            assert_eq!(whole, expected);
            assert_eq!(streamed, expected);
        }
        let calls = json!({"choices": [{"message": {"content": null, "tool_calls": [{}]}}]});
        let none = Format::Chat.texts(calls.to_string().as_bytes(), false);
        assert_eq!(none, Some(vec![]), "a call of a function is no text");
    }

    #[test]
    fn what_is_no_answer_of_the_format_is_not_read() {
        for (bytes, is_stream) in [
            (&b"not json"[..], false),
            (b"{}", false),
            (b"{\"choices\": 5}", false),
            (b"data: {cut\n\n", true),
            (b"data: \xff\n\n", true),
        ] {
            assert_eq!(Format::Chat.texts(bytes, is_stream), None, "{bytes:?}");
        }
    }

    #[test]
    fn the_prompt_is_what_policies_see() {
        let prompt = |format: Format, body: Value| format.prompt(body.to_string().as_bytes());
        let some = |text: &str| Some(text.to_owned());
        let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                           {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
                           {"role": "tool", "content": "e"}]);
        assert_eq!(prompt(Format::Chat, json!({"messages": turns})), some("cd"));
        assert_eq!(
            prompt(Format::Messages, json!({"messages": turns})),
            some("cd")
        );
        assert_eq!(
            prompt(Format::Responses, json!({"input": turns})),
            some("cd")
        );
        assert_eq!(prompt(Format::Responses, json!({"input": "x"})), some("x"));
        assert_eq!(
            prompt(Format::Completions, json!({"prompt": "x"})),
            some("x")
        );
        assert_eq!(
            prompt(Format::Completions, json!({"prompt": ["x"]})),
            some("x")
        );
        assert_eq!(prompt(Format::Chat, json!({"messages": []})), some(""));
        for body in [
            json!({"prompt": ["x", "y"]}),
            json!({"prompt": [1, 2]}),
            json!({"prompt": "x", "echo": true}),
        ] {
            assert_eq!(prompt(Format::Completions, body), None);
        }
        assert_eq!(Format::Chat.prompt(b"{\"messages\": [{\"role\""), None);
    }
}
