//! Everything that a comparison is a function of, read once.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::TraceArgs;
use super::data::{self, Truth};
use super::judging::{Reliability, judge, judged_by};
use super::questions::{general, items, windows};
use crate::{CliError, GlobalArgs, oracle, recipes, require};
use realign_align::exam::ScoredQuestion as Question;
use realign_align::gate::HeldOutPrompt;
use realign_align::oracle::{Oracle, prepare_trusted};
use realign_align::pipeline::{PipelineError, RenderError, Renderer, Selection};
use realign_align::policy::PolicySet;
use realign_align::preferences::Dataset;
use realign_align::train::examples::TokenPair;
use realign_align::train::{Recipe, Skipped};
use realign_align::triage::triage;
use realign_core::{Category, TriageCounts};
use realign_lab::evaluation::Variant;
use realign_lab::evaluation::capability::Item;
use realign_model::LoadedModel;
use realign_server::config::Config;

/// Changes when the same inputs would give other figures.
const VERSION: &str = "realign-eval-trace/2";
/// Held-out pairs and items do not depend on the seeds that are compared.
pub(super) const DRAW_SEED: u64 = 17;

/// What the cells are computed from.
pub(super) struct Inputs {
    pub(crate) config: Config,
    pub(crate) loaded: LoadedModel,
    pub(crate) recipe: Recipe,
    /// Judges fresh answers.
    pub(crate) oracle: Arc<dyn Oracle>,
    /// Training pairs under their triaged labels.
    pub(crate) pairs: Vec<TokenPair>,
    /// Held-out prompts, with the categories they occur in.
    pub(crate) prompts: Vec<(HeldOutPrompt, Vec<Category>)>,
    /// Held-out RETAIN pairs, likewise.
    pub(crate) retained: Vec<Question>,
    /// Held-out INVERT pairs: the prompt with its preferred response first.
    pub(crate) inverted: Vec<Question>,
    /// Everyday questions.
    pub(crate) general: Vec<HeldOutPrompt>,
    /// Windows of the perplexity text.
    pub(crate) windows: Vec<Question>,
    /// Multiple-choice items with their token ids, one question per choice.
    pub(crate) items: Vec<(Item, Vec<Question>)>,
    /// Most tokens of a fresh answer.
    pub(crate) answer_tokens: usize,
    /// What the report says of them.
    pub(crate) about: About,
    /// Hash of everything above.
    digest: String,
}

/// The inputs, for the report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct About {
    pub(crate) model: String,
    pub(crate) base_hash: String,
    pub(crate) data: String,
    pub(crate) triaged_by: &'static str,
    pub(crate) judged_by: String,
    /// How far the judge agrees with people, where the data has labels.
    pub(crate) judge: Option<Reliability>,
    pub(crate) triage: TriageCounts,
    pub(crate) train: TriageCounts,
    pub(crate) skipped_pairs: usize,
    pub(crate) held_out: TriageCounts,
    pub(crate) perplexity_tokens: usize,
    pub(crate) items: usize,
    pub(crate) recipe: Recipe,
}

/// What triage, truth and split came to.
pub(super) struct Labelled {
    pub(crate) dataset: Dataset,
    pub(crate) truth: Option<Vec<Truth>>,
    pub(crate) categories: Vec<Category>,
}

impl Inputs {
    pub(crate) fn load(args: &TraceArgs, global: &GlobalArgs) -> Result<Self, CliError> {
        let config = global.resolve()?;
        let device = realign_backend::open(config.engine.device)?;
        let loaded = LoadedModel::load(config.model_choice(), &*device)?;
        let section = recipes::section(args.recipe.as_deref(), &config.train)?;
        let mut recipe = recipes::for_model(&section, loaded.spec())?;
        if let Some(max_pairs) = args.max_pairs {
            recipe.max_pairs = max_pairs;
        }
        let policy = policy_oracle(args, &config)?;
        let labelled = labelled(args, &config, policy.as_ref())?;
        let (oracle, judge) = judge(args, &labelled, policy)?;
        let parts = prepare(args, &labelled, &loaded, &recipe)?;
        let windows = windows(args, &loaded.tokenizer)?;
        let items = items(args, &loaded.tokenizer)?;
        let asked = parts.prompts.iter().flat_map(|(_, categories)| categories);
        let about = About {
            model: loaded.name.to_string(),
            base_hash: loaded.base_hash.to_string(),
            data: shown(args, &config),
            triaged_by: match labelled.truth {
                Some(_) => "the data's labels",
                None => "the policies",
            },
            judged_by: judged_by(args, oracle.as_ref()),
            judge,
            triage: labelled.categories.iter().copied().collect(),
            train: parts.pairs.iter().map(|p| p.category).collect(),
            skipped_pairs: parts.skipped.len(),
            held_out: asked.copied().collect(),
            perplexity_tokens: windows.iter().map(|w| w.continuations[0].len()).sum(),
            items: items.len(),
            recipe: recipe.clone(),
        };
        let digest = digest(args, &about, &labelled.dataset, &items, &windows);
        Ok(Self {
            general: general(&loaded)?,
            oracle,
            pairs: parts.pairs,
            prompts: parts.prompts,
            retained: parts.retained,
            inverted: parts.inverted,
            windows,
            items,
            answer_tokens: args.answer_tokens,
            about,
            digest,
            config,
            recipe,
            loaded,
        })
    }

