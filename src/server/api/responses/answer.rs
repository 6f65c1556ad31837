//! A response's output items, and the events that build them. Whole and streamed responses use the
//! same code, so they cannot differ.

use std::sync::Arc;

use super::super::answers::completions::{Reason, ScoredToken};
use super::super::answers::responses::{
    CallItem, Echoed, EventBody, Incomplete, Item as OutputItem, MessageItem, ReasoningItem,
    ReasoningPart, Response, Status, TextPart,
};
use super::super::chat::Call;
use super::super::wire::{ChoiceOutput, Envelope, Usage};
use super::store::ResponseStore;
use realign_model::{ChatMessage, ChatRole, Tokenizer};

/// The fields that all snapshots of one response share.
pub(super) struct ResponseBase {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    echoed: Echoed,
    kept: Option<Kept>,
    /// What the check of the finished answer found.
    pub(super) schema_notice: Option<String>,
}

/// Where a response is kept when it ends.
pub(super) struct Kept {
    pub(super) store: Arc<ResponseStore>,
    pub(super) caller: Arc<str>,
    /// The conversation before it.
    pub(super) turns: Vec<ChatMessage>,
}

impl ResponseBase {
    /// `kept` says where the response is kept, if it is.
    pub(super) fn new(envelope: &Envelope, echoed: Echoed, kept: Option<Kept>) -> Self {
        Self {
            id: envelope.id.clone(),
            created: envelope.created,
            model: envelope.model.clone(),
            fingerprint: envelope.fingerprint.clone(),
            echoed,
            kept,
            schema_notice: None,
        }
    }

    /// Keeps the response, which has ended, if it is to be kept.
    pub(super) fn keep(&mut self, answer: &Answer) {
        if let Some(mut kept) = self.kept.take() {
            kept.turns.push(answer.message());
            kept.store.keep(self.id.clone(), kept.caller, kept.turns);
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
            schema_notice: self.schema_notice.clone(),
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
        scored: Vec<ScoredToken>,
    },
    Call {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
    },
    Thoughts {
        id: String,
        text: String,
    },
}

/// The output so far. Only the last item is open.
#[derive(Debug, Default)]
pub(super) struct Answer {
    items: Vec<Item>,
    /// The last item's final status, once it is closed.
    closed: Option<Status>,
    /// Tokens whose text is held back.
    waiting: Vec<ScoredToken>,
}

/// An event without its sequence number: its type and its fields.
pub(super) type Event = (&'static str, EventBody);

impl Answer {
    /// Adds new text and calls; returns the events that report them.
    pub(super) fn take(&mut self, output: &ChoiceOutput, tokenizer: &Tokenizer) -> Vec<Event> {
        let mut events = Vec::new();
        self.waiting.extend(output.scored_tokens(tokenizer));
        if !output.thoughts.is_empty() {
            // Tokens of thoughts belong to no text.
            self.waiting.clear();
            self.think(&output.thoughts, &mut events);
        }
        if !output.text.is_empty() {
            self.text(&output.text, &mut events);
        }
        for call in &output.calls {
            // Tokens of calls belong to no text.
            self.waiting.clear();
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

    fn think(&mut self, new: &str, events: &mut Vec<Event>) {
        if !matches!(self.items.last(), Some(Item::Thoughts { .. })) {
            events.extend(self.close(Status::Completed));
            self.open(Item::no_thoughts(), events);
        }
        let output_index = self.items.len() - 1;
        if let Some(Item::Thoughts { id, text }) = self.items.last_mut() {
            text.push_str(new);
            let body = EventBody::ThoughtsDelta {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                delta: new.into(),
            };
            events.push(("response.reasoning_text.delta", body));
        }
    }

    fn text(&mut self, new: &str, events: &mut Vec<Event>) {
        if !matches!(self.items.last(), Some(Item::Message { .. })) {
            events.extend(self.close(Status::Completed));
            self.open(Item::empty_message(), events);
        }
        let output_index = self.items.len() - 1;
        let tokens = std::mem::take(&mut self.waiting);
        if let Some(Item::Message { id, text, scored }) = self.items.last_mut() {
            text.push_str(new);
            scored.extend(tokens.iter().cloned());
            let body = EventBody::TextDelta {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                delta: new.into(),
                logprobs: tokens,
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
        match &mut added {
            OutputItem::Message(message) => message.content.clear(),
            OutputItem::Reasoning(thoughts) => thoughts.content.clear(),
            OutputItem::Call(_) => {}
        }
        let body = EventBody::Item {
            output_index,
            item: added,
        };
        events.push(("response.output_item.added", body));
        let (content_index, part) = (0, "response.content_part.added");
        match &item {
            Item::Message { id, .. } => {
                let body = EventBody::Part {
                    item_id: id.clone(),
                    output_index,
                    content_index,
                    part: TextPart::new("", &[]),
                };
                events.push((part, body));
            }
            Item::Thoughts { id, .. } => {
                let body = EventBody::ThoughtsPart {
                    item_id: id.clone(),
                    output_index,
                    content_index,
                    part: ReasoningPart::new(""),
                };
                events.push((part, body));
            }
            Item::Call { .. } => {}
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

    /// As a message of the conversation.
    fn message(&self) -> ChatMessage {
        let mut message = ChatMessage::new(ChatRole::Assistant, "");
        for item in &self.items {
            match item {
                Item::Message { text, .. } => message.content.push_str(text),
                Item::Thoughts { text, .. } => message.reasoning_content = Some(text.clone()),
                Item::Call {
                    call_id,
                    name,
                    arguments,
                    ..
                } => {
                    let call = Call::made(name, arguments);
                    let call = call.for_template(Some(call_id.as_str().into()));
                    message.tool_calls.get_or_insert_default().push(call);
                }
            }
        }
        message
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
            scored: Vec::new(),
        }
    }

    fn no_thoughts() -> Self {
        Item::Thoughts {
            id: format!("rs_{:024x}", rand::random::<u128>() >> 32),
            text: String::new(),
        }
    }

    /// The events that report the item's content as complete.
    fn done(&self, output_index: usize) -> Vec<Event> {
        match self {
            Item::Message { id, text, scored } => {
                let done = EventBody::TextDone {
                    item_id: id.clone(),
                    output_index,
                    content_index: 0,
                    text: text.clone(),
                    logprobs: scored.clone(),
                };
                let part = EventBody::Part {
                    item_id: id.clone(),
                    output_index,
                    content_index: 0,
                    part: TextPart::new(text, scored),
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
            Item::Thoughts { id, text } => {
                let done = EventBody::ThoughtsDone {
                    item_id: id.clone(),
                    output_index,
                    content_index: 0,
                    text: text.clone(),
                };
                let part = EventBody::ThoughtsPart {
                    item_id: id.clone(),
                    output_index,
                    content_index: 0,
                    part: ReasoningPart::new(text),
                };
                vec![
                    ("response.reasoning_text.done", done),
                    ("response.content_part.done", part),
                ]
            }
        }
    }

    fn to_output(&self, status: Status) -> OutputItem {
        match self {
            Item::Message { id, text, scored } => OutputItem::Message(MessageItem {
                id: id.clone(),
                kind: "message",
                status,
                role: "assistant",
                content: vec![TextPart::new(text, scored)],
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
            Item::Thoughts { id, text } => OutputItem::Reasoning(ReasoningItem {
                id: id.clone(),
                kind: "reasoning",
                status,
                summary: [],
                content: vec![ReasoningPart::new(text)],
            }),
        }
    }
}
