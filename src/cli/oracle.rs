//! What commands need to ask a policy set's probes and judges: model, state, caches.

use std::sync::Arc;

use super::CliError;
use realign_align::oracle::{
    FeatureSource, HiddenStates, MemoryScoreCache, ScoreCache, Services, needs_services,
};
use realign_align::policy::PolicySet;
use realign_model::LoadedModel;
use realign_server::config::Config;
use realign_server::state::StateDb;

/// The model and the caches, as far as the set needs them. Sets of text alone need neither, and
/// nothing is opened or written for them.
pub(super) fn services(config: &Config, set: &PolicySet) -> Result<Services, CliError> {
    let (probes, judges) = needs_services(set);
    let scores: Arc<dyn ScoreCache> = match judges {
        true => Arc::new(StateDb::open_for_command(&config.paths.database())?),
        false => Arc::new(MemoryScoreCache::default()),
    };
    Ok(Services {
        features: match probes {
            true => Some(features(config)?),
            false => None,
        },
        scores,
        probes: probes.then(|| config.paths.state.join("probes")),
        closing: None,
    })
}

/// Hidden states of the configured model.
pub(super) fn features(config: &Config) -> Result<Arc<dyn FeatureSource>, CliError> {
    let loaded = LoadedModel::load(
        config.model_choice(),
        &*realign_backend::open(config.engine.device)?,
    )?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.engine.threads.unwrap_or(cores);
    Ok(Arc::new(HiddenStates::new(loaded, threads)?))
}