    /// Identifies a cell's figures: equal fingerprints, equal figures but for time and memory.
    pub(crate) fn fingerprint(&self, variant: Variant, seed: u64) -> String {
        let recipe = Recipe {
            seed,
            ..variant.recipe(&self.recipe)
        };
        let recipe = serde_json::to_string(&recipe).unwrap_or_default();
        let mut hash = Sha256::new();
        for part in [self.digest.as_str(), variant.name(), &recipe] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hex::encode(hash.finalize())
    }
}

fn shown(args: &TraceArgs, config: &Config) -> String {
    let path = args.data.as_ref().unwrap_or(&config.paths.preferences);
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn policy_oracle(args: &TraceArgs, config: &Config) -> Result<Arc<dyn Oracle>, CliError> {
    let set = match args.policy.is_empty() {
        false => {
            for file in &args.policy {
                require(file, "a policy file (--policy)")?;
            }
            PolicySet::load_files(&args.policy)?
        }
        true => {
            let dir: &PathBuf = &config.paths.policies;
            require(dir, "a directory of policies (--policies)")?;
            PolicySet::load_dir(dir)?
        }
    };
    let prepared = prepare_trusted(&set, &oracle::services(config, &set)?)?;
    Ok(Arc::new(prepared.oracle(&set)))
}

fn labelled(args: &TraceArgs, config: &Config, policy: &dyn Oracle) -> Result<Labelled, CliError> {
    let dataset = data::pairs(args.data.as_deref(), &config.paths.preferences)?;
    let truth = data::truth(&dataset)?;
    let categories = match &truth {
        Some(truth) => truth
            .iter()
            .map(|t| Category::of(t.chosen, t.rejected))
            .collect(),
        None => {
            let triage = triage(&dataset.pairs, policy);
            if let Some(open) = triage.first_failure() {
                let (count, why) = (triage.undecided, &open.why);
                return Err(CliError::Eval(format!(
                    "{count} pairs could not be triaged: {why}"
                )));
            }
            triage.items.iter().map(|item| item.category).collect()
        }
    };
    Ok(Labelled {
        dataset,
        truth,
        categories,
    })
}

/// Pairs to train on, and what is asked.
struct Parts {
    pairs: Vec<TokenPair>,
    skipped: Vec<Skipped>,
    prompts: Vec<(HeldOutPrompt, Vec<Category>)>,
    retained: Vec<Question>,
    inverted: Vec<Question>,
}

fn prepare(
    args: &TraceArgs,
    labelled: &Labelled,
    loaded: &LoadedModel,
    recipe: &Recipe,
) -> Result<Parts, CliError> {
    let (pairs, categories) = (&labelled.dataset.pairs, &labelled.categories);
    let parts = data::hold_out(pairs, categories, args.holdout, DRAW_SEED);
    let selection = Selection {
        dataset: pairs,
        categories,
        train: &parts.train,
    };
    let selected = selection.select_fitting(loaded, recipe)?;
    let renderer = Renderer::new(loaded);
    let asked = data::asked(pairs, categories, &parts.holdout, args.max_prompts);
    let prompt = |a: &data::Asked| -> Result<_, RenderError> {
        let held = HeldOutPrompt {
            text: pairs[a.pair].prompt_text().to_owned(),
            tokens: renderer.prompt(&pairs[a.pair])?,
        };
        Ok((held, a.categories.clone()))
    };
    let prompts = asked.iter().map(prompt).collect::<Result<Vec<_>, _>>();
    let prompts = prompts.map_err(PipelineError::Render)?;
    if prompts.is_empty() {
        return Err(CliError::Eval(
            "nothing is held out: mark pairs with \"meta\": {\"holdout\": true} or add data".into(),
        ));
    }
    let preferences = |category, order: fn(TokenPair) -> Vec<Vec<u32>>| {
        let train = &held_out(labelled, &parts.holdout, category);
        let selection = Selection { train, ..selection };
        preferences(selection, loaded, recipe, args.max_prompts, order)
    };
    Ok(Parts {
        pairs: selected.pairs,
        skipped: selected.skipped,
        prompts,
        retained: preferences(Category::Retain, |pair| vec![pair.chosen, pair.rejected])?,
        inverted: preferences(Category::Invert, |pair| vec![pair.rejected, pair.chosen])?,
    })
}

fn held_out(labelled: &Labelled, holdout: &[usize], category: Category) -> Vec<usize> {
    let of = |&i: &usize| labelled.categories[i] == category;
    holdout.iter().copied().filter(of).collect()
}

/// Pairs as questions with two continuations, at most `most` of them.
fn preferences(
    selection: Selection<'_>,
    loaded: &LoadedModel,
    recipe: &Recipe,
    most: usize,
    order: fn(TokenPair) -> Vec<Vec<u32>>,
) -> Result<Vec<Question>, CliError> {
    let everything = Recipe {
        max_pairs: 0,
        ..recipe.clone()
    };
    let pairs = selection.select(loaded, &everything, None)?.pairs;
    let question = |pair: TokenPair| Question {
        prompt: pair.prompt.clone(),
        continuations: order(pair),
    };
    Ok(pairs.into_iter().take(most).map(question).collect())
}

fn digest(
    args: &TraceArgs,
    about: &About,
    dataset: &Dataset,
    items: &[(Item, Vec<Question>)],
    windows: &[Question],
) -> String {
    let options = json!([
        VERSION,
        about,
        dataset.digest,
        args.holdout,
        args.max_prompts,
        args.answer_tokens,
    ]);
    let mut hash = Sha256::new();
    hash.update(options.to_string());
    let asked = items.iter().flat_map(|(_, questions)| questions);
    for question in asked.chain(windows) {
        hash.update(format!("{question:?}"));
    }
    hex::encode(hash.finalize())
}
