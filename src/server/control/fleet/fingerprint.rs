//! Whether this machine computes with a generation what the one did that published it.

use std::sync::Arc;

use super::super::context::Context;
use super::Member;
use realign_engine::adapter::generation::Generation;
use realign_engine::{Fingerprint, FingerprintError, TOLERANCE};

/// The key of a manifest.
const KEY: &str = "fingerprint";

impl Member {
    /// A manifest with what this machine computes with the generation, unless it has a fingerprint.
    pub(super) fn fingerprinted(
        &self,
        generation: &Arc<Generation>,
        manifest: Vec<u8>,
    ) -> Result<Vec<u8>, FingerprintError> {
        // It was read and verified before, so it is an object; the keys of other releases stay.
        let Ok(mut fields) =
            serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&manifest)
        else {
            return Ok(manifest);
        };
        if fields.contains_key(KEY) {
            return Ok(manifest);
        }
        let own = match Fingerprint::of(&self.engine, &self.tokenizer, generation) {
            // A publication, which may be a way back, does not wait for a busy engine.
            Err(FingerprintError::Submit(error)) => {
                tracing::warn!(%error, generation = %generation.id, "published without a fingerprint");
                return Ok(manifest);
            }
            computed => computed?,
        };
        let Ok(value) = serde_json::to_value(own) else {
            return Ok(manifest);
        };
        fields.insert(KEY.into(), value);
        Ok(serde_json::to_vec_pretty(&fields).unwrap_or(manifest))
    }

    /// Compares what this machine computes with what was published. The holder of the lease decides
    /// what is right, so it only says so. Generations of older releases have no fingerprint.
    pub(super) fn verify(
        &self,
        context: &Context,
        generation: &Arc<Generation>,
        holds: bool,
    ) -> Result<(), String> {
        if generation.adapter.is_none() {
            return Ok(());
        }
        let manifest = context.store.manifest(&generation.id);
        let published = manifest.map_err(|error| error.to_string())?.fingerprint;
        let Some(published) = published else {
            return Ok(());
        };
        let distance = published.distance(&self.engine, &self.tokenizer, generation);
        let why = match distance {
            Ok(distance) => {
                self.seen().distance = Some(distance);
                tracing::info!(generation = %generation.id, distance, "fingerprint compared");
                differs(generation, distance)
            }
            Err(error @ FingerprintError::Unusable(_)) => {
                Some(format!("generation {}: {error}", generation.id))
            }
            // It may be busy: the next look tries again.
            Err(error) => return Err(error.to_string()),
        };
        match why {
            None => Ok(()),
            Some(why) if holds => {
                tracing::warn!("{why}; it serves because this server may publish");
                Ok(())
            }
            Some(why) => {
                self.seen().differs = Some((generation.id.clone(), why.clone()));
                Err(why)
            }
        }
    }
}

/// Why a generation must not serve here, if it is this far from what was published.
fn differs(generation: &Generation, distance: f32) -> Option<String> {
    // Also what is no number.
    let agrees = distance <= TOLERANCE;
    (!agrees).then(|| {
        format!(
            "generation {} computes otherwise here than where it was published: log-probabilities \
             differ by up to {distance:.2} nats, and {TOLERANCE:.1} is tolerated; check this machine, \
             its model file and its settings of [engine] (docs/fleet.md)",
            generation.id
        )
    })
}
