//! The variants that are compared: TRACE, TRACE without one of its parts, and baselines. Pure.

use super::noise::flip;
use realign_align::train::examples::TokenPair;
use realign_align::train::{Recipe, WeightScale};
use realign_core::Category;

/// A training method, applied to the same base model and the same data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// The base model, untrained.
    Base,
    /// The recipe as it is.
    Trace,
    /// The paper's objective under the recipe's optimiser.
    TracePure,
    /// Every conflicting pair inverted, whatever its rejected response is.
    NoTriage,
    /// Weight 1 for every conflict.
    NoImpact,
    /// No KL term.
    NoKl,
    /// DPO on relabelled pairs.
    DpoGold,
    /// Negative preference optimisation only: unlearning of violating responses.
    Npo,
    /// A tenth of the triage labels wrong.
    Noise10,
    /// A fifth of the triage labels wrong.
    Noise20,
    /// The paper's recipe to the letter.
    Paper,
    /// DPO on relabelled pairs without the likelihood term.
    DpoPure,
}

/// Which labels a variant trains on; variants with the same labels share reference and scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Labels {
    /// As triage gave them.
    Triaged,
    /// Every conflict is INVERT.
    AllInverted,
    /// INVERT pairs swapped and RETAIN pairs unchanged, all as preference pairs; PUNISH left out.
    Relabelled,
    /// The violating responses of the conflicts.
    Unlearned,
    /// A share of the labels, in percent, replaced by wrong ones.
    Flipped(u8),
}

impl Variant {
    /// Every variant.
    pub const ALL: [Variant; 12] = [
        Variant::Base,
        Variant::Trace,
        Variant::TracePure,
        Variant::NoTriage,
        Variant::NoImpact,
        Variant::NoKl,
        Variant::DpoGold,
        Variant::Npo,
        Variant::Noise10,
        Variant::Noise20,
        Variant::Paper,
        Variant::DpoPure,
    ];

