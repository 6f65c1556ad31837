//! One look at the store: the lease, what `CURRENT` says, and bringing it about here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::context::Context;
use super::super::pointer::Change;
use super::Member;
use crate::state::Act;
use realign_engine::adapter::generation::{Generation, GenerationId};
use realign_store::{Current, Standing, StoreError};

/// How long the engine may wait for room for what the store names.
const ROOM: Duration = Duration::from_secs(60);

/// What a look led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// Whether another generation serves than before.
    pub(super) swapped: bool,
    /// Whether this server may begin realignments now.
    pub(super) may_realign: bool,
}

/// How the store's generation is brought about.
#[derive(Clone, Copy)]
struct How<'a> {
    /// Whether this server may write `CURRENT`.
    holds: bool,
    /// Whether to wait on.
    go_on: &'a dyn Fn() -> bool,
}

impl Member {
    /// Looks at the store, and serves what it names.
    ///
    /// # Errors
    /// If the store fails; what serves keeps serving.
    pub(super) fn sync(
        &self,
        context: &Context,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Looked, StoreError> {
        // Before `CURRENT` is read: what changes in between is not overridden with what it said.
        let serving = context.registry.lease_current().id.clone();
        let (current, holds) = self.look()?;
        let mut looked = Looked::default();
        let named = current.as_ref().filter(|c| c.generation.is_some());
        let done = match named {
            None if holds => self.publish_first(context),
            None => Err("no controller has published anything into it yet".into()),
            // It published since it looked; the next look is about that.
            Some(current) if holds && self.knows_later(current) => Ok(()),
            Some(current) => self.see(current).and_then(|()| {
                let how = How { holds, go_on };
                looked.swapped = self.serve(context, current, &serving, how)?;
                // Where this server decides, its own pin is the newer one.
                if looked.swapped || !holds || self.seen().serving.is_none() {
                    context.pointer.agree_on_pin(current.pinned);
                }
                self.keep_up(current, looked.swapped);
                Ok(())
            }),
        };
        if let Err(why) = &done {
            self.fall_behind(why);
        }
        looked.may_realign = holds && self.may_not_realign().is_none();
        Ok(looked)
    }

    /// What `CURRENT` says, and whether this server may write it.
    fn look(&self) -> Result<(Option<Current>, bool), StoreError> {
        if let Some(controller) = &self.controller
            && let Standing::Holder { current, .. } = controller.tick()?
        {
            return Ok((Some(current), true));
        }
        Ok((self.store.current()?, false))
    }

    fn knows_later(&self, current: &Current) -> bool {
        let seen = self.seen();
        let known = seen.current.as_ref();
        known.is_some_and(|known| known.epoch > current.epoch)
    }

    /// Takes note of what `CURRENT` says, unless it went back.
    fn see(&self, current: &Current) -> Result<(), String> {
        let mut seen = self.seen();
        if let Some(before) = seen.current.as_ref().filter(|b| b.epoch > current.epoch) {
            return Err(format!(
                "CURRENT went back from epoch {} to {}, which no controller does: the store was \
                 restored or changed by hand; restart this server to follow it from there",
                before.epoch, current.epoch
            ));
        }
        seen.current = Some(current.clone());
        Ok(())
    }

    /// An empty store begins with what serves here, if that is what should.
    fn publish_first(&self, context: &Context) -> Result<(), String> {
        if let Some(why) = context.fallback() {
            return Err(format!("nothing is published into the empty store: {why}"));
        }
        context
            .pointer
            .write_again()
            .map_err(|error| error.to_string())
    }

    /// Serves what the store names; whether that was another generation than before.
    fn serve(
        &self,
        context: &Context,
        current: &Current,
        serving: &GenerationId,
        how: How<'_>,
    ) -> Result<bool, String> {
        let id = GenerationId(current.generation.clone().unwrap_or_default());
        self.check_base(current, &id)?;
        self.check_known(&id, how.holds)?;
        let swapped = *serving != id;
        if swapped {
            let to = self.fetch(context, current, &id)?;
            let wait = |waited| waited < ROOM && (how.go_on)();
            let ready = context.engine.prepare(&to, &wait);
            ready.map_err(|error| error.to_string())?;
            if let Err(why) = self.verify(context, &to, how.holds) {
                context.engine.release(&to.id);
                return Err(why);
            }
            let reason = format!("the store names it in epoch {}", current.epoch);
            let change = Change {
                to,
                act: Act::Follow,
                reason: &reason,
                expected: Some(serving),
            };
            context
                .change_serving(change)
                .map_err(|error| error.to_string())?;
        } else {
            if self.seen().serving.is_none() {
                self.verify(context, &context.registry.lease_current(), how.holds)?;
            }
            // It was withheld until it was known to be what should serve.
            context.registry.offer();
            context.pointer.end_fallback();
        }
        Ok(swapped)
    }

    /// Takes note that what the store names serves.
    fn keep_up(&self, current: &Current, swapped: bool) {
        let mut seen = self.seen();
        seen.serving = Some(current.epoch);
        (seen.behind, seen.behind_since, seen.differs) = (None, None, None);
        if swapped {
            seen.broken = None;
        }
    }

    /// What was found to compute otherwise here is not loaded again and again, until the store names
    /// something else or this server is restarted.
    fn check_known(&self, id: &GenerationId, holds: bool) -> Result<(), String> {
        let mut seen = self.seen();
        match &seen.differs {
            Some((known, why)) if known == id && !holds => Err(why.clone()),
            _ => {
                seen.differs = None;
                Ok(())
            }
        }
    }

    fn check_base(&self, current: &Current, id: &GenerationId) -> Result<(), String> {
        let other = current.base_hash.as_ref() != Some(&self.base_hash);
        if other || current.is_base && *id != self.base() {
            let short = |hash: &str| hash.chars().take(12).collect::<String>();
            return Err(format!(
                "the store is for base model {}, and this server has loaded {}; start it with the \
                 model of the others, or give it another store.url",
                short(current.base_hash.as_deref().unwrap_or("unknown")),
                short(&self.base_hash)
            ));
        }
        Ok(())
    }

    /// A generation from the directory here, or from the store, verified either way.
    fn fetch(
        &self,
        context: &Context,
        current: &Current,
        id: &GenerationId,
    ) -> Result<Arc<Generation>, String> {
        if current.is_base {
            return Ok(context.registry.base().clone());
        }
        let here = context.load_generation(id);
        let mut generation = match here {
            Ok(generation) => generation,
            Err(_) => {
                self.download(id)?;
                context.load_generation(id).map_err(|e| e.to_string())?
            }
        };
        generation.policy_revision = current.policy_revision.clone();
        Ok(Arc::new(generation))
    }

    fn download(&self, id: &GenerationId) -> Result<(), String> {
        let started = Instant::now();
        let found = self.store.download(&id.0).map_err(|e| e.to_string())?;
        let files = found.ok_or_else(|| {
            format!("generation {id} is not whole in the store, although CURRENT names it")
        })?;
        let bytes = files.0.each_ref().map(|file| &file[..]);
        let added = self.adapters.add(id, &self.base_hash, bytes);
        added.map_err(|error| format!("generation {id} of the store: {error}"))?;
        tracing::info!(
            generation = %id,
            bytes = bytes.iter().map(|b| b.len()).sum::<usize>(),
            seconds = started.elapsed().as_secs_f64(),
            "generation downloaded and verified"
        );
        Ok(())
    }

    fn fall_behind(&self, why: &str) {
        let mut seen = self.seen();
        if seen.behind.as_deref() != Some(why) {
            tracing::error!("{}: {why}", self.settings.url);
        }
        seen.behind = Some(why.into());
        seen.behind_since.get_or_insert_with(Instant::now);
    }
}
