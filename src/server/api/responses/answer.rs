//! A response's output items, and the events that build them. The whole answer and the stream come
//! from the same code, so they cannot differ.

use serde_json::{Value, json};

use super::super::wire::{Envelope, Piece, Reason, Usage};

/// What every appearance of one response has in common.
pub(super) struct Frame {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    echoed: Value,
}

impl Frame {
    pub(super) fn new(envelope: &Envelope, echoed: Value) -> Self {
        Self {
            id: envelope.id.clone(),
            created: envelope.created,
            model: envelope.model.clone(),
            fingerprint: envelope.fingerprint.clone(),
            echoed,
        }
    }

    /// The response object. Without `usage` it is one that runs.
    pub(super) fn response(&self, status: &str, output: Vec<Value>, usage: Option<Usage>) -> Value {
        let incomplete = match status {
            "incomplete" => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": incomplete,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "output": output,
            "usage": usage.map(Usage::of_response),
        });
        if let (Some(all), Some(echoed)) = (response.as_object_mut(), self.echoed.as_object()) {
            all.extend(echoed.clone());
        }
        response
    }
}

/// The status with which a response ends.
pub(super) fn status(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop | Reason::ToolCalls => "completed",
        Reason::Length => "incomplete",
    }
}

#[derive(Debug)]
enum Item {
    Message {
        id: String,
        text: String,
    },
    Call {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
    },
}

/// The output so far. Only the last item is open.
#[derive(Debug, Default)]
pub(super) struct Answer {
    items: Vec<Item>,
    /// The last item's final status, once it is closed.
    closed: Option<&'static str>,
}

/// An event without its number: its type and its fields.
pub(super) type Event = (&'static str, Value);

impl Answer {
    /// Adds new text and calls; gives the events that say so.
    pub(super) fn take(&mut self, piece: &Piece) -> Vec<Event> {
        let mut events = Vec::new();
        if !piece.text.is_empty() {
            self.text(&piece.text, &mut events);
        }
        for call in &piece.calls {
            if let Some((call_id, name)) = &call.opens {
                events.extend(self.close("completed"));
                self.open(
                    Item::Call {
                        id: format!("fc_{}", call_id.trim_start_matches("call_")),
                        call_id: call_id.clone(),
                        name: name.clone(),
                        arguments: String::new(),
                    },
                    &mut events,
                );
            }
            self.arguments(&call.arguments, &mut events);
        }
        events
    }

    fn text(&mut self, new: &str, events: &mut Vec<Event>) {
        if !matches!(self.items.last(), Some(Item::Message { .. })) {
            events.extend(self.close("completed"));
            let id = format!("msg_{:024x}", rand::random::<u128>() >> 32);
            let text = String::new();
            self.open(Item::Message { id, text }, events);
        }
        let index = self.items.len() - 1;
        if let Some(Item::Message { id, text }) = self.items.last_mut() {
            text.push_str(new);
            events.push((
                "response.output_text.delta",
                json!({
                    "item_id": id, "output_index": index, "content_index": 0, "delta": new,
                    "logprobs": [],
                }),
            ));
        }
    }

    fn arguments(&mut self, new: &str, events: &mut Vec<Event>) {
        let index = self.items.len().saturating_sub(1);
        if let Some(Item::Call { id, arguments, .. }) = self.items.last_mut()
            && !new.is_empty()
        {
            arguments.push_str(new);
            events.push((
                "response.function_call_arguments.delta",
                json!({
                    "item_id": id, "output_index": index, "delta": new,
                }),
            ));
        }
    }

    fn open(&mut self, item: Item, events: &mut Vec<Event>) {
        let index = self.items.len();
        let mut shown = item.json("in_progress");
        if let Item::Message { id, .. } = &item {
            shown["content"] = json!([]);
            let part = json!({
                "item_id": id, "output_index": index, "content_index": 0, "part": part(""),
            });
            events.push(added(index, shown));
            events.push(("response.content_part.added", part));
        } else {
            events.push(added(index, shown));
        }
        self.items.push(item);
        self.closed = None;
    }

    /// Ends the open item; a response has at least one, be it empty.
    pub(super) fn end(&mut self, status: &'static str) -> Vec<Event> {
        let mut events = Vec::new();
        if self.items.is_empty() {
            let id = format!("msg_{:024x}", rand::random::<u128>() >> 32);
            let text = String::new();
            self.open(Item::Message { id, text }, &mut events);
        }
        events.extend(self.close(status));
        events
    }

    fn close(&mut self, status: &'static str) -> Vec<Event> {
        let Some(item) = self.items.last().filter(|_| self.closed.is_none()) else {
            return Vec::new();
        };
        let index = self.items.len() - 1;
        let mut events = Vec::new();
        match item {
            Item::Message { id, text } => {
                events.push((
                    "response.output_text.done",
                    json!({
                        "item_id": id, "output_index": index, "content_index": 0, "text": text,
                        "logprobs": [],
                    }),
                ));
                events.push(("response.content_part.done", json!({
                    "item_id": id, "output_index": index, "content_index": 0, "part": part(text),
                })));
            }
            Item::Call {
                id,
                name,
                arguments,
                ..
            } => events.push((
                "response.function_call_arguments.done",
                json!({
                    "item_id": id, "output_index": index, "name": name, "arguments": arguments,
                }),
            )),
        }
        events.push((
            "response.output_item.done",
            json!({
                "output_index": index, "item": item.json(status),
            }),
        ));
        self.closed = Some(status);
        events
    }

    /// All items.
    pub(super) fn output(&self) -> Vec<Value> {
        let last = self.items.len().saturating_sub(1);
        let status = |i: usize| match i == last {
            true => self.closed.unwrap_or("in_progress"),
            false => "completed",
        };
        let items = self.items.iter().enumerate();
        items.map(|(i, item)| item.json(status(i))).collect()
    }
}

impl Item {
    fn json(&self, status: &str) -> Value {
        match self {
            Item::Message { id, text } => json!({
                "id": id,
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [part(text)],
            }),
            Item::Call {
                id,
                call_id,
                name,
                arguments,
            } => json!({
                "id": id,
                "type": "function_call",
                "status": status,
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
            }),
        }
    }
}

fn added(index: usize, item: Value) -> Event {
    (
        "response.output_item.added",
        json!({"output_index": index, "item": item}),
    )
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}
