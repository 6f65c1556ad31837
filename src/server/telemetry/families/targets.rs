//! The targets of a gateway. Servers have no such series.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{Error, IntGaugeVec};

use super::Build;
use crate::telemetry::event::FleetSnapshot;
use crate::telemetry::names;
use realign_fleet::Stage;

/// Targets and the rollout over them.
#[derive(Debug)]
pub(in crate::telemetry) struct Targets {
    epoch: IntGaugeVec,
    stage: IntGaugeVec,
    /// Targets that have a series. Those of targets that went are removed.
    shown: Mutex<BTreeSet<String>>,
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
            shown: Mutex::default(),
        })
    }

    pub(in crate::telemetry) fn set(&self, seen: &FleetSnapshot) {
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
