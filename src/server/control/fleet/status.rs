//! What a server tells of its part in a store: metrics, and an object in the store with a deadline.

use std::time::{Duration, Instant};

use super::super::context::Context;
use super::Member;
use crate::telemetry::Event;
use crate::telemetry::event::StoreSnapshot;
use realign_core::clock::unix_seconds;
use realign_store::{Replica, Standing, StoreError};

/// Time between two reports that say the same.
const REPORT: Duration = Duration::from_secs(10);
/// How long a report is to be believed, in seconds: a few may get lost.
const BELIEVED: u64 = 35;

/// What was reported last, and when.
#[derive(Debug, Default)]
pub(super) struct Reported(Option<(Replica, Instant)>);

impl Member {
    /// Takes note of whether the store answered.
    pub(super) fn note<T>(&self, result: &Result<T, StoreError>) {
        let failure = result.as_ref().err().map(ToString::to_string);
        let mut seen = self.seen();
        match (&seen.failure, &failure) {
            (None, Some(why)) => {
                tracing::error!("{}: {why}; what serves keeps serving", self.settings.url);
            }
            (Some(_), None) => tracing::info!("{}: the store answers again", self.settings.url),
            _ => {}
        }
        seen.failure = failure;
    }

    /// Updates the metrics.
    pub(in crate::control) fn measure(&self, context: &Context) {
        let holds = self.holds();
        let seen = self.seen();
        let snapshot = StoreSnapshot {
            up: seen.failure.is_none(),
            epoch: seen.current.as_ref().map_or(0, |current| current.epoch),
            serving: seen.serving.unwrap_or(0),
            holds,
            skew: seen.behind_since.map_or(Duration::ZERO, |s| s.elapsed()),
            distance: seen.distance,
            differs: seen.differs.is_some(),
        };
        drop(seen);
        context.emit(Event::StoreSeen(snapshot));
    }

    /// Whether this server may publish now.
    fn holds(&self) -> bool {
        let controller = self.controller.as_ref();
        controller.is_some_and(|c| matches!(c.standing(), Standing::Holder { .. }))
    }

    /// Writes what this server is into the store, if that changed or is to be confirmed.
    pub(super) fn report(&self, context: &Context, reported: &mut Reported) {
        let now = Instant::now();
        let next = self.replica(context);
        let same = |(before, at): &(Replica, Instant)| {
            let undated = |r: &Replica| Replica {
                at: 0,
                until: 0,
                ..r.clone()
            };
            undated(before) == undated(&next) && now.duration_since(*at) < REPORT
        };
        if reported.0.as_ref().is_some_and(same) {
            return;
        }
        match self.store.report(&next) {
            Ok(()) => reported.0 = Some((next, now)),
            Err(error) => tracing::debug!(%error, "this server's state is not in the store"),
        }
    }

    fn replica(&self, context: &Context) -> Replica {
        let reason = self.unready();
        let at = unix_seconds();
        let seen = self.seen();
        Replica {
            name: self.name.clone(),
            role: if self.follows() {
                "follower"
            } else {
                "controller"
            }
            .into(),
            epoch: seen.serving,
            generation: context.registry.lease_current().id.to_string(),
            ready: reason.is_none(),
            reason: reason.or_else(|| seen.behind.clone()),
            at,
            until: at + BELIEVED,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Gives the lease back, and removes this server's state: it ends.
    pub(super) fn leave_store(&self) {
        if let Some(controller) = &self.controller
            && let Err(error) = controller.release()
        {
            tracing::warn!(%error, "the lease is not given back: another controller waits for its term");
        }
        if let Err(error) = self.store.forget(&self.name) {
            tracing::debug!(%error, "this server's state stays in the store until its deadline");
        }
    }
}