    /// The variant's name in tables, flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Base => "base",
            Variant::Trace => "trace",
            Variant::TracePure => "trace-pure",
            Variant::NoTriage => "no-triage",
            Variant::NoImpact => "no-impact",
            Variant::NoKl => "no-kl",
            Variant::DpoGold => "dpo-gold",
            Variant::Npo => "npo",
            Variant::Noise10 => "noise-10",
            Variant::Noise20 => "noise-20",
            Variant::Paper => "paper",
            Variant::DpoPure => "dpo-pure",
        }
    }

    /// The variant of that name.
    pub fn from_name(name: &str) -> Option<Variant> {
        Variant::ALL.into_iter().find(|v| v.name() == name)
    }

    /// The variants of a suite: `full`, `core`, `ablations`, `noise` or `all`.
    pub fn suite(name: &str) -> Option<Vec<Variant>> {
        use Variant::*;
        let only = |variants: &[Variant]| Some(variants.to_vec());
        match name {
            "full" => only(&Variant::ALL[..10]),
            "core" => only(&[Base, Trace, DpoGold, Npo]),
            "ablations" => only(&[Base, Trace, TracePure, NoTriage, NoImpact, NoKl]),
            "noise" => only(&[Base, Trace, Noise10, Noise20]),
            "all" => only(&Variant::ALL),
            _ => None,
        }
    }

    /// A description of the variant for readers of a table.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Variant::Base => "the base model, untrained",
            Variant::Trace => "the recipe, our likelihood term included, with impact weights",
            Variant::TracePure => {
                "the paper's objective (no likelihood term, β 0.3, α_KL 0.1) with weights of mean 1 \
                 and the recipe's optimiser and adapter"
            }
            Variant::NoTriage => {
                "every conflicting pair is trained as INVERT, whether its rejected response complies or not"
            }
            Variant::NoImpact => "every conflict has weight 1",
            Variant::NoKl => "α_KL is 0",
            Variant::DpoGold => {
                "DPO, with our likelihood term, on INVERT turned round and RETAIN as it is; PUNISH left out"
            }
            Variant::Npo => {
                "unlearning alone: NPO on the violating responses of the conflicts, nothing else"
            }
            Variant::Noise10 => "the recipe with 10 % of the triage labels replaced by wrong ones",
            Variant::Noise20 => "the recipe with 20 % of the triage labels replaced by wrong ones",
            Variant::Paper => "the paper's recipe to the letter, weights that sum to 1 included",
            Variant::DpoPure => "dpo-gold without the likelihood term",
        }
    }

    /// Whether anything is trained.
    pub fn trains(self) -> bool {
        self != Variant::Base
    }

    /// The labels it trains on.
    pub fn labels(self) -> Labels {
        match self {
            Variant::NoTriage => Labels::AllInverted,
            Variant::DpoGold | Variant::DpoPure => Labels::Relabelled,
            Variant::Npo => Labels::Unlearned,
            Variant::Noise10 => Labels::Flipped(10),
            Variant::Noise20 => Labels::Flipped(20),
            _ => Labels::Triaged,
        }
    }

    /// Whether impact scores weigh its conflicts.
    pub(crate) fn scored(self) -> bool {
        !matches!(
            self,
            Variant::Base | Variant::NoImpact | Variant::DpoGold | Variant::DpoPure | Variant::Npo
        )
    }

    /// The variant's recipe, derived from the one that `trace` uses.
    pub fn recipe(self, base: &Recipe) -> Recipe {
        let mut recipe = match self {
            Variant::Paper => Recipe {
                max_pairs: base.max_pairs,
                max_tokens: base.max_tokens,
                ..Recipe::paper()
            },
            _ => base.clone(),
        };
        match self {
            Variant::TracePure => {
                let paper = Recipe::paper();
                recipe.alpha_sft = paper.alpha_sft;
                recipe.alpha_opening = paper.alpha_opening;
                recipe.alpha_kl = paper.alpha_kl;
                recipe.beta = paper.beta;
                recipe.weight_scale = WeightScale::MeanOne;
            }
            Variant::NoKl => recipe.alpha_kl = 0.0,
            Variant::DpoPure => recipe.alpha_sft = 0.0,
            _ => {}
        }
        if self.trains() && !self.scored() {
            recipe.weight_scale = WeightScale::Uniform;
        } else if recipe.weight_scale == WeightScale::Uniform {
            recipe.weight_scale = WeightScale::MeanOne;
        }
        recipe.seed = base.seed;
        recipe.name = self.name().into();
        recipe
    }
}

/// What a variant gives the learning pipeline: everything in which it differs from TRACE.
#[derive(Clone, Debug)]
pub struct Treatment {
    /// How it trains.
    pub recipe: Recipe,
    /// The pairs under the variant's labels.
    pub pairs: Vec<TokenPair>,
    /// A weight for every pair, where neither impact nor the recipe decides.
    pub weights: Option<Vec<f64>>,
}

impl Variant {
    /// The variant's recipe, pairs and weights, derived from the recipe and triaged pairs of `trace`.
    pub fn treatment(self, base: &Recipe, triaged: &[TokenPair], seed: u64) -> Treatment {
        let pairs = self.labels().apply(triaged, seed);
        let recipe = Recipe {
            seed,
            ..self.recipe(base)
        };
        let weights = (self.labels() == Labels::Unlearned)
            .then(|| pairs.iter().map(unlearning_weight).collect());
        Treatment {
            recipe: with_as_many_steps(&recipe, pairs.len(), triaged.len()),
            pairs,
            weights,
        }
    }
}

impl Labels {
    /// Whether the seed decides them.
    pub fn depend_on_seed(self) -> bool {
        matches!(self, Labels::Flipped(_))
    }

