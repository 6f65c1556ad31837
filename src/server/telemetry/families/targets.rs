//! The targets of a gateway. Servers have no such series.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{Error, GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec};

use super::{Build, TIME_TO_FIRST_TOKEN_BUCKETS};
use crate::telemetry::event::{FleetAnswer, FleetJudged, FleetSnapshot};
use crate::telemetry::names;
use realign_fleet::Stage;

/// Of an answer that was judged.
const VERDICTS: [&str; 2] = ["complies", "violates"];

/// Targets and the rollout over them.
#[derive(Debug)]
pub(in crate::telemetry) struct Targets {
    epoch: IntGaugeVec,
    stage: IntGaugeVec,
    // Without labels, and without a series before a gateway sets them.
    share: GaugeVec,
    evidence: GaugeVec,
    paused: IntGaugeVec,
    refused: IntGaugeVec,
    answers: IntCounterVec,
    first_byte: HistogramVec,
    verdicts: IntCounterVec,
    not_judged: IntCounterVec,
    /// Targets that have a series. Those of targets that went are removed.
    shown: Mutex<BTreeSet<String>>,
    /// Generations that have series.
    generations: Mutex<BTreeSet<String>>,
}

impl Targets {
    pub(in crate::telemetry) fn register(build: &Build) -> Result<Self, Error> {
        Ok(Self {
            epoch: build.int_gauges(
                names::FLEET_TARGET_EPOCH,
                "The newest epoch that a target answers by; 0 is none.",
                &["target"],
            )?,
            stage: build.int_gauges(
                names::FLEET_ROLLOUT_STAGE,
                "1 for the stage that the rollout is in.",
                &["stage"],
            )?,
            share: build.gauges(
                names::FLEET_CANARY_SHARE,
                "Share of the requests that get the generation of a canary; 0 without one.",
                &[],
            )?,
            evidence: build.gauges(
                names::FLEET_CANARY_EVIDENCE,
                "How far the evidence against the generation of a canary has come; at 1 it goes back.",
                &["signal"],
            )?,
            paused: build.int_gauges(names::FLEET_PAUSED, "1 if an operator paused rollouts.", &[])?,
            refused: build.int_gauges(
                names::FLEET_REFUSED,
                "1 if what should serve was given up: by an operator, a canary, or targets.",
                &[],
            )?,
            answers: build.counters(
                names::FLEET_ANSWERS_TOTAL,
                "Answers of targets: ok, failed (5xx, broken off), left (by the client).",
                &["generation", "outcome"],
            )?,
            first_byte: build.histograms(
                names::FLEET_FIRST_BYTE_SECONDS,
                "Time to the first byte of an answer.",
                &["generation"],
                TIME_TO_FIRST_TOKEN_BUCKETS,
            )?,
            verdicts: build.counters(
                names::FLEET_COMPLIANCE_ANSWERS_TOTAL,
                "Answers that passed and were judged: complies, violates.",
                &["generation", "verdict"],
            )?,
            not_judged: build.counters(
                names::FLEET_COMPLIANCE_DROPPED_TOTAL,
                "Answers that passed and could not be judged: queue_full, too_long, unreadable, judge.",
                &["reason"],
            )?,
            shown: Mutex::default(),
            generations: Mutex::default(),
        })
    }

    /// Takes note that a generation has series.
    fn know(&self, generation: &str) {
        let mut known = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !known.contains(generation) {
            known.insert(generation.into());
        }
    }

    pub(in crate::telemetry) fn judged(&self, judged: &FleetJudged) {
        match judged {
            FleetJudged::Dropped(why) => self.not_judged.with_label_values(&[*why]).inc(),
            FleetJudged::Verdict {
                generation,
                complies,
            } => {
                self.know(generation);
                let verdict = VERDICTS[usize::from(!complies)];
                let labels = [generation.as_str(), verdict];
                self.verdicts.with_label_values(&labels).inc();
            }
        }
    }

    pub(in crate::telemetry) fn answered(&self, answer: &FleetAnswer) {
        let generation = answer.generation.as_str();
        self.know(generation);
        let labels = [generation, answer.outcome];
        self.answers.with_label_values(&labels).inc();
        if let Some(time) = answer.first_byte {
            let histogram = self.first_byte.with_label_values(&[generation]);
            histogram.observe(time.as_secs_f64());
        }
    }

    /// Removes the series of generations that requests cannot get any more.
    fn forget(&self, kept: &BTreeSet<String>) {
        let mut known = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for gone in known.difference(kept) {
            for outcome in ["ok", "failed", "left"] {
                // One that is not there need not be removed.
                let _missing = self.answers.remove_label_values(&[gone.as_str(), outcome]);
            }
            for verdict in VERDICTS {
                let _missing = self.verdicts.remove_label_values(&[gone.as_str(), verdict]);
            }
            let _missing = self.first_byte.remove_label_values(&[gone.as_str()]);
        }
        known.retain(|generation| kept.contains(generation));
    }

    fn set_canary(&self, seen: &FleetSnapshot) {
        let unlabelled: [&str; 0] = [];
        self.share.with_label_values(&unlabelled).set(seen.share);
        let paused = self.paused.with_label_values(&unlabelled);
        paused.set(i64::from(seen.is_paused));
        let refused = self.refused.with_label_values(&unlabelled);
        refused.set(i64::from(seen.is_refused));
        self.evidence.reset();
        for (signal, so_far) in &seen.evidence {
            self.evidence.with_label_values(&[*signal]).set(*so_far);
        }
        self.forget(&seen.generations);
    }

    pub(in crate::telemetry) fn set(&self, seen: &FleetSnapshot) {
        self.set_canary(seen);
        for stage in Stage::ALL {
            let here = seen.stage == Some(stage.as_str());
            let gauge = self.stage.with_label_values(&[stage.as_str()]);
            gauge.set(i64::from(here));
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<String> = seen.targets.iter().map(|(t, _)| t.clone()).collect();
        for gone in shown.difference(&now) {
            // One that is not there need not be removed.
            let _missing = self.epoch.remove_label_values(&[gone.as_str()]);
        }
        for (target, epoch) in &seen.targets {
            let epoch = i64::try_from(*epoch).unwrap_or(i64::MAX);
            self.epoch.with_label_values(&[target.as_str()]).set(epoch);
        }
        *shown = now;
    }
}
