//! Selects the pairs that a run trains on, as token ids: sampled down to the recipe's limit,
//! corrected if both responses violate, without pairs that are too long.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::situations::situated;
use super::{PipelineError, RenderError, Renderer};
use crate::oracle::Oracle;
use crate::oracle::corrective::{
    Corrective, CorrectiveError, CorrectiveSpec, CorrectiveUsage, ResponseCache,
};
use crate::policy::PolicySet;
use crate::preferences::Pair;
use crate::train::examples::TokenPair;
use crate::train::{Recipe, Skipped, prepare};
use realign_core::Category;
use realign_model::LoadedModel;

/// The pairs to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// The preference data.
    pub dataset: &'a [Pair],
    /// The category of every pair in `dataset`.
    pub categories: &'a [Category],
    /// Indices of the pairs to train on.
    pub train: &'a [usize],
}

/// Writes compliant responses to PUNISH pairs, and checks them.
#[derive(Clone)]
pub struct Corrector<'a> {
    /// Settings of the endpoint.
    pub spec: &'a CorrectiveSpec,
    /// The policies that the endpoint is told to follow.
    pub policies: &'a PolicySet,
    /// Judges the responses.
    pub oracle: &'a dyn Oracle,
    /// Responses of earlier requests.
    pub cache: Arc<dyn ResponseCache>,
}

/// Result of the corrective endpoint.
#[derive(Clone, Debug, Default)]
pub struct Corrections {
    /// PUNISH pairs for which a response was requested.
    pub asked: usize,
    /// Of those, pairs that got a compliant response.
    pub written: usize,
    /// Counts of requests.
    pub usage: CorrectiveUsage,
}

/// The selected pairs.
#[derive(Debug, Default)]
pub struct Selected {
    /// Pairs to train on, in the order of the data.
    pub pairs: Vec<TokenPair>,
    /// Pairs that were skipped as too long or empty.
    pub skipped: Vec<Skipped>,
    /// Counts of corrected pairs; zero without a corrector.
    pub corrections: Corrections,
}

