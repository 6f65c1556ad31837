//! A change of what serves, as the engine and the telemetry see it. [`Pointer`](super::pointer)
//! decides.

use std::time::{Duration, Instant};

use super::context::Context;
use super::pointer::{Change, ChangeError};
use crate::config::OnMissing;
use crate::telemetry::Event;
use realign_engine::adapter::Swapped;
use realign_engine::adapter::generation::Generation;

impl Context {
    /// Makes a generation serve that the engine has made room for. An operator's act pins it.
    ///
    /// # Errors
    /// [`ChangeError`]; disk and memory are as they were.
    pub(crate) fn change_serving(&self, change: Change<'_>) -> Result<Swapped, ChangeError> {
        let started = Instant::now();
        let to = change.to.clone();
        if let Some(member) = &self.member
            && let Err(error) = member.upload(&to)
        {
            // It may take long, so it is not done under the lock. What failed is tried again there.
            tracing::warn!(%error, generation = %to.id, "the generation is not in the shared store yet");
        }
        match self.pointer.change(change) {
            Ok(swapped) => {
                self.engine.serve(&to.id);
                self.announce(&swapped, &to, started.elapsed());
                Ok(swapped)
            }
            Err(error) => {
                self.emit(Event::SwapFailed {
                    to: to.id.to_string(),
                    error: error.to_string(),
                });
                Err(error)
            }
        }
    }

    /// A start without what should serve: the base stands in, where that is wanted.
    pub(super) fn stand_in(&self) {
        let Some(mut why) = self.fallback() else {
            return;
        };
        if let Some(lost) = self.lost_pin() {
            why = format!("{why}; {lost}");
        }
        self.withhold(&why);
    }

    /// Refuses requests for what serves where the configuration asks for it: the base stands in for
    /// what should serve.
    pub(super) fn withhold(&self, why: &str) {
        // A store that has not confirmed anything says so itself.
        if self.config.on_missing != OnMissing::Refuse || self.registry.withheld().is_some() {
            return;
        }
        tracing::warn!(
            why,
            "adapters.on_missing is `refuse`: requests that name no generation are refused"
        );
        self.registry.withhold(&format!(
            "{why}; adapters.on_missing is `refuse`, so requests must name the base or a generation \
             until a realignment ends or an operator activates a generation"
        ));
    }

    /// Emits the events of a swap.
    fn announce(&self, swapped: &Swapped, to: &Generation, took: Duration) {
        if swapped.from == swapped.to {
            tracing::info!(generation = %to.id, "the generation serves already");
            return self.measure_serving(&to.id);
        }
        self.emit(Event::SwapPublished {
            from: swapped.from.to_string(),
            to: swapped.to.to_string(),
            policy_revision: to.policy_revision.clone(),
            took,
        });
        self.measure_serving(&to.id);
        if let Some(retired) = &swapped.retired {
            self.emit(Event::GenerationRetired {
                generation: retired.to_string(),
            });
        }
    }
}
