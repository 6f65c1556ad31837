//! Requests and judgements of the last two hours, in time slots, for the operators' page.
//! Prometheus metrics serve the same purpose in more detail; this needs no Prometheus.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use serde::Serialize;

use super::event::{Event, RequestFinished};

/// Length of a time slot, in seconds.
pub(crate) const SLOT_SECONDS: u64 = 15;
/// Number of slots kept: two hours.
const SLOTS: usize = 480;
/// Maximum number of samples per slot for its quantiles.
const SAMPLES: usize = 512;

/// Requests and judgements within one time slot.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Slot {
    /// When it began, in Unix seconds.
    pub(crate) at: u64,
    /// Requests that ended.
    pub(crate) requests: u32,
    /// Those among them with a status from 500.
    pub(crate) errors: u32,
    /// Those among them with status 429.
    pub(crate) refused: u32,
    /// Tokens generated.
    pub(crate) tokens: u64,
    /// Median of the requests' durations, in seconds.
    pub(crate) p50: Option<f64>,
    /// Their 95th percentile.
    pub(crate) p95: Option<f64>,
    /// Median of the times to the first token.
    pub(crate) first_token_p50: Option<f64>,
    /// Answers that were judged to comply.
    pub(crate) complies: u32,
    /// Answers that were judged to violate.
    pub(crate) violates: u32,
    #[serde(skip)]
    durations: Vec<f32>,
    #[serde(skip)]
    first_tokens: Vec<f32>,
}

/// The slots, oldest first. Slots without an event are left out.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    slots: Mutex<VecDeque<Slot>>,
}

impl Traffic {
    /// Counts an event that happened at `now`, in Unix seconds.
    pub(super) fn record(&self, event: &Event, now: u64) {
        match event {
            // The operators' own requests are not traffic.
            Event::RequestFinished(request) if request.is_traffic() => {
                self.in_slot(now, |slot| slot.count(request));
            }
            Event::ComplianceJudged(judged) => self.in_slot(now, |slot| {
                if judged.complies {
                    slot.complies += 1;
                } else {
                    slot.violates += 1;
                }
            }),
            _ => {}
        }
    }

    /// A copy of the slots that began at or after `since`.
    pub(crate) fn since(&self, since: u64) -> Vec<Slot> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .iter()
            .filter(|slot| slot.at >= since)
            .map(|slot| {
                let mut slot = slot.clone();
                slot.summarise();
                slot
            })
            .collect()
    }

    fn in_slot(&self, now: u64, change: impl FnOnce(&mut Slot)) {
        let at = now - now % SLOT_SECONDS;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // If the clock was set back, count in the newest slot rather than out of order.
        if slots.back().is_none_or(|newest| newest.at < at) {
            if let Some(newest) = slots.back_mut() {
                newest.summarise();
                newest.durations = Vec::new();
                newest.first_tokens = Vec::new();
            }
            slots.push_back(Slot {
                at,
                ..Slot::default()
            });
            if slots.len() > SLOTS {
                slots.pop_front();
            }
        }
        if let Some(newest) = slots.back_mut() {
            change(newest);
        }
    }
}

impl Slot {
    fn count(&mut self, request: &RequestFinished) {
        self.requests += 1;
        self.errors += u32::from(request.status >= 500);
        self.refused += u32::from(request.status == 429);
        self.tokens += request.completion_tokens as u64;
        // Refusals take no time and would distort the quantiles.
        if request.status == 200 {
            sample(
                &mut self.durations,
                request.duration.as_secs_f32(),
                self.requests,
            );
            if let Some(first) = request.time_to_first_token {
                sample(&mut self.first_tokens, first.as_secs_f32(), self.requests);
            }
        }
    }

    /// Computes the quantiles from the samples; a closed slot has them already.
    fn summarise(&mut self) {
        self.durations.sort_by(f32::total_cmp);
        self.first_tokens.sort_by(f32::total_cmp);
        let quantile = |sorted: &[f32], q: f32| {
            let last = sorted.len().checked_sub(1)?;
            Some(f64::from(sorted[(last as f32 * q).round() as usize]))
        };
        self.p50 = quantile(&self.durations, 0.5).or(self.p50);
        self.p95 = quantile(&self.durations, 0.95).or(self.p95);
        self.first_token_p50 = quantile(&self.first_tokens, 0.5).or(self.first_token_p50);
    }
}

/// Reservoir sampling: once full, the n-th value replaces a random sample with probability size/n.
fn sample(kept: &mut Vec<f32>, value: f32, count: u32) {
    if kept.len() < SAMPLES {
        kept.push(value);
        return;
    }
    let at = rand::random_range(0..count.max(1)) as usize;
    if let Some(replaced) = kept.get_mut(at) {
        *replaced = value;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Judged;

    fn finished(route: &'static str, status: u16, millis: u64) -> Event {
        Event::RequestFinished(RequestFinished {
            route,
            status,
            duration: Duration::from_millis(millis),
            completion_tokens: 2,
            ..RequestFinished::default()
        })
    }

    #[test]
    fn events_fall_into_the_slot_of_their_time() {
        let traffic = Traffic::default();
        for millis in 1..=100 {
            traffic.record(&finished("/v1/completions", 200, millis * 10), 1000);
        }
        traffic.record(&finished("/v1/completions", 429, 0), 1004);
        traffic.record(&finished("/admin/v1/policies", 200, 9999), 1004);
        let judged = Judged {
            complies: false,
            violations: Vec::new(),
            lag: Duration::ZERO,
        };
        traffic.record(&Event::ComplianceJudged(judged), 1020);
        let slots = traffic.since(0);
        assert_eq!([slots[0].at, slots[1].at], [990, 1020]);
        let first = &slots[0];
        assert_eq!(
            (first.requests, first.refused, first.errors, first.tokens),
            (101, 1, 0, 202)
        );
        let (p50, p95) = (first.p50.unwrap(), first.p95.unwrap());
        assert!(
            (p50 - 0.5).abs() < 0.02 && (p95 - 0.95).abs() < 0.02,
            "{p50} {p95}"
        );
        assert_eq!((slots[1].violates, slots[1].p50), (1, None));
        assert_eq!(traffic.since(1000).len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let traffic = Traffic::default();
        for n in 0..2000 {
            traffic.record(&finished("/v1/completions", 200, 1), n * SLOT_SECONDS);
            traffic.record(&finished("/v1/completions", 200, 1), 0);
        }
        let slots = traffic.since(0);
        assert_eq!(slots.len(), SLOTS);
        let many = Traffic::default();
        (0..5000).for_each(|_| many.record(&finished("/v1/completions", 200, 1), 0));
        assert_eq!(many.since(0)[0].durations.len(), SAMPLES);
    }
}
