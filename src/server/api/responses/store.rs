//! Responses that are kept in memory, so that `previous_response_id` can continue them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::config::ResponsesConfig;
use realign_model::ChatMessage;

/// Approximate memory of a message or of an entry besides its texts, bytes.
const OVERHEAD: usize = 160;

/// The newest responses, within bounds. Each belongs to the key that asked for it.
#[derive(Debug)]
pub(crate) struct ResponseStore {
    bounds: ResponsesConfig,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<String, Entry>,
    /// Their ids, the oldest first.
    order: VecDeque<String>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    caller: Arc<str>,
    turns: Arc<[ChatMessage]>,
    bytes: usize,
}

impl ResponseStore {
    /// An empty store.
    pub(crate) fn new(bounds: ResponsesConfig) -> Self {
        Self {
            bounds,
            kept: Mutex::default(),
        }
    }

    /// The conversation up to a response and with it; `None` if it is not kept for this caller.
    pub(super) fn turns(&self, id: &str, caller: &str) -> Option<Arc<[ChatMessage]>> {
        let kept = self.kept();
        let entry = kept.entries.get(id)?;
        (&*entry.caller == caller).then(|| Arc::clone(&entry.turns))
    }

    /// Keeps a conversation that ends with a response; the oldest ones make room for it. One that is
    /// larger than all may be is not kept.
    pub(super) fn keep(&self, id: String, caller: Arc<str>, turns: Vec<ChatMessage>) {
        let bytes = OVERHEAD + turns.iter().map(size).sum::<usize>();
        if bytes > self.bounds.max_bytes {
            tracing::info!(
                id,
                bytes,
                "response not kept: it is larger than responses.max_mb"
            );
            return;
        }
        let mut kept = self.kept();
        while kept.bytes + bytes > self.bounds.max_bytes
            || kept.order.len() >= self.bounds.max_entries
        {
            let Some(oldest) = kept.order.pop_front() else {
                break;
            };
            let freed = kept.entries.remove(&oldest).map_or(0, |entry| entry.bytes);
            kept.bytes = kept.bytes.saturating_sub(freed);
        }
        kept.bytes += bytes;
        kept.order.push_back(id.clone());
        let turns = turns.into();
        kept.entries.insert(
            id,
            Entry {
                caller,
                turns,
                bytes,
            },
        );
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Every change leaves it consistent enough: at worst an id without an entry.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Approximate memory of a message, bytes.
fn size(message: &ChatMessage) -> usize {
    let calls = message.tool_calls.iter().flatten();
    let calls: usize = calls.map(|call: &Value| call.to_string().len()).sum();
    let others = [&message.tool_call_id, &message.reasoning_content];
    let others: usize = others.into_iter().flatten().map(String::len).sum();
    OVERHEAD + message.content.len() + calls + others
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(max_entries: usize, max_bytes: usize) -> ResponseStore {
        ResponseStore::new(ResponsesConfig {
            max_entries,
            max_bytes,
        })
    }

    fn turn(bytes: usize) -> Vec<ChatMessage> {
        vec![ChatMessage::user("x".repeat(bytes))]
    }

    #[test]
    fn responses_belong_to_their_caller_and_the_oldest_go() {
        let kept = store(2, 1 << 20);
        for id in ["a", "b", "c"] {
            kept.keep(id.into(), "ann".into(), turn(1));
        }
        assert!(kept.turns("a", "ann").is_none());
        assert_eq!(kept.turns("c", "ann").unwrap().len(), 1);
        assert!(kept.turns("c", "bob").is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let kept = store(1000, 10_000);
        for id in 0..100 {
            kept.keep(id.to_string(), "ann".into(), turn(2_000));
            assert!(kept.kept().bytes <= 10_000);
        }
        assert!(kept.turns("99", "ann").is_some());
        kept.keep("large".into(), "ann".into(), turn(20_000));
        assert!(kept.turns("large", "ann").is_none());
        assert!(
            kept.turns("99", "ann").is_some(),
            "nothing made room for it"
        );
    }
}