    /// The pairs under these labels.
    pub(crate) fn apply(self, pairs: &[TokenPair], seed: u64) -> Vec<TokenPair> {
        match self {
            Labels::Triaged => pairs.to_vec(),
            Labels::AllInverted => pairs.iter().map(inverted).collect(),
            Labels::Relabelled => pairs.iter().filter_map(relabelled).collect(),
            Labels::Unlearned => pairs.iter().filter_map(unlearned).collect(),
            Labels::Flipped(percent) => {
                let labels: Vec<Category> = pairs.iter().map(|p| p.category).collect();
                let flipped = flip(&labels, f64::from(percent) / 100.0, seed);
                let with = |(pair, category): (&TokenPair, Category)| TokenPair {
                    category,
                    ..pair.clone()
                };
                pairs.iter().zip(flipped).map(with).collect()
            }
        }
    }
}

fn inverted(pair: &TokenPair) -> TokenPair {
    let category = if pair.category.is_conflict() {
        Category::Invert
    } else {
        Category::Retain
    };
    TokenPair {
        category,
        ..pair.clone()
    }
}

/// The pair as an INVERT pair, whose *rejected* response training prefers.
fn relabelled(pair: &TokenPair) -> Option<TokenPair> {
    match pair.category {
        Category::Invert => Some(pair.clone()),
        Category::Punish => None,
        Category::Retain => Some(TokenPair {
            category: Category::Invert,
            chosen: pair.rejected.clone(),
            rejected: pair.chosen.clone(),
            ..pair.clone()
        }),
    }
}

/// The pair as a PUNISH pair. In an INVERT pair only the chosen response violates: it is used for
/// both responses, and [`unlearning_weight`] halves the pair's weight.
fn unlearned(pair: &TokenPair) -> Option<TokenPair> {
    match pair.category {
        Category::Retain => None,
        Category::Punish => Some(pair.clone()),
        Category::Invert => Some(TokenPair {
            category: Category::Punish,
            rejected: pair.chosen.clone(),
            ..pair.clone()
        }),
    }
}

/// The weight of a pair of [`Labels::Unlearned`]: each violating response counts once.
fn unlearning_weight(pair: &TokenPair) -> f64 {
    if pair.chosen == pair.rejected {
        0.5
    } else {
        1.0
    }
}

