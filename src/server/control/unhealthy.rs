//! Away from a generation that keeps computing what is no number.

use std::sync::Arc;

use super::pointer::Change;
use super::worker::Worker;
use crate::state::Act;
use realign_engine::adapter::generation::{Generation, GenerationId};

impl Worker {
    /// Makes the previous generation serve in place of a broken one, or the base if the previous one
    /// cannot serve either. Nothing changes if the broken one does not serve.
    pub(super) fn leave(&mut self, broken: &GenerationId) {
        let context = self.context.clone();
        let registry = &context.registry;
        if registry.lease_current().id != *broken {
            return;
        }
        let why = format!(
            "generation {broken} was taken out of service: one sequence after another came to values \
             that are not finite numbers"
        );
        let candidates = registry.previous().into_iter();
        let candidates = candidates.chain([registry.base().clone()]);
        for to in candidates.filter(|to| to.id != *broken) {
            let id = to.id.clone();
            match self.replace(broken, to, &why) {
                Ok(()) => {
                    // An operator's choice of it ends here, or no realignment could replace it.
                    let why = match context.pointer.release(broken) {
                        true => format!("{why}; it is pinned no more"),
                        false => why,
                    };
                    tracing::error!(to = %id, "{why}");
                    if id == registry.base().id {
                        context.withhold(&why);
                    }
                    context.keep_failure(why);
                    return self.examine_if_unknown();
                }
                Err(error) => tracing::error!(to = %id, error, "it cannot replace {broken}"),
            }
        }
        if let Some(member) = &context.member {
            // It must not get requests that it cannot answer.
            member.keep_broken(broken);
        }
        tracing::error!(generation = %broken, "it computes no numbers, and nothing can replace it");
    }

    fn replace(&self, broken: &GenerationId, to: Arc<Generation>, why: &str) -> Result<(), String> {
        let context = &self.context;
        // The loop stands still until this is done: no waiting for room.
        let ready = context.engine.prepare(&to, &|_| false);
        ready.map_err(|e| e.to_string())?;
        let change = Change {
            to,
            act: Act::Recover,
            reason: why,
            expected: Some(broken),
        };
        let changed = context.change_serving(change);
        changed.map(|_| ()).map_err(|e| e.to_string())
    }
}
