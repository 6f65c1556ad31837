//! The oracle's services in a server, and the triage report of `dryrun` policies.

use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use super::context::Context;
use realign_align::oracle::features::FeatureError;
use realign_align::oracle::{HiddenStates, RuleOracle, Services, needs_services};
use realign_align::policy::PolicySet;
use realign_align::preferences::Dataset;
use realign_align::triage::triage_cached;

impl Context {
    /// The services that the probes and judges of `set` need. The executor for hidden states is
    /// created on first use.
    pub(crate) fn services(&self, set: &PolicySet) -> Result<Services, FeatureError> {
        let (probes, _) = needs_services(set);
        let mut features = None;
        if probes {
            // The option is only ever set as a whole, so a panic cannot leave it inconsistent.
            let mut known = self.features.lock().unwrap_or_else(PoisonError::into_inner);
            if known.is_none() {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let threads = self.config.engine.threads.unwrap_or(cores);
                *known = Some(Arc::new(HiddenStates::new(self.loaded.clone(), threads)?));
            }
            features = known.clone();
        }
        Ok(Services {
            features,
            scores: self.db.clone(),
            probes: Some(self.config.paths.state.join("probes")),
            closing: Some(self.closing.clone()),
        })
    }

    /// The oracle that judges live traffic: the active set's enforced policies.
    pub(crate) fn oracle(&self) -> RuleOracle {
        let active = self.active();
        RuleOracle::new(&active.set).with_matchers(active.matchers)
    }

    /// Triages the preference data with and without the `dryrun` policies and logs the difference.
    /// `None` if there are no such policies or the data cannot be read. Stops where `proceed` says no.
    pub(super) fn report_dryrun(
        &self,
        proceed: impl Fn() -> bool + Clone + Send + Sync + 'static,
    ) -> Option<Value> {
        let active = self.active();
        if active.set.policies().iter().all(|p| p.is_enforced()) {
            return None;
        }
        let dataset = Dataset::load_dir_within(
            &self.config.paths.preferences,
            self.config.paths.max_preferences_bytes,
        )
        .inspect_err(|error| tracing::warn!(%error, "cannot triage with dryrun policies"))
        .ok()?;
        let all = RuleOracle::with_dryrun(&active.set)
            .with_matchers(active.matchers.clone())
            .proceeding_while(proceed.clone());
        let own = RuleOracle::new(&active.set)
            .with_matchers(active.matchers)
            .proceeding_while(proceed);
        let with = triage_cached(&dataset.pairs, &all, self.db.as_ref()).0;
        let enforced = triage_cached(&dataset.pairs, &own, self.db.as_ref()).0;
        tracing::info!(
            conflicts = enforced.counts.conflicts(),
            with_dryrun = with.counts.conflicts(),
            "dryrun policies triaged"
        );
        Some(json!({
            "enforced": enforced.counts, "with_dryrun": with.counts, "gap_ratio": with.gap_ratio,
            "undecided": with.undecided,
        }))
    }
}
