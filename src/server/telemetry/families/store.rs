//! The store that servers share. Servers by themselves have no such series.

use prometheus::{Error, GaugeVec, IntGaugeVec};

use super::Build;
use crate::telemetry::event::StoreSnapshot;
use crate::telemetry::names;

/// This server's part in a store.
#[derive(Debug)]
pub(in crate::telemetry) struct Shared {
    up: IntGaugeVec,
    epoch: IntGaugeVec,
    serving: IntGaugeVec,
    lease: IntGaugeVec,
    skew: GaugeVec,
    distance: GaugeVec,
    differs: IntGaugeVec,
}

impl Shared {
    pub(in crate::telemetry) fn register(build: &Build) -> Result<Self, Error> {
        Ok(Self {
            up: build.int_gauges(
                names::STORE_UP,
                "Whether the shared store answered when it was last asked.",
                &[],
            )?,
            epoch: build.int_gauges(
                names::STORE_EPOCH,
                "The epoch that CURRENT in the shared store was last seen to name.",
                &[],
            )?,
            serving: build.int_gauges(
                names::STORE_SERVING_EPOCH,
                "The shared store's epoch that this server serves; 0 is none.",
                &[],
            )?,
            lease: build.int_gauges(
                names::STORE_LEASE_HELD,
                "Whether this server may publish into the shared store.",
                &[],
            )?,
            skew: build.gauges(
                names::FLEET_SKEW_SECONDS,
                "Time for which this server has failed to serve what the shared store names.",
                &[],
            )?,
            distance: build.gauges(
                names::STORE_FINGERPRINT_DISTANCE,
                "Largest difference of a log-probability of the last verified generation from the published one, in nats.",
                &[],
            )?,
            differs: build.int_gauges(
                names::STORE_FINGERPRINT_REFUSED,
                "Whether this server refuses what the shared store names because it computes otherwise with it.",
                &[],
            )?,
        })
    }

    pub(in crate::telemetry) fn set(&self, seen: &StoreSnapshot) {
        let none: &[&str] = &[];
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.up.with_label_values(none).set(i64::from(seen.up));
        self.epoch.with_label_values(none).set(whole(seen.epoch));
        let serving = self.serving.with_label_values(none);
        serving.set(whole(seen.serving));
        self.lease
            .with_label_values(none)
            .set(i64::from(seen.holds));
        self.skew
            .with_label_values(none)
            .set(seen.skew.as_secs_f64());
        if let Some(distance) = seen.distance {
            self.distance
                .with_label_values(none)
                .set(f64::from(distance));
        }
        self.differs
            .with_label_values(none)
            .set(i64::from(seen.differs));
    }
}
