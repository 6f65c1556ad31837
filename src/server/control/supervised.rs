//! What the control loop tells those who watch over it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Control;
use crate::api::AdminError;
use realign_align::oracle::Matchers;
use realign_align::policy::PolicySet;
use realign_core::supervision::{Life, Vital};

/// The longest that one event may take before the loop counts as hung. Reading policies whose rules
/// are tested by a slow judge takes minutes.
pub(super) const LONGEST_EVENT: Duration = Duration::from_secs(600);
/// How often a caller that waits for an answer asks whether the loop is still there.
const LOOK: Duration = Duration::from_millis(250);

impl Control {
    /// The signs of life of the loop and of the policy watcher.
    pub(crate) fn vitals(&self) -> Vec<Arc<Vital>> {
        let watcher = self.watcher.lock().ok();
        let watcher = watcher.and_then(|w| w.as_ref().map(|w| w.vital()));
        [self.context.vital.clone()]
            .into_iter()
            .chain(watcher)
            .chain(self.member.as_ref().map(|member| member.vital()))
            .collect()
    }

    /// Why requests should wait for the policies; `None` once a set is active with its probes, or the
    /// first one ever was refused.
    pub(crate) fn policies_missing(&self) -> Option<String> {
        if self.context.has_looked.load(Ordering::Acquire) {
            return None;
        }
        let active = self.context.active();
        match active.refused {
            _ if active.loaded => None,
            None => Some("the policies are being loaded; retry in a moment".into()),
            Some(why) => Some(format!("no policies are active: {why}")),
        }
    }

    /// Whether the generation that an operator pinned does not serve.
    pub(crate) fn has_lost_pin(&self) -> bool {
        self.context.lost_pin().is_some()
    }

    /// Why this server does not serve what the store of its fleet names, if so.
    pub(crate) fn out_of_step(&self) -> Option<String> {
        self.context.member.as_ref()?.unready()
    }

    /// Takes the metrics of this server's part in a store anew: a lease runs out also while the thread that would
    /// renew it waits for the store.
    pub(crate) fn measure_store(&self) {
        if let Some(member) = &self.context.member {
            member.measure(&self.context);
        }
    }

    /// The active policies and the matchers their rules use; `None` while none was ever accepted.
    pub(crate) fn loaded_policies(&self) -> Option<(Arc<PolicySet>, Arc<Matchers>)> {
        let active = self.context.active();
        active.loaded.then_some((active.set, active.matchers))
    }

    /// Waits for the loop's answer to an event.
    ///
    /// # Errors
    /// If the loop has ended or is dead.
    pub(super) fn answer<T>(&self, answer: &Receiver<T>) -> Result<T, AdminError> {
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout)
                    if !matches!(self.context.vital.life(), Life::Dead(_)) => {}
                Err(_) => return Err(Self::loop_stopped()),
            }
        }
    }
}
