//! The events of a streamed chat completion, read back from its body.

use axum::body::Body;
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::Value;

/// The JSON of each event, in order; the last one of a stream that broke off is missing.
pub(super) fn of(body: Body) -> BoxStream<'static, Value> {
    let parts = body.into_data_stream();
    let state = (parts, Vec::new());
    stream::unfold(state, |(mut parts, mut held): (_, Vec<u8>)| async move {
        loop {
            if let Some(end) = held.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = held.drain(..end + 2).collect();
                return Some((data(&event), (parts, held)));
            }
            match parts.next().await {
                Some(Ok(more)) => held.extend_from_slice(&more),
                Some(Err(_)) | None => return None,
            }
        }
    })
    .filter_map(std::future::ready)
    .boxed()
}

/// The JSON of an event; `None` of a comment and of the last event, which is no JSON.
fn data(event: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(event).ok()?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let data: String = lines.collect();
    serde_json::from_str(data.trim()).ok()
}
