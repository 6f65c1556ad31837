//! The oracle's services in a server, and what `dryrun` policies say about the data.

use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use super::context::Context;
use realign_align::oracle::features::FeatureError;
use realign_align::oracle::{HiddenStates, RuleOracle, Services, needs_services};
use realign_align::policy::PolicySet;
use realign_align::preferences::Dataset;
use realign_align::triage::triage_cached;

impl Context {
    /// What a set's probes and judges need; the second executor for hidden states is made only
    /// when the first probe asks for it.
    pub fn services(&self, set: &PolicySet) -> Result<Services, FeatureError> {
        let (probes, _) = needs_services(set);
        let mut features = None;
        if probes {
            // A panic while it was held left it as it was.
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
        })
    }

    /// The oracle that live traffic is judged by: the active set's enforced policies.
    pub fn oracle(&self) -> RuleOracle {
        let active = self.active();
        RuleOracle::new(&active.set).with_matchers(active.matchers)
    }

    /// Triages the data by all policies, `dryrun` ones included, and logs what those add. `None`
    /// if there are none or the data cannot be read.
    pub fn report_dryrun(&self) -> Option<Value> {
        let active = self.active();
        if active.set.policies().iter().all(|p| p.is_enforced()) {
            return None;
        }
        let dataset = Dataset::load_dir_within(
            &self.config.paths.preferences,
            self.config.paths.max_preferences_bytes,
        )
        .inspect_err(|error| tracing::warn!(%error, "dryrun policies are not triaged"))
        .ok()?;
        let all = RuleOracle::with_dryrun(&active.set).with_matchers(active.matchers);
        let with = triage_cached(&dataset.pairs, &all, self.db.as_ref()).0;
        let without = triage_cached(&dataset.pairs, &self.oracle(), self.db.as_ref());
        let without = without.0.counts;
        tracing::info!(
            conflicts = without.conflicts(),
            with_dryrun = with.counts.conflicts(),
            "dryrun policies triaged"
        );
        Some(json!({
            "enforced": without, "with_dryrun": with.counts, "gap_ratio": with.gap_ratio,
            "undecided": with.undecided,
        }))
    }
}
