//! What `score` and `train` do alike: the inputs of a realignment as a server would take them, then
//! reference and impact, with progress on stderr.

use std::sync::Arc;

use super::progress::Progress;
use super::{CliError, GlobalArgs, oracle, recipes, require};
use realign_align::impact::Weights;
use realign_align::learn::{Learner, RawScores, thin};
use realign_align::oracle::prepare_trusted;
use realign_align::policy::PolicySet;
use realign_align::train::examples::TokenPair;
use realign_align::train::{Recipe, TrainExample, WeightScale};
use realign_align::triage::{Triage, triage_cached};
use realign_core::Category;
use realign_model::LoadedModel;
use realign_server::config::Config;
use realign_server::control::{Inputs, ONLY_PUNISH, corrections, corrective};
use realign_server::state::StateDb;

/// Everything before the first forward pass.
pub(super) struct Learning {
    pub config: Config,
    pub loaded: LoadedModel,
    pub recipe: Recipe,
    pub set: PolicySet,
    pub inputs: Inputs,
    pub triage: Triage,
    /// Pairs to train on, too long ones left out.
    pub pairs: Vec<TokenPair>,
    /// PUNISH pairs with a compliant response, of those that were asked about.
    pub corrected: (usize, usize),
    pub skipped: usize,
}

/// After impact.
pub(super) struct Scored {
    pub examples: Vec<TrainExample>,
    pub raw: RawScores,
    pub weights: Option<Weights>,
}

impl Learning {
    /// Reads model, policies and data, triages, and renders the training pairs.
    pub fn load(global: &GlobalArgs, given: Option<&str>) -> Result<Self, CliError> {
        let mut config = global.resolve()?;
        config.train = recipes::section(given, &config.train)?;
        require(
            &config.paths.preferences,
            "a directory of preference data (--preferences)",
        )?;
        require(
            &config.paths.policies,
            "a directory of policies (--policies)",
        )?;
        let loaded = LoadedModel::load(
            &config.model,
            &*realign_backend::open(config.engine.device)?,
        )?;
        let recipe = recipes::for_model(&config.train, loaded.spec())?;
        let set = PolicySet::load_dir(&config.paths.policies)?;
        let prepared = prepare_trusted(&set, &oracle::services(&config, &set)?)?;
        let oracle = prepared.oracle(&set);
        let inputs = Inputs::collect(&config, &loaded.base_hash, &set, &recipe)?;
        let db = Arc::new(StateDb::open(&config.paths.database())?);
        let triage = triage_cached(&inputs.dataset.pairs, &oracle, db.as_ref()).0;
        if let Some(open) = triage.first_failure() {
            let (count, why) = (triage.undecided, &open.why);
            return Err(CliError::Eval(format!(
                "{count} pairs could not be triaged: {why}"
            )));
        }
        let (pairs, corrected, skipped) = {
            let learner = Learner {
                loaded: &loaded,
                recipe: &recipe,
            };
            let category = |index: usize| triage.items[index].category;
            let all = &inputs.dataset.pairs;
            let kept = thin(&inputs.train, category, all, recipe.max_pairs);
            let made = corrections(
                corrective(&config.train)?.as_ref(),
                (&set, &oracle),
                all,
                kept.iter().map(|&i| (i, category(i))),
                db,
            )?;
            let pairs = kept.iter().map(|i| {
                let response = made.responses.get(i).map(String::as_str);
                (&all[*i], category(*i), response)
            });
            let prepared = learner.corrected_pairs(pairs)?;
            let counts = (made.responses.len(), made.asked);
            (prepared.pairs, counts, prepared.skipped.len())
        };
        Ok(Self {
            config,
            loaded,
            recipe,
            set,
            inputs,
            triage,
            pairs,
            corrected,
            skipped,
        })
    }

    /// What is likely to go wrong, in a sentence.
    pub fn warning(&self) -> Option<&'static str> {
        let counts = self.triage.counts;
        let unaided = counts.invert == 0 && counts.punish > 0 && self.corrected.1 == 0;
        unaided.then_some(ONLY_PUNISH)
    }

    /// Whether there is a conflict to learn from.
    pub fn has_conflicts(&self) -> bool {
        let conflict = |pair: &TokenPair| pair.category != Category::Retain;
        self.pairs.iter().any(conflict)
    }

    pub fn learner(&self) -> Learner<'_> {
        Learner {
            loaded: &self.loaded,
            recipe: &self.recipe,
        }
    }

    /// Reference log-probabilities and impact weights.
    pub fn score(&self, progress: Progress) -> Result<Scored, CliError> {
        let learner = self.learner();
        let passes = Learner::passes(&self.pairs);
        let bar = progress.bar(passes, "reference");
        let count = || {
            bar.inc(1);
            true
        };
        let uniform = self.recipe.weight_scale == WeightScale::Uniform;
        let examples = learner.reference(&self.pairs, uniform, count);
        let mut examples = examples.map_err(failed)?.unwrap_or_default();
        bar.finish_and_clear();
        if uniform {
            return Ok(Scored {
                examples,
                raw: Vec::new(),
                weights: None,
            });
        }
        let bar = progress.bar(3 * passes, "impact");
        let count = || {
            bar.inc(1);
            true
        };
        let raw = learner.score(&self.pairs, &mut examples, count);
        let raw = raw.map_err(failed)?.unwrap_or_default();
        bar.finish_and_clear();
        let weights = learner.weigh(&mut examples, &raw);
        let weights = weights.map_err(failed)?;
        Ok(Scored {
            examples,
            raw,
            weights: Some(weights),
        })
    }
}

pub(super) fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Eval(error.to_string())
}
