//! The report of `plan`. Pure.

use serde::Serialize;

use super::estimate::Estimate;
use crate::triage::{Flips, TriageReport, one_line, triage_text};
use realign_align::exam::{self, Exam};
use realign_align::gather;
use realign_align::pipeline::{Selection, holdout_ratio};
use realign_align::policy::PolicySet;
use realign_align::preferences::{Dataset, Split, split};
use realign_align::train::Recipe;
use realign_align::train::run::steps;
use realign_align::triage::Triage;
use realign_core::{Category, TriageCounts};
use realign_server::config::Config;

/// Optimiser steps of a further round, at most: what is wrong, with 96 conflicts and 96 RETAIN pairs.
const LATER_PAIRS: usize = 96 + 96 + 64;

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) config: &'a Config,
    pub(super) recipe: &'a Recipe,
    pub(super) set: &'a PolicySet,
    pub(super) dataset: &'a Dataset,
    pub(super) triage: &'a Triage,
}

/// What a server would do with the data and the policies.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Plan {
    /// How the data fits the policies.
    #[serde(flatten)]
    pub(super) triage: TriageReport,
    /// Whether there is something to train on.
    pub(super) trains: bool,
    /// Rules that pairs are gathered for if what serves does not comply with them, as `policy:rule`:
    /// the data has too few for them.
    pub(super) gathers_for: Vec<String>,
    /// Name of the recipe.
    pub(super) recipe: String,
    /// Pairs of the data to train on, `train.max_pairs` respected.
    pub(super) train_pairs: usize,
    /// The same by category.
    pub(super) train_counts: TriageCounts,
    /// Those pairs, by file and line; conflicts first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pairs: Vec<Chosen>,
    /// The base's own answers that are trained as RETAIN, so that they stay.
    pub(super) controls: usize,
    /// Conflicting pairs outside the held-out part, `train.max_pairs` not counted.
    pub(super) train_conflicts: usize,
    /// Pairs to measure on.
    pub(super) holdout_pairs: usize,
    /// Conflicting pairs to measure on.
    pub(super) holdout_conflicts: usize,
    /// Most optimiser steps of the first round.
    pub(super) steps: usize,
    /// Pairs per optimiser step.
    pub(super) pairs_per_step: usize,
    /// Passes over the pairs.
    pub(super) epochs: usize,
    /// Most rounds of training; further ones are for what a candidate still gets wrong.
    pub(super) rounds: usize,
    /// Most optimiser steps of each further round.
    pub(super) later_steps: usize,
    /// Prompts of the exam that what serves and the candidate sit, facts included.
    pub(super) exam_prompts: usize,
    /// How long it takes on this machine; absent if that was not measured.
    pub(super) estimate: Option<Estimate>,
    /// Why it was not measured, if it was tried.
    pub(super) not_measured: Option<String>,
    /// Verdicts that would reach a judge.
    pub(super) judge_calls: u64,
    /// What is likely to go wrong.
    pub(super) warning: Option<&'static str>,
    /// Changes from the active set, if that is another.
    pub(super) flips: Option<Flips>,
}

/// A pair of the data that is trained on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Chosen {
    /// `file:line`.
    source: String,
    /// What training does with it.
    category: Category,
    /// The last user message.
    prompt: String,
}

impl Plan {
    /// The plan for a triaged data set.
    pub(super) fn new(report: TriageReport, from: Sources<'_>) -> Plan {
        let Sources {
            config,
            recipe,
            dataset,
            triage,
            ..
        } = from;
        let ratio = holdout_ratio(&dataset.pairs, config.gate.holdout_ratio);
        let parts = split(&dataset.pairs, ratio, recipe.seed);
        let conflicts = |of: &[usize]| {
            let in_conflict = of
                .iter()
                .filter(|&&i| triage.items[i].category.is_conflict());
            in_conflict.count()
        };
        let categories = triage.categories();
        let selection = Selection {
            dataset: &dataset.pairs,
            categories: &categories,
            train: &parts.train,
        };
        let chosen = selection.chosen(recipe.max_pairs);
        let trains = conflicts(&parts.train) > 0;
        let asked = Asked::new(from, &parts);
        let gathers = !asked.gathers_for.is_empty();
        let controls = if trains || gathers { asked.controls } else { 0 };
        let later = steps(LATER_PAIRS, recipe);
        Plan {
            trains,
            gathers_for: asked.gathers_for,
            recipe: recipe.name.clone(),
            train_pairs: chosen.len(),
            train_counts: chosen.iter().map(|&i| categories[i]).collect(),
            pairs: listed(dataset, &categories, &chosen),
            controls,
            train_conflicts: conflicts(&parts.train),
            holdout_pairs: parts.holdout.len(),
            holdout_conflicts: conflicts(&parts.holdout),
            steps: if trains {
                steps(chosen.len() + controls, recipe)
            } else {
                0
            },
            pairs_per_step: recipe.pairs_per_step,
            epochs: recipe.epochs,
            rounds: recipe.rounds.max(1),
            later_steps: if recipe.rounds > 1 { later } else { 0 },
            exam_prompts: asked.exam_prompts,
            estimate: None,
            not_measured: None,
            judge_calls: 0,
            warning: None,
            flips: None,
            triage: report,
        }
    }

