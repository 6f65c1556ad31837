//! Whether the device has room for what the configuration asks for, before anything is loaded.

use super::{LOADED_GENERATIONS, ServerError};
use crate::config::Config;
use realign_align::oracle::HIDDEN_ROWS;
use realign_align::train::ModelSize;
use realign_align::train::run::ROW_BUDGET;
use realign_model::host_memory::{Headroom, headroom};
use realign_model::memory::{Budget, Plan, Stored, Training};
use realign_model::{ComputeDevice, ModelSource, ModelSpec, Recompute};

/// What the configuration asks for.
fn budget(config: &Config, spec: &ModelSpec, stored: Option<Stored>) -> Budget {
    let recipe = config.train.recipe(ModelSize::from(spec));
    let engine = &config.engine;
    Budget {
        stored,
        kv_bytes: engine.kv_cache_mb.saturating_mul(1 << 20),
        step_rows: engine
            .prefill_budget_tokens
            .saturating_add(engine.max_running),
        outputs: engine.max_running,
        hidden_rows: HIDDEN_ROWS,
        generations: LOADED_GENERATIONS,
        training: Some(Training {
            rank: recipe.rank,
            layers: spec.layers - recipe.lowest_layer(spec.layers),
            projections: recipe.targets.len(),
            // A pair that is longer than the budget runs alone; its prompt stands once.
            rows: ROW_BUDGET.max(2 * recipe.max_tokens),
            longest: 2 * recipe.max_tokens,
            recompute: false,
        }),
    }
}

/// Checks the plan of a device that has a memory of its own, and logs it.
///
/// # Errors
/// If the plan does not fit, or the model's files cannot be read.
pub(crate) fn check(config: &Config, device: &dyn ComputeDevice) -> Result<(), ServerError> {
    let Some(free) = device.free_bytes() else {
        warn_of_the_cache(config);
        return Ok(());
    };
    let files = ModelSource::parse(&config.model)?.fetch()?;
    let spec = files.spec()?;
    let choice = config.train.recompute;
    let budget = budget(config, &spec, device.stored(&files)?);
    let (plan, recompute) = Plan::fitting(choice, free, |recompute| {
        device.plan(&spec, &budget.recomputing(recompute))
    })?;
    tracing::info!(
        planned_mb = plan.total() >> 20,
        free_mb = free >> 20,
        %plan,
        "the device has room for the model and for training beside it"
    );
    if recompute && choice == Recompute::Auto {
        tracing::info!(
            "training will compute intermediate results of layers again: there is no room to keep \
             them (train.recompute)"
        );
    }
    Ok(())
}

/// The host's memory is taken as the cache fills, so a cache that is too large ends a server late.
fn warn_of_the_cache(config: &Config) {
    if let Some((room, warning)) = large_cache(config, 0) {
        tracing::warn!(kv_cache_mb = config.engine.kv_cache_mb, %room, "{warning}");
    }
}

/// Why the KV cache does not fit into the host's memory beside `others` bytes, if so.
pub(super) fn large_cache(config: &Config, others: u64) -> Option<(Headroom, String)> {
    let kv_bytes = (config.engine.kv_cache_mb as u64).saturating_mul(1 << 20);
    let room = headroom().filter(|room| room.free < kv_bytes.saturating_add(others))?;
    let warning = format!(
        "the KV cache may grow beyond the memory that is free: lower engine.kv_cache_mb, or {}",
        room.remedy()
    );
    Some((room, warning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;
    use realign_model::shapes::shape;

    #[test]
    fn the_default_configuration_fits_a_7b_model_and_training_on_80_gb() {
        let config = Config::resolve(RawConfig::default()).unwrap();
        let spec = shape("qwen2.5-7b").unwrap();
        let plan = realign_cuda::plan(&spec, &budget(&config, &spec, None));
        assert!(plan.clone().check(79 << 30).is_ok(), "{plan}");
        assert!(plan.check(16 << 30).is_err());
        // The CPU's memory is not what the plan describes.
        let cpu = realign_backend::open(realign_backend::DeviceChoice::Cpu).unwrap();
        check(&config, &*cpu).unwrap();
    }
}
