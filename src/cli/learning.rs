//! What `score` and `train` have in common: they gather the inputs of a realignment as a server
//! would take them, and show the pipeline's progress on stderr.

use std::path::PathBuf;
use std::sync::Arc;

use super::{CliError, GlobalArgs, oracle, recipes, require};
use realign_align::oracle::prepare_trusted;
use realign_align::pipeline::{Corrector, Inputs, Run, Selected, Selection, warning};
use realign_align::policy::PolicySet;
use realign_align::train::Recipe;
use realign_align::train::examples::TokenPair;
use realign_align::triage::{Triage, triage_cached};
use realign_model::LoadedModel;
use realign_server::config::Config;
use realign_server::control::{command_checkpoints, inputs};
use realign_server::state::StateDb;

/// Everything before the first forward pass.
pub(super) struct Learning {
    pub(crate) config: Config,
    pub(crate) loaded: LoadedModel,
    pub(crate) recipe: Recipe,
    pub(crate) inputs: Inputs,
    pub(crate) triage: Triage,
    pub(crate) selected: Selected,
}

impl Learning {
    /// Reads model, policies and data, triages, and renders the training pairs.
    pub(crate) fn load(global: &GlobalArgs, given: Option<&str>) -> Result<Self, CliError> {
        Self::load_on(global, given, None)
    }

    /// As [`Learning::load`], with the named engine instead of the configured one.
    pub(crate) fn load_on(
        global: &GlobalArgs,
        given: Option<&str>,
        engine: Option<&str>,
    ) -> Result<Self, CliError> {
        let mut config = global.resolve()?;
        config.train = recipes::section(given, &config.train)?;
        if let Some(name) = engine {
            config.train = config.train.with_engine(name)?;
        }
        require(
            &config.paths.preferences,
            "a directory of preference data (--preferences)",
        )?;
        require(
            &config.paths.policies,
            "a directory of policies (--policies)",
        )?;
        let device = realign_backend::open(config.engine.device)?;
        let loaded = LoadedModel::load(config.model_choice(), &*device)?;
        let recipe = recipes::for_model(&config.train, loaded.spec())?;
        let set = PolicySet::load_dir(&config.paths.policies)?;
        let prepared = prepare_trusted(&set, &oracle::services(&config, &set)?)?;
        let oracle = prepared.oracle(&set);
        let inputs = inputs(&config, &loaded.base_hash, &set, &recipe)?;
        let db = Arc::new(StateDb::open_for_command(&config.paths.database())?);
        let triage = triage_cached(&inputs.dataset.pairs, &oracle, db.as_ref()).0;
        if let Some(open) = triage.first_failure() {
            let (count, why) = (triage.undecided, &open.why);
            return Err(CliError::Eval(format!(
                "{count} pairs could not be triaged: {why}"
            )));
        }
        let corrector = config.train.corrective.as_ref().map(|spec| Corrector {
            spec,
            policies: &set,
            oracle: &oracle,
            cache: db,
        });
        let selection = Selection {
            dataset: &inputs.dataset.pairs,
            categories: &triage.categories(),
            train: &inputs.train,
        };
        let selected = selection.select(&loaded, &recipe, corrector)?;
        Ok(Self {
            config,
            loaded,
            recipe,
            inputs,
            triage,
            selected,
        })
    }

    /// What the pipeline runs.
    pub(crate) fn run(&self) -> Run<'_> {
        Run {
            pairs: &self.selected.pairs,
            recipe: &self.recipe,
            weights: None,
        }
    }

    /// Where the checkpoints of a training run are.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        command_checkpoints(&self.config, &self.inputs)
    }

    /// What is likely to go wrong, in a sentence.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        warning(self.triage.counts, self.config.train.corrective.is_some())
    }

    /// Whether there is a conflict to learn from.
    pub(crate) fn has_conflicts(&self) -> bool {
        let conflict = |pair: &TokenPair| pair.category.is_conflict();
        self.selected.pairs.iter().any(conflict)
    }
}