    /// Whether a realignment would do more than read.
    pub(super) fn does_something(&self) -> bool {
        self.trains || !self.gathers_for.is_empty()
    }

    /// The plan for people.
    pub(super) fn text(&self) -> String {
        let mut text = triage_text(&self.triage);
        text += &self.flips.as_ref().map(Flips::text).unwrap_or_default();
        if !self.triage.examples.is_empty() {
            text += "\n";
        }
        if self.judge_calls > 0 {
            text += &format!("at most {} questions to judges\n", self.judge_calls);
        }
        if let Some(warning) = self.warning {
            text += &format!("warning: {warning}\n");
        }
        text += &self.training();
        text += &self.gathering();
        text += &format!(
            "{} of the training pairs are in conflict; {} pairs are held out to measure on, {} of them \
             in conflict\n",
            self.train_conflicts, self.holdout_pairs, self.holdout_conflicts
        );
        text += &self.time();
        for pair in &self.pairs {
            let category = pair.category.as_str();
            text += &format!("{category:7} {}  {}\n", pair.source, one_line(&pair.prompt));
        }
        text
    }

    fn training(&self) -> String {
        match (self.trains, self.triage.counts.conflicts()) {
            (true, _) => format!(
                "a realignment trains on {} pairs ({} invert, {} punish, {} retain) and {} answers of the \
                 base that stay: at most {} steps of {} pairs, {} (recipe {}){}\n",
                self.train_pairs,
                self.train_counts.invert,
                self.train_counts.punish,
                self.train_counts.retain,
                self.controls,
                self.steps,
                self.pairs_per_step,
                match self.epochs {
                    1 => "one pass".to_owned(),
                    epochs => format!("{epochs} passes"),
                },
                self.recipe,
                match self.rounds {
                    1 => String::new(),
                    rounds => format!(
                        ", then up to {} further rounds of at most {} steps for what the candidate \
                         still gets wrong",
                        rounds - 1,
                        self.later_steps
                    ),
                }
            ),
            (false, 0) if self.gathers_for.is_empty() => {
                "no pair is in conflict: what serves sits the exam, and nothing is trained\n".into()
            }
            (false, 0) => "no pair of the data is in conflict\n".into(),
            (false, _) => {
                "all conflicting pairs are held out: none of the data can be trained; add data\n"
                    .into()
            }
        }
    }

    fn gathering(&self) -> String {
        if self.gathers_for.is_empty() {
            return String::new();
        }
        format!(
            "the data has few pairs for {}: if what serves does not comply, the server makes pairs \
             itself (`realign gather` shows them)\n",
            self.gathers_for.join(", ")
        )
    }

    fn time(&self) -> String {
        match (&self.estimate, &self.not_measured) {
            (Some(estimate), _) => estimate.text(),
            (None, Some(why)) => {
                format!(
                    "how long that takes could not be measured: {}\n",
                    one_line(why)
                )
            }
            (None, None) => String::new(),
        }
    }
}

/// What is asked of the model besides training.
struct Asked {
    exam_prompts: usize,
    controls: usize,
    gathers_for: Vec<String>,
}

impl Asked {
    fn new(from: Sources<'_>, parts: &Split) -> Self {
        let Sources {
            config,
            recipe,
            set,
            dataset,
            triage,
        } = from;
        let sources = exam::Sources {
            policies: set,
            pairs: &dataset.pairs,
            triage,
            holdout: &parts.holdout,
            live: &[],
        };
        let exam = Exam::assemble(sources, config.exam_settings());
        let gathering = gather::Sources {
            policies: set,
            pairs: &dataset.pairs,
            triage,
            train: &parts.train,
            digest: &dataset.digest,
            exam: &exam,
            // Which rules are complied with is known when what serves has sat the exam.
            standings: &[],
            generation: "",
        };
        let gathers = config.gather.enabled && !exam.rules.is_empty();
        Self {
            exam_prompts: if exam.rules.is_empty() {
                0
            } else {
                exam.questions.len() + exam.facts.len()
            },
            controls: Exam::training_controls(sources, recipe.controls).len(),
            gathers_for: if gathers {
                gather::lacking(&gathering, config.gather_settings())
            } else {
                Vec::new()
            },
        }
    }
}

/// Conflicts first.
fn listed(dataset: &Dataset, categories: &[Category], chosen: &[usize]) -> Vec<Chosen> {
    let mut order = chosen.to_vec();
    let pairs = &dataset.pairs;
    order.sort_by_key(|&index| (!categories[index].is_conflict(), &pairs[index].source));
    let chosen = |index: usize| Chosen {
        source: dataset.pairs[index].source.to_string(),
        category: categories[index],
        prompt: dataset.pairs[index].prompt_text().to_owned(),
    };
    order.into_iter().map(chosen).collect()
}
