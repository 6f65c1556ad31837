//! What `dryrun` policies say about the data. It is told beside the loop, because a judge may take
//! hours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context::Context;

/// A report that is being made. Dropping it gives the report up.
pub(super) struct DryRun(Arc<AtomicBool>);

impl DryRun {
    /// Starts a report on the active set; `None` if it has no such policies.
    pub(super) fn start(context: &Arc<Context>) -> Option<Self> {
        let set = context.policies();
        if set.policies().iter().all(|policy| policy.is_enforced()) {
            return None;
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let (stopped, context) = (given_up.clone(), context.clone());
        let run = move || {
            let proceed = move || !stopped.load(Ordering::Acquire);
            let report = context.report_dryrun(proceed.clone());
            if proceed() {
                context.keep_dryrun(&set, report);
            }
        };
        let thread = std::thread::Builder::new().name("dryrun".into());
        thread
            .spawn(run)
            .inspect_err(|error| tracing::warn!(%error, "dryrun policies are not triaged"))
            .is_ok()
            .then_some(Self(given_up))
    }
}

impl Drop for DryRun {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