/// The recipe with batches of such a size that `pairs` make as many steps as `of_trace` do under
/// it: variants that leave pairs out are not compared by having fewer updates.
fn with_as_many_steps(recipe: &Recipe, pairs: usize, of_trace: usize) -> Recipe {
    let batches = of_trace.div_ceil(recipe.pairs_per_step.max(1)).max(1);
    Recipe {
        pairs_per_step: pairs.div_ceil(batches).max(1),
        ..recipe.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(category: Category, n: u32) -> TokenPair {
        TokenPair {
            id: format!("{category:?}{n}"),
            category,
            prompt: vec![n],
            chosen: vec![100 + n, 2],
            rejected: vec![200 + n, 2],
        }
    }

    fn pairs() -> Vec<TokenPair> {
        (0..30)
            .map(|n| pair(Category::ALL[n as usize % 3], n))
            .collect()
    }

    #[test]
    fn names_are_unique_and_suites_begin_with_the_base() {
        for variant in Variant::ALL {
            assert_eq!(Variant::from_name(variant.name()), Some(variant));
        }
        for suite in ["full", "core", "ablations", "noise", "all"] {
            let variants = Variant::suite(suite).unwrap();
            assert_eq!(variants[0], Variant::Base, "{suite}");
        }
        assert_eq!(Variant::suite("full").unwrap().len(), 10);
        assert_eq!(Variant::suite("none"), None);
    }

    #[test]
    fn each_ablation_changes_one_thing() {
        let base = Recipe::default();
        let trace = Variant::Trace.recipe(&base);
        let differs = |variant: Variant, mut restore: Box<dyn FnMut(&mut Recipe)>| {
            let mut recipe = variant.recipe(&base);
            assert_ne!(recipe, trace, "{variant:?}");
            restore(&mut recipe);
            recipe.name = trace.name.clone();
            assert_eq!(recipe, trace, "{variant:?}");
        };
        differs(
            Variant::NoKl,
            Box::new(|r| r.alpha_kl = Recipe::default().alpha_kl),
        );
        let mean_one = |r: &mut Recipe| r.weight_scale = WeightScale::MeanOne;
        differs(Variant::NoImpact, Box::new(mean_one));
        differs(Variant::NoTriage, Box::new(|_| {}));
        let pure = Variant::TracePure.recipe(&base);
        assert_eq!((pure.alpha_sft, pure.alpha_kl, pure.beta), (0.0, 0.1, 0.3));
        assert_eq!(pure.learning_rate, base.learning_rate);
        assert_eq!(
            Variant::Paper.recipe(&base).weight_scale,
            WeightScale::SumOne
        );
    }

    #[test]
    fn relabelled_pairs_prefer_what_complies() {
        let relabelled = Labels::Relabelled.apply(&pairs(), 0);
        assert_eq!(relabelled.len(), 20, "punish is left out");
        for pair in &relabelled {
            let preferred = pair.preference().responses[0][0];
            let expected = if pair.id.starts_with("Invert") {
                200
            } else {
                100
            };
            assert_eq!(preferred - pair.prompt[0], expected, "{}", pair.id);
        }
    }

    #[test]
    fn unlearning_suppresses_violating_responses_once_each() {
        for pair in Labels::Unlearned.apply(&pairs(), 0) {
            assert_eq!(pair.category, Category::Punish);
            if pair.id.starts_with("Invert") {
                assert_eq!(pair.chosen, pair.rejected);
                assert_eq!(unlearning_weight(&pair), 0.5);
                assert_eq!(pair.chosen[0] - pair.prompt[0], 100);
            } else {
                assert_eq!(unlearning_weight(&pair), 1.0)
            }
        }
    }

    #[test]
    fn without_triage_all_conflicts_are_treated_alike() {
        let labels = Labels::AllInverted.apply(&pairs(), 0);
        let of = |c: Category| labels.iter().filter(|p| p.category == c).count();
        assert_eq!(
            (
                of(Category::Invert),
                of(Category::Punish),
                of(Category::Retain)
            ),
            (20, 0, 10)
        );
    }

    #[test]
    fn a_treatment_differs_from_that_of_trace_by_pairs_recipe_and_weights() {
        let base = Recipe::default();
        let treat = |variant: Variant| variant.treatment(&base, &pairs(), 5);
        let trace = treat(Variant::Trace);
        assert_eq!((trace.recipe.seed, &trace.pairs), (5, &pairs()));
        assert_eq!(trace.recipe.pairs_per_step, base.pairs_per_step);
        assert_eq!(trace.weights, None);
        let npo = treat(Variant::Npo);
        let weights = npo.weights.unwrap();
        assert_eq!((npo.pairs.len(), weights.len()), (20, 20));
        assert!(npo.recipe.pairs_per_step < base.pairs_per_step);
        assert_eq!(weights.iter().sum::<f64>(), 15.0, "ten at half");
        assert_eq!(treat(Variant::NoKl).recipe.alpha_kl, 0.0);
        assert_eq!(treat(Variant::DpoGold).pairs.len(), 20);
    }

    #[test]
    fn fewer_pairs_make_as_many_steps() {
        let recipe = Recipe::default();
        for (pairs, of_trace) in [(120, 192), (64, 192), (3, 24), (192, 192)] {
            let balanced = with_as_many_steps(&recipe, pairs, of_trace);
            let steps = pairs.div_ceil(balanced.pairs_per_step);
            let wanted = of_trace.div_ceil(recipe.pairs_per_step);
            assert!(
                steps <= wanted && steps * 2 > wanted.min(pairs),
                "{pairs}: {steps}"
            );
        }
    }
}
