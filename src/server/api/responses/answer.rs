//! A response's output items, and the events that build them. Whole and streamed responses use the
//! same code, so they cannot differ.

use super::super::answers::completions::Reason;
use super::super::answers::responses::{
    CallItem, Echoed, EventBody, Incomplete, Item as OutputItem, MessageItem, Response, Status,
    TextPart,
};
use super::super::wire::{ChoiceOutput, Envelope, Usage};

/// The fields that all snapshots of one response share.
pub(super) struct ResponseBase {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    echoed: Echoed,
}

impl ResponseBase {
    pub(super) fn new(envelope: &Envelope, echoed: Echoed) -> Self {
        Self {
            id: envelope.id.clone(),
            created: envelope.created,
            model: envelope.model.clone(),
            fingerprint: envelope.fingerprint.clone(),
            echoed,
        }
    }

    /// The response object; `usage` is `None` while it is in progress.
    pub(super) fn response(
        &self,
        status: Status,
        output: Vec<OutputItem>,
        usage: Option<Usage>,
    ) -> Response {
        let incomplete = Incomplete {
            reason: "max_output_tokens",
        };
        Response {
            id: self.id.clone(),
            object: "response",
            created_at: self.created,
            status,
            error: None,
            incomplete_details: (status == Status::Incomplete).then_some(incomplete),
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            output,
            usage: usage.map(Into::into),
            echoed: self.echoed.clone(),
        }
    }
}

/// The status with which a response ends.
pub(super) fn status(reason: Reason) -> Status {
    match reason {
        Reason::Stop | Reason::ToolCalls => Status::Completed,
        Reason::Length => Status::Incomplete,
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
    closed: Option<Status>,
}

/// An event without its sequence number: its type and its fields.
pub(super) type Event = (&'static str, EventBody);

impl Answer {
    /// Adds new text and calls; returns the events that report them.
    pub(super) fn take(&mut self, output: &ChoiceOutput) -> Vec<Event> {
        let mut events = Vec::new();
        if !output.text.is_empty() {
            self.text(&output.text, &mut events);
        }
        for call in &output.calls {
            if let Some((call_id, name)) = &call.opens {
                events.extend(self.close(Status::Completed));
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
            events.extend(self.close(Status::Completed));
            self.open(Item::empty_message(), events);
        }
        let output_index = self.items.len() - 1;
        if let Some(Item::Message { id, text }) = self.items.last_mut() {
            text.push_str(new);
            let body = EventBody::TextDelta {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                delta: new.into(),
                logprobs: [],
            };
            events.push(("response.output_text.delta", body));
        }
    }

    fn arguments(&mut self, new: &str, events: &mut Vec<Event>) {
        let output_index = self.items.len().saturating_sub(1);
        if let Some(Item::Call { id, arguments, .. }) = self.items.last_mut()
            && !new.is_empty()
        {
            arguments.push_str(new);
            let body = EventBody::ArgumentsDelta {
                item_id: id.clone(),
                output_index,
                delta: new.into(),
            };
            events.push(("response.function_call_arguments.delta", body));
        }
    }

    fn open(&mut self, item: Item, events: &mut Vec<Event>) {
        let output_index = self.items.len();
        let mut added = item.to_output(Status::InProgress);
        if let OutputItem::Message(message) = &mut added {
            message.content.clear();
        }
        let body = EventBody::Item {
            output_index,
            item: added,
        };
        events.push(("response.output_item.added", body));
        if let Item::Message { id, .. } = &item {
            let body = EventBody::Part {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                part: TextPart::new(""),
            };
            events.push(("response.content_part.added", body));
        }
        self.items.push(item);
        self.closed = None;
    }

    /// Closes the last item; a response has at least one, possibly empty.
    pub(super) fn end(&mut self, status: Status) -> Vec<Event> {
        let mut events = Vec::new();
        if self.items.is_empty() {
            self.open(Item::empty_message(), &mut events);
        }
        events.extend(self.close(status));
        events
    }

    fn close(&mut self, status: Status) -> Vec<Event> {
        let Some(item) = self.items.last().filter(|_| self.closed.is_none()) else {
            return Vec::new();
        };
        let output_index = self.items.len() - 1;
        let mut events = item.done(output_index);
        let done = EventBody::Item {
            output_index,
            item: item.to_output(status),
        };
        events.push(("response.output_item.done", done));
        self.closed = Some(status);
        events
    }

    /// All items, with their current status.
    pub(super) fn output(&self) -> Vec<OutputItem> {
        let last = self.items.len().saturating_sub(1);
        let output = |(i, item): (usize, &Item)| {
            let open = self.closed.unwrap_or(Status::InProgress);
            item.to_output(if i == last { open } else { Status::Completed })
        };
        self.items.iter().enumerate().map(output).collect()
    }
}

impl Item {
    fn empty_message() -> Self {
        Item::Message {
            id: format!("msg_{:024x}", rand::random::<u128>() >> 32),
            text: String::new(),
        }
    }

    /// The events that report the item's content as complete.
    fn done(&self, output_index: usize) -> Vec<Event> {
        match self {
            Item::Message { id, text } => {
                let done = EventBody::TextDone {
                    item_id: id.clone(),
                    output_index,
                    content_index: 0,
                    text: text.clone(),
                    logprobs: [],
                };
                let part = EventBody::Part {
                    item_id: id.clone(),
                    output_index,
                    content_index: 0,
                    part: TextPart::new(text),
                };
                vec![
                    ("response.output_text.done", done),
                    ("response.content_part.done", part),
                ]
            }
            Item::Call {
                id,
                name,
                arguments,
                ..
            } => {
                let done = EventBody::ArgumentsDone {
                    item_id: id.clone(),
                    output_index,
                    name: name.clone(),
                    arguments: arguments.clone(),
                };
                vec![("response.function_call_arguments.done", done)]
            }
        }
    }

    fn to_output(&self, status: Status) -> OutputItem {
        match self {
            Item::Message { id, text } => OutputItem::Message(MessageItem {
                id: id.clone(),
                kind: "message",
                status,
                role: "assistant",
                content: vec![TextPart::new(text)],
            }),
            Item::Call {
                id,
                call_id,
                name,
                arguments,
            } => OutputItem::Call(CallItem {
                id: id.clone(),
                kind: "function_call",
                status,
                call_id: call_id.clone(),
                name: name.clone(),
                arguments: arguments.clone(),
            }),
        }
    }
}