impl Selection<'_> {
    /// Samples down to the recipe's `max_pairs`, corrects PUNISH pairs if there is a corrector,
    /// renders all pairs, and skips those longer than the recipe's `max_tokens`.
    ///
    /// # Errors
    /// If the endpoint fails or a pair cannot be rendered. A response that does not comply is not an
    /// error: training then only suppresses its pair's responses.
    pub fn select(
        &self,
        loaded: &LoadedModel,
        recipe: &Recipe,
        corrector: Option<Corrector<'_>>,
    ) -> Result<Selected, PipelineError> {
        let kept = self.sample(self.train, recipe.max_pairs);
        let (responses, corrections) = match corrector {
            Some(corrector) => self.correct(&kept, &corrector)?,
            None => Default::default(),
        };
        let renderer = Renderer::new(loaded);
        let render = |(at, &index): (usize, &usize)| {
            let pair = &self.dataset[index];
            let situated = recipe.situations.then(|| self.situated(&kept, at));
            let pair = situated.as_ref().unwrap_or(pair);
            match (self.categories[index], responses.get(&index)) {
                (Category::Punish, Some(response)) => renderer.corrected(pair, response),
                (category, _) => renderer.pair(pair, category),
            }
        };
        let rendered = kept.iter().enumerate();
        let rendered = rendered
            .map(render)
            .collect::<Result<Vec<TokenPair>, RenderError>>()?;
        let prepared = prepare(rendered, recipe.max_tokens);
        Ok(Selected {
            pairs: prepared.pairs,
            skipped: prepared.skipped,
            corrections,
        })
    }

    /// A pair in the situation in which it is trained. The turn before it may be another conflict
    /// with its violating answer.
    fn situated(&self, kept: &[usize], at: usize) -> Pair {
        let pair = &self.dataset[kept[at]];
        let mut others = kept[..at].iter().rev().chain(kept[at + 1..].iter());
        let violating = others.find(|index| self.categories[**index].is_conflict());
        let violating = violating.map(|index| {
            let other = &self.dataset[*index];
            (other.prompt_text(), other.chosen.as_str())
        });
        Pair {
            prompt: situated(&pair.id.0, &pair.prompt, violating),
            ..pair.clone()
        }
    }

    /// Like [`Selection::select`], but pairs that are too long do not count towards `max_pairs`, at
    /// the cost of rendering every pair. No pair is corrected.
    ///
    /// # Errors
    /// If a pair cannot be rendered.
    pub fn select_fitting(
        &self,
        loaded: &LoadedModel,
        recipe: &Recipe,
    ) -> Result<Selected, PipelineError> {
        let all = Recipe {
            max_pairs: 0,
            ..recipe.clone()
        };
        let mut selected = self.select(loaded, &all, None)?;
        let fitting: HashSet<&str> = selected.pairs.iter().map(|pair| pair.id.as_str()).collect();
        let id = |index: usize| self.dataset[index].id.0.as_str();
        let fitting: Vec<usize> = self
            .train
            .iter()
            .copied()
            .filter(|&index| fitting.contains(id(index)))
            .collect();
        let kept: HashSet<&str> = self
            .sample(&fitting, recipe.max_pairs)
            .into_iter()
            .map(id)
            .collect();
        selected
            .pairs
            .retain(|pair| kept.contains(pair.id.as_str()));
        Ok(selected)
    }

    /// Indices of the pairs that [`Selection::select`] trains on, those that turn out too long
    /// included.
    pub fn chosen(&self, limit: usize) -> Vec<usize> {
        self.sample(self.train, limit)
    }

    /// At most `limit` of the pairs (0: all), chosen by content id, a second pair of the same prompt
    /// after the first ones of all prompts. Conflicts come first: RETAIN pairs get a quarter, and what
    /// conflicts leave.
    fn sample(&self, indices: &[usize], limit: usize) -> Vec<usize> {
        if limit == 0 || indices.len() <= limit {
            return indices.to_vec();
        }
        let of = |wanted: &[Category]| {
            let chosen = indices.iter().copied();
            let mut chosen: Vec<usize> = chosen
                .filter(|&i| wanted.contains(&self.categories[i]))
                .collect();
            chosen.sort_by(|&a, &b| self.dataset[a].id.0.cmp(&self.dataset[b].id.0));
            let mut seen: HashMap<&str, usize> = HashMap::new();
            let mut turns: Vec<(usize, usize)> = chosen
                .into_iter()
                .map(|i| {
                    let turn = seen.entry(self.dataset[i].prompt_text()).or_default();
                    *turn += 1;
                    (*turn, i)
                })
                .collect();
            turns.sort_by_key(|(turn, _)| *turn);
            turns.into_iter().map(|(_, i)| i).collect::<Vec<usize>>()
        };
        let mut conflicts = of(&[Category::Invert, Category::Punish]);
        let mut kept = of(&[Category::Retain]);
        let most = (limit - limit / 4).max(limit.saturating_sub(kept.len()));
        conflicts.truncate(most);
        kept.truncate(limit - conflicts.len());
        kept.extend(conflicts);
        kept.sort_unstable();
        kept
    }

    /// Compliant responses to the PUNISH pairs among `indices`, by index.
    fn correct(
        &self,
        indices: &[usize],
        corrector: &Corrector<'_>,
    ) -> Result<(HashMap<usize, String>, Corrections), CorrectiveError> {
        let (spec, cache) = (corrector.spec.clone(), corrector.cache.clone());
        let corrective = Corrective::prepare(spec, corrector.policies, cache)?;
        let punish: Vec<usize> = indices
            .iter()
            .copied()
            .filter(|&i| self.categories[i] == Category::Punish)
            .collect();
        let prompts: Vec<&str> = punish
            .iter()
            .map(|&i| self.dataset[i].prompt_text())
            .collect();
        let written = corrective.write_all(&prompts, corrector.oracle)?;
        let responses: HashMap<usize, String> = punish
            .iter()
            .copied()
            .zip(written)
            .filter_map(|(i, text)| Some((i, text?)))
            .collect();
        let corrections = Corrections {
            asked: punish.len(),
            written: responses.len(),
            usage: corrective.usage(),
        };
        Ok((responses, corrections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preferences::Dataset;

    #[test]
    fn every_prompt_comes_before_a_second_pair_of_one() {
        let line = |n: usize| {
            let prompt = if n < 8 {
                "The same".into()
            } else {
                format!("Prompt {n}")
            };
            format!(r#"{{"prompt":"{prompt}","chosen":"a {n}","rejected":"b {n}"}}"#)
        };
        let lines: Vec<String> = (0..12).map(line).collect();
        let dataset = Dataset::from_bytes("p.jsonl", lines.join("\n").into_bytes()).unwrap();
        let all: Vec<usize> = (0..12).collect();
        let selection = Selection {
            dataset: &dataset.pairs,
            categories: &[Category::Invert; 12],
            train: &all,
        };
        let chosen = selection.chosen(5);
        let prompts: HashSet<&str> = chosen
            .iter()
            .map(|&i| dataset.pairs[i].prompt_text())
            .collect();
        assert_eq!((chosen.len(), prompts.len()), (5, 5), "{chosen:?}");
        assert_eq!(selection.chosen(12), all);
    }
}
