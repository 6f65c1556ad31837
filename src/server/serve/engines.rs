//! The engine that the configuration names.

use crate::config::{Config, EngineKind};
use realign_engine::{EngineConfig, EngineError, EngineHandle};
use realign_model::LoadedModel;

/// Starts the engine. One that has a copy of the weights for each generation has none yet.
///
/// `kv_bytes`: keys and values.
pub(super) fn start(
    config: &Config,
    loaded: &LoadedModel,
    kv_bytes: u64,
) -> Result<EngineHandle, EngineError> {
    let bounds = bounds(config, kv_bytes);
    match config.engine.kind {
        EngineKind::Native => {
            realign_engine::start(&*loaded.backend, loaded.tokenizer.clone(), bounds)
        }
        EngineKind::Mistralrs if config.tokenizer.is_some() => Err(EngineError::Unsuitable(
            "tokenizer: the engine `mistralrs` reads the one beside the model; leave it out".into(),
        )),
        EngineKind::Mistralrs => mistralrs(config, loaded, bounds),
    }
}

#[cfg(feature = "mistralrs")]
fn mistralrs(
    config: &Config,
    loaded: &LoadedModel,
    bounds: EngineConfig,
) -> Result<EngineHandle, EngineError> {
    use realign_mistral::Mistral;
    use realign_model::ModelSource;

    let unsuitable =
        |why: String| EngineError::Unsuitable(format!("the engine `mistralrs`: {why}"));
    let files = ModelSource::parse(&config.model)
        .and_then(ModelSource::fetch)
        .map_err(|e| unsuitable(e.to_string()))?;
    let scratch = config.paths.state.join("mistralrs");
    let isq = config.engine.isq.as_deref();
    let builder = Mistral::new(files, scratch, isq).map_err(|e| unsuitable(e.to_string()))?;
    Ok(realign_engine::start_merged(
        Box::new(builder),
        loaded.tokenizer.clone(),
        loaded.spec().max_position,
        bounds,
        config.engine.copies,
    ))
}

#[cfg(not(feature = "mistralrs"))]
fn mistralrs(_: &Config, _: &LoadedModel, _: EngineConfig) -> Result<EngineHandle, EngineError> {
    Err(EngineError::NotBuilt(
        "this build has no engine `mistralrs`: build it with \
         `cargo build --release --features mistralrs`, or set engine.kind to `native`",
    ))
}

fn bounds(config: &Config, kv_bytes: u64) -> EngineConfig {
    EngineConfig {
        max_model_len: config.engine.max_model_len,
        max_running: config.engine.max_running,
        max_waiting: config.engine.max_waiting,
        kv_cache_bytes: kv_bytes as usize,
        step_tokens: config.engine.prefill_budget_tokens,
        step_target: config.engine.step_target,
        jump_forward: config.engine.jump_forward,
        draft_tokens: config.engine.draft_tokens,
        threads: match config.engine.threads {
            Some(threads) => threads,
            None => EngineConfig::default().threads,
        },
        cuda_graphs: config.engine.cuda_graphs,
        kv_type: config.engine.kv_type,
        precision: config.engine.precision,
    }
}
