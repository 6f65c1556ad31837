//! Whether the device has room for what the configuration asks for, before anything is loaded.

use super::{LOADED_GENERATIONS, ServerError};
use crate::config::Config;
use realign_align::oracle::HIDDEN_ROWS;
use realign_align::train::ModelSize;
use realign_align::train::run::ROW_BUDGET;
use realign_model::host_memory::{Headroom, headroom};
use realign_model::memory::{Budget, Plan, Stored, Training};
use realign_model::{BLOCK_TOKENS, ComputeDevice, ModelSource, ModelSpec, Recompute};

/// The KV cache where nothing says how large it should be.
const USUAL_KV_BYTES: u64 = 512 << 20;

/// What the configuration asks for, with so many bytes of keys and values.
fn budget(config: &Config, spec: &ModelSpec, stored: Option<Stored>, kv_bytes: u64) -> Budget {
    let recipe = config.train.recipe(ModelSize::from(spec));
    let engine = &config.engine;
    Budget {
        stored,
        kv_bytes: kv_bytes as usize,
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

/// Checks the plan of a device that has a memory of its own, and logs it. Returns the bytes of its KV
/// cache; `None` for the host's memory, see [`on_host`].
///
/// # Errors
/// If the plan does not fit, or the model's files cannot be read.
pub(crate) fn check(
    config: &Config,
    device: &dyn ComputeDevice,
) -> Result<Option<u64>, ServerError> {
    let Some(free) = device.free_bytes() else {
        warn_of_the_cache(config);
        return Ok(None);
    };
    let files = ModelSource::parse(&config.model)?
        .fetch()?
        .quantised(config.engine.quantisation)?;
    let spec = files.spec()?;
    let choice = config.train.recompute;
    let least = configured(config).unwrap_or(USUAL_KV_BYTES);
    let budget = budget(config, &spec, device.stored(&files)?, least);
    let (plan, recompute) = Plan::fitting(choice, free, |recompute| {
        device.plan(&spec, &budget.recomputing(recompute))
    })?;
    let kv = configured(config).unwrap_or_else(|| {
        share(
            free.saturating_sub(plan.total()) as u64 / 2,
            most(config, &spec),
        )
    });
    let kv = kv.max(least);
    tracing::info!(
        planned_mb = plan.total() >> 20,
        free_mb = free >> 20,
        kv_cache_mb = kv >> 20,
        %plan,
        "the device has room for the model and for training beside it"
    );
    if recompute && choice == Recompute::Auto {
        tracing::info!(
            "training will compute intermediate results of layers again: there is no room to keep \
             them (train.recompute)"
        );
    }
    Ok(Some(kv))
}

/// Bytes of the KV cache in the host's memory, once the model is loaded: what the configuration says, or
/// a quarter of what is free, because learning takes memory as well.
pub(crate) fn on_host(config: &Config, spec: &ModelSpec) -> u64 {
    configured(config).unwrap_or_else(|| match headroom() {
        None => USUAL_KV_BYTES,
        Some(room) => of_host(room.free, most(config, spec)),
    })
}

/// A quarter of `free` bytes; in a small memory up to half of it; never more than `most`.
fn of_host(free: u64, most: u64) -> u64 {
    share((free / 4).max(USUAL_KV_BYTES.min(free / 2)), most)
}

/// Whole MiB of a share, and no more than can be used.
fn share(bytes: u64, most: u64) -> u64 {
    (bytes.min(most) >> 20).max(1) << 20
}

fn configured(config: &Config) -> Option<u64> {
    let mb = config.engine.kv_cache_mb? as u64;
    Some(mb.saturating_mul(1 << 20))
}

/// Bytes of as many of the longest sequences as a batch may hold.
fn most(config: &Config, spec: &ModelSpec) -> u64 {
    let engine = &config.engine;
    let context = spec
        .max_position
        .min(engine.max_model_len.unwrap_or(usize::MAX));
    let token = 2 * spec.layers * spec.kv_heads * spec.head_dim * size_of::<f32>();
    // One block more than a sequence fills, because blocks are not shared.
    ((context + BLOCK_TOKENS) as u64)
        .saturating_mul(engine.max_running as u64)
        .saturating_mul(token as u64)
}

/// The host's memory is taken as the cache fills, so a cache that is too large ends a server late.
fn warn_of_the_cache(config: &Config) {
    if let Some((room, warning)) = large_cache(config, 0) {
        tracing::warn!(kv_cache_mb = config.engine.kv_cache_mb, %room, "{warning}");
    }
}

/// Why the configured KV cache does not fit into the host's memory beside `others` bytes, if so.
pub(super) fn large_cache(config: &Config, others: u64) -> Option<(Headroom, String)> {
    let kv_bytes = configured(config)?;
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
        let plan = realign_cuda::plan(&spec, &budget(&config, &spec, None, USUAL_KV_BYTES));
        assert!(plan.clone().check(79 << 30).is_ok(), "{plan}");
        assert!(plan.check(16 << 30).is_err());
        // The CPU's memory is not what the plan describes.
        let cpu = realign_backend::open(realign_backend::DeviceChoice::Cpu).unwrap();
        check(&config, &*cpu).unwrap();
    }

    #[test]
    fn a_cache_takes_a_quarter_of_what_is_free_and_no_more_than_it_can_use() {
        let (mb, gb) = (1u64 << 20, 1u64 << 30);
        assert_eq!(of_host(16 * gb, u64::MAX), 4 * gb);
        assert_eq!(of_host(gb, u64::MAX), 512 * mb, "half of a small memory");
        assert_eq!(of_host(300 * mb, u64::MAX), 150 * mb);
        assert_eq!(
            of_host(0, u64::MAX),
            mb,
            "the engine says that it is too small"
        );
        assert_eq!(of_host(16 * gb, 48 * mb), 48 * mb);

        let spec = shape("qwen2.5-7b").unwrap();
        let mut config = Config::resolve(RawConfig::default()).unwrap();
        config.engine.max_running = 1;
        config.engine.max_model_len = Some(4096);
        // Two times 28 layers of 512 columns in f32.
        assert_eq!(most(&config, &spec), (4096 + 16) * 2 * 28 * 512 * 4);
        config.engine.kv_cache_mb = Some(3);
        assert_eq!(on_host(&config, &spec), 3 * mb);
    }
}
