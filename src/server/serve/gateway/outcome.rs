//! What is seen of an answer on its way: whether it came to its end, and when its first byte came.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use realign_fleet::Seen;
use tokio::time::Instant;

use super::desk::Lease;
use crate::telemetry::event::FleetAnswer;
use crate::telemetry::{Event, Telemetry};

/// Bytes at the end of a piece that are looked at for the mark of an answer's end.
const TAIL: usize = 256;
/// What streams end with. Clients may close the connection behind it.
const MARKS: [&[u8]; 2] = [b"[DONE]", b"message_stop"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed,
    /// The client left before the end.
    Left,
}

/// A leased request. When it is dropped, what was seen of it is told.
pub(super) struct Watch {
    pub(super) lease: Lease,
    telemetry: Arc<Telemetry>,
    began: Instant,
    first_byte: Option<Instant>,
    /// Bytes of the answer that are to come, where the target says it.
    left: Option<u64>,
    /// `None` as long as the target has not answered.
    outcome: Option<Outcome>,
    is_error: bool,
}

impl Watch {
    pub(super) fn new(lease: Lease, telemetry: Arc<Telemetry>) -> Self {
        Self {
            lease,
            telemetry,
            began: Instant::now(),
            first_byte: None,
            left: None,
            outcome: None,
            is_error: false,
        }
    }

    /// The target's answer begins.
    pub(super) fn answers(&mut self, status: StatusCode, headers: &HeaderMap) {
        let length = headers.get(header::CONTENT_LENGTH);
        self.left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        self.is_error = !status.is_success();
        self.outcome = Some(match status.is_server_error() {
            true => Outcome::Failed,
            false if self.left == Some(0) => Outcome::Ok,
            false => Outcome::Left,
        });
    }

    /// A piece of it has come.
    pub(super) fn passes(&mut self, bytes: &[u8]) {
        if self.first_byte.is_none() && !self.is_error {
            self.first_byte = Some(Instant::now());
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.left = self.left.map(|left| left.saturating_sub(length));
        let tail = &bytes[bytes.len().saturating_sub(TAIL)..];
        let is_last = |mark: &&[u8]| tail.windows(mark.len()).any(|part| part == *mark);
        if self.left == Some(0) || MARKS.iter().any(is_last) {
            self.ended();
        }
    }

    /// It came to its end.
    pub(super) fn ended(&mut self) {
        if self.outcome == Some(Outcome::Left) {
            self.outcome = Some(Outcome::Ok);
        }
    }

    /// Whether it has come to its end.
    pub(super) fn has_ended(&self) -> bool {
        self.outcome == Some(Outcome::Ok)
    }

    /// The target broke it off, or took too long.
    pub(super) fn broke(&mut self) {
        self.outcome = Some(Outcome::Failed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(outcome) = self.outcome else { return };
        let first_byte = self.first_byte.map(|at| at.duration_since(self.began));
        let (failed, name) = match outcome {
            Outcome::Ok => (Some(false), "ok"),
            Outcome::Failed => (Some(true), "failed"),
            Outcome::Left => (None, "left"),
        };
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.lease.observe(Seen::Answer {
            failed,
            first_byte_ms: first_byte.map(ms),
        });
        let metrics = self.telemetry.metrics();
        metrics.record(&Event::FleetAnswered(FleetAnswer {
            generation: self.lease.generation.clone(),
            outcome: name,
            first_byte,
        }));
    }
}
